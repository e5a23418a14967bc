"""Forms beyond the plain pair: convolutions in two, and first factors that are shared."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.rewrite import rewrite
from onnxrank.graph.weights import weight_matrix
from onnxrank.linalg.factorize import Factors
from onnxrank.stages.forms import FORMS

from .build import MS, differ, info, make, node, noise, only, ops, run, single, tensors
from .lossless import assert_lossless
from .test_conv import GEOMETRIES, conv, spread

CUTS = ["channel", "separable"]


def cut(site, form, rank=2, seed=5):
    """Factors of the sizes of a form, with a shift: nothing like the weight."""
    rng = np.random.default_rng(seed)
    sizes = FORMS[form].cut(site)(np.zeros((1, site.d_in, site.d_out)), np.eye(site.d_in)[None], 1)
    wide, deep = (part.shape[1] for part in sizes.parts)
    first = rng.standard_normal((1, wide, rank)) / np.sqrt(wide)
    second = rng.standard_normal((1, rank * deep, site.d_out)) / np.sqrt(rank)
    return Factors((first, second), rng.standard_normal((1, site.d_out)))


def check(proto, feeds, form="channel", rank=2):
    model = load(proto)
    site = only(proto)
    factors = cut(site, form, rank)
    written = rewrite(model, [(site, factors)])
    assert_lossless(proto, written, [site])
    entries = sum(value.size for value in tensors(written).values()) - site.d_out
    assert entries == FORMS[form].parameters(site, rank) == sum(f.size for f in factors.parts)
    parts = (factors.product,)
    if site.op != "Conv":  # it takes no other weight in place
        parts = (factors.product, np.eye(site.d_out)[None])
    whole = rewrite(model, [(site, Factors(parts, factors.bias))])
    assert ops(written) == ({"Conv": 2} if site.op == "Conv" else {"FusedConv": 1, "Conv": 1})
    assert differ(run(whole, feeds), run(written, feeds)) < 2e-5
    return written, site


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("geometry", range(len(GEOMETRIES)))
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_channel_first(axes, geometry, bias):
    written, site = check(*conv(axes, bias=bias, **spread(GEOMETRIES[geometry], axes)))
    first, second = written.graph.node
    assert attributes(first) == {"kernel_shape": [1] * axes}
    assert set(attributes(second)) == set(spread(GEOMETRIES[geometry], axes))
    shapes = {name: value.shape for name, value in tensors(written).items()}
    assert shapes["n/rank_in.weight"] == (2, 4, *(1,) * axes)
    assert shapes["n/rank_out.weight"] == (6, 2, *site.view.layout.kernel)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("geometry", range(len(GEOMETRIES)))
@pytest.mark.parametrize("axes", [2, 3])
def test_separable(axes, geometry, bias):
    written, _ = check(*conv(axes, bias=bias, **spread(GEOMETRIES[geometry], axes)), "separable")
    first, second = written.graph.node
    rest = axes - 1
    assert attributes(first)["kernel_shape"] == [3] + [1] * rest
    assert attributes(second)["kernel_shape"] == [1] + [3] * rest
    shapes = {name: value.shape for name, value in tensors(written).items()}
    assert shapes["n/rank_in.weight"] == (2, 4, 3, *(1,) * rest)
    assert shapes["n/rank_out.weight"] == (6, 2, 1, *(3,) * rest)


def test_asymmetric_kernels():
    check(*conv(2, kernel=(1, 4), pads=[0, 3, 1, 2], strides=[2, 1], dilations=[1, 2]))
    check(*conv(2, kernel=(5, 1), kernel_shape=[5, 1], pads=[4, 0, 0, 1]))
    geometry = {"pads": [1, 3, 0, 2], "strides": [2, 1], "dilations": [1, 2]}
    written, _ = check(*conv(2, kernel=(3, 4), kernel_shape=[3, 4], **geometry), "separable")
    first, second = map(attributes, written.graph.node)
    assert first == {
        "kernel_shape": [3, 1],
        "pads": [1, 0, 0, 0],
        "strides": [2, 1],
        "dilations": [1, 1],
    }
    assert second == {
        "kernel_shape": [1, 4],
        "pads": [0, 3, 0, 2],
        "strides": [1, 1],
        "dilations": [1, 2],
    }


def test_where_a_form_does_not_apply():
    def full(form, *args, **more):
        return FORMS[form].full(only(conv(*args, **more)[0]))

    assert full("channel", kernel=(1, 1)) == full("channel", group=2) == 0
    assert full("channel", kernel=(1, 3)) == full("channel", kernel=(3, 1)) == 4
    assert full("channel", op="ConvTranspose") == full("separable", op="ConvTranspose") == 0
    assert full("separable", kernel=(1, 3)) == full("separable", kernel=(3, 1)) == 0
    assert full("separable", 1) == full("separable", group=2) == 0
    assert full("separable", kernel=(2, 5)) == 8


@pytest.mark.parametrize("form", CUTS)
@pytest.mark.parametrize("added", [True, False])
def test_fused(form, added):
    attrs = {"pads": [1] * 4, "strides": [2, 1], "activation": "Relu"}
    constants = {"w": noise(6, 4, 3, 3), "b": noise(6, seed=2)}
    shapes = {"x": (2, 4, 9, 10)} | ({"z": (2, 6, 5, 10)} if added else {})
    inputs = ["x", "w", "b", "z"] if added else ["x", "w", "b"]
    proto = single("FusedConv", shapes, constants, inputs, domain=MS, **attrs)
    feeds = {name: noise(*shape, seed=3) for name, shape in shapes.items()}
    written, _ = check(proto, feeds, form)
    assert "activation" not in attributes(written.graph.node[0])
    assert attributes(written.graph.node[1])["activation"] == b"Relu"


@pytest.mark.parametrize("form", CUTS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_geometry(form, data):
    axes = data.draw(st.integers(1 if form == "channel" else 2, 3), "axes")
    draw = lambda low, high, count=axes: data.draw(  # noqa: E731
        st.lists(st.integers(low, high), min_size=count, max_size=count)
    )
    kernel = [*draw(1, 3, axes - 1), 3]
    if form == "separable":
        kernel[0] = max(kernel[0], 2)
    model, feeds = conv(
        axes,
        channels=data.draw(st.integers(2, 5)),
        kernel=tuple(kernel),
        bias=data.draw(st.booleans()),
        size=7,
        batch=1,
        strides=draw(1, 3),
        dilations=draw(1, 2),
        pads=draw(0, 2, 2 * axes),
    )
    check(model, feeds, form, data.draw(st.integers(1, 5)))


@pytest.mark.parametrize("form", CUTS)
def test_full_rank_is_the_original(form):
    proto, feeds = conv(2, channels=4, strides=[2, 1], pads=[1] * 4)
    model, site = load(proto), only(proto)
    gram = np.cov(np.random.default_rng(0).standard_normal((site.d_in, 400)))
    factors = FORMS[form].cut(site)(weight_matrix(model, site), gram[None], FORMS[form].full(site))
    written = rewrite(model, [(site, factors)])
    assert differ(run(proto, feeds), run(written, feeds)) < 1e-5


def projections(ops="MatMul", bias=True, d=8, sizes=(8, 8, 6)):
    """Queries, keys and values of one input, and something that reads them all."""
    nodes, constants = [], {}
    for k, size in enumerate(sizes):
        op = ops if isinstance(ops, str) else ops[k]
        name, shape = f"p{k}", (d, size)
        constants[f"w{k}"] = noise(*shape, seed=k)
        made = f"h{k}" if bias and op == "MatMul" else f"y{k}"
        attrs = {"transB": 1} if op == "Gemm" else {}
        if attrs:
            constants[f"w{k}"] = constants[f"w{k}"].T.copy()
        nodes.append(node(op, ["r", f"w{k}"], [made], name=name, **attrs))
        if bias and op == "MatMul":
            constants[f"b{k}"] = noise(size, seed=k)
            nodes.append(node("Add", [made, f"b{k}"], [f"y{k}"]))
    nodes.insert(0, node("Relu", ["x"], ["r"]))
    shape = ("n", d) if "Gemm" in ops else ("n", 3, d)
    proto = make(nodes, {"x": shape}, [f"y{k}" for k in range(len(sizes))], constants)
    for k, size in enumerate(sizes):  # as the checker wants them
        proto.graph.output[k].CopyFrom(info(f"y{k}", (*shape[:-1], size)))
    return proto, {"x": noise(*(2 if s == "n" else s for s in shape))}


def shared(sites, rank=3):
    rng = np.random.default_rng(1)
    first = rng.standard_normal((1, sites[0].d_in, rank))
    return [
        (s, Factors((first, rng.standard_normal((1, rank, s.d_out))), rng.random((1, s.d_out))))
        for s in sites
    ]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm", ("Gemm", "MatMul", "Gemm")])
def test_a_shared_first_factor_is_one_node_and_one_tensor(kind, bias):
    proto, feeds = projections(kind, bias)
    model = load(proto)
    sites, _ = find_sites(model)
    pairs = shared(sites)
    written = rewrite(model, pairs)
    onnx.checker.check_model(written, full_check=True)
    firsts = {n.op_type for n in written.graph.node if n.name.endswith("rank_in")}
    names = [n.name for n in written.graph.node if "rank_in" in n.name]
    # Operators of two kinds have a node each, but the same tensor.
    assert len(names) == len(firsts) == len({kind} if isinstance(kind, str) else set(kind))
    stored = [name for name in tensors(written) if "rank_in" in name]
    assert stored == ["p0/rank_in.weight"]
    dense = rewrite(model, [(s, Factors((f.product,), f.bias)) for s, f in pairs])
    assert differ(run(dense, feeds), run(written, feeds)) < 1e-5


def test_equal_first_factors_of_other_inputs_share_the_tensor_alone():
    proto = make(
        [
            node("MatMul", ["x", "w0"], ["h"], name="p0"),
            node("MatMul", ["h", "w1"], ["y"], name="p1"),
        ],
        {"x": (2, 8)},
        ["y"],
        {"w0": noise(8, 8), "w1": noise(8, 5)},
    )
    model = load(proto)
    sites, _ = find_sites(model)
    pairs = shared(sites)
    written = rewrite(model, pairs)
    assert ops(written)["MatMul"] == 4
    assert sum("rank_in" in name for name in tensors(written)) == 1
    dense = rewrite(model, [(s, Factors((f.product,), f.bias)) for s, f in pairs])
    feeds = {"x": noise(2, 8)}
    assert differ(run(dense, feeds), run(written, feeds)) < 1e-5


def test_two_branches_do_not_share_a_node():
    from .test_probe import choose

    proto = make(
        [
            choose(
                [node("MatMul", ["x", "w0"], ["t"], name="p0")],
                [node("MatMul", ["x", "w1"], ["e"], name="p1")],
            )
        ],
        {"x": (2, 8), "c": info("c", (), onnx.TensorProto.BOOL)},
        ["y"],
        {"w0": noise(8, 6), "w1": noise(8, 6, seed=2)},
    )
    model = load(proto)
    pairs = shared(find_sites(model)[0])
    written = rewrite(model, pairs)
    dense = rewrite(model, [(s, Factors((f.product,), f.bias)) for s, f in pairs])
    for c in (True, False):
        feeds = {"x": noise(2, 8), "c": np.array(c)}
        assert differ(run(dense, feeds), run(written, feeds)) < 1e-5


def test_other_first_factors_share_nothing():
    proto, feeds = projections()
    model = load(proto)
    sites, _ = find_sites(model)
    pairs = [pair for k, site in enumerate(sites) for pair in shared([site], 2 + k)]
    written = rewrite(model, pairs)
    assert sum(n.name.endswith("rank_in") for n in written.graph.node) == 3
    dense = rewrite(model, [(s, Factors((f.product,), f.bias)) for s, f in pairs])
    assert differ(run(dense, feeds), run(written, feeds)) < 1e-5

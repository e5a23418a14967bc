"""Tensors made visible, and their moments reduced in the graph: twins of linalg.layout.rows."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.probe import probe
from onnxrank.graph.scopes import MAIN
from onnxrank.graph.sites import View
from onnxrank.linalg.layout import Axis, Patches, rows, width

from .build import MS, body, const, differ, info, make, node, noise, run, single

K = 5
BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64


def reference(x, layout):
    """n, sum and Gram matrix of a tensor, or of several added."""
    total = None
    for tensor in x if isinstance(x, list) else [x]:
        r = rows(np.asarray(tensor), layout).astype(np.float64)
        found = (r.shape[1], r.sum(axis=1), r.swapaxes(1, 2) @ r)
        total = found if total is None else tuple(a + b for a, b in zip(total, found, strict=True))
    return total


def check(proto, feeds, expected, reduce=True, folder=None):
    """Moments of every site's view, by the site's name, beside the model's own outputs.

    `expected` gives for each the tensors that its rows are read from, in any order.
    """
    model = load(proto, folder)
    sites, _ = find_sites(model)
    views = {site.view: site.d_in for site in sites}
    before = proto.SerializeToString(deterministic=True)
    probed = probe(model, list(views), views, reduce=reduce)
    assert proto.SerializeToString(deterministic=True) == before
    own = [o.name for o in proto.graph.output]
    assert [o.name for o in probed.proto.graph.output][: len(own)] == own
    assert differ(run(proto, feeds), run(probed.proto, feeds, own)) < 1e-6
    assert {s.name for s in sites} == set(expected)
    for site in sites:
        n, total, gram = run(probed.proto, feeds, list(probed.names[site.view]))
        assert n.dtype == np.int64 and n.shape == ()
        assert total.dtype == gram.dtype == np.float64
        assert total.shape == (site.groups, site.d_in)
        assert gram.shape == (site.groups, site.d_in, site.d_in)
        tensors = expected[site.name]
        if isinstance(tensors, list) and not tensors:
            assert n == 0 and not total.any() and not gram.any()
            continue
        count, s, g = reference(tensors, site.view.layout)
        assert n == count, site.name
        np.testing.assert_allclose(total, s, rtol=1e-5, atol=1e-4 * np.abs(g).max() ** 0.5)
        np.testing.assert_allclose(gram, g, rtol=1e-5, atol=1e-5 * np.abs(g).max())


AXES = [
    (Axis((-1,)), (2, 3, 8)),
    (Axis((-1,)), (8,)),
    (Axis((0,)), (8, 5)),
    (Axis((1,)), (3, 8)),
    (Axis((-2,)), (2, 8, 3)),
    (Axis((1,)), (2, 8, 3, 2)),
    (Axis((1,), 2), (2, 8, 3)),
    (Axis((2, -1)), (2, 3, 4, 2)),
    (Axis((1, 3), 2), (3, 4, 2, 2)),
    (Axis((3, 1)), (3, 4, 2, 2)),
]


def window(kernel, groups=1, **more):
    axes = len(kernel)
    plain = {"strides": (1,) * axes, "pads": (0,) * 2 * axes, "dilations": (1,) * axes}
    return Patches(kernel, groups=groups, **{**plain, **more})


PATCHES = [
    (window((3,)), (2, 4, 9)),
    (window((3,), strides=(2,), pads=(1, 2)), (2, 4, 9)),
    (window((2, 3), dilations=(2, 1), pads=(1, 0, 0, 2)), (2, 3, 7, 6)),
    (window((3, 3), groups=2, strides=(2, 2)), (1, 4, 7, 7)),
    (window((3, 3), strides=(2, 2), auto_pad="SAME_UPPER"), (1, 4, 8, 7)),
    (window((2, 2), strides=(2, 1), auto_pad="SAME_LOWER"), (1, 4, 7, 7)),
    (window((3, 2), auto_pad="VALID"), (2, 3, 7, 7)),
    (window((1, 1)), (2, 3, 4, 4)),
    (window((1, 2, 2), strides=(1, 2, 1), pads=(0, 1, 0, 0, 0, 1)), (1, 2, 3, 5, 4)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("layout,shape", AXES + PATCHES)
def test_layouts(layout, shape, dtype):
    """Each layout on a tensor of the main graph, whatever reads it."""
    x = noise(*shape, dtype=dtype)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    model = load(
        make(
            [node("Identity", ["x"], ["h"]), node("Identity", ["h"], ["y"])],
            {"x": info("x", shape, kind)},
            ["y"],
        )
    )
    view = View(MAIN, "h", layout)
    d = width(shape, layout)
    probed = probe(model, [view], {view: d}, reduce=True)
    n, total, gram = run(probed.proto, {"x": x}, list(probed.names[view]))
    count, s, g = reference(x, layout)
    assert n == count
    np.testing.assert_allclose(total, s, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gram, g, rtol=1e-5, atol=1e-4)
    exposed = probe(model, [view], {view: d})
    assert exposed.names[view] == "h"
    (found,) = run(exposed.proto, {"x": x}, ["h"])
    assert found.dtype == dtype and np.array_equal(found, x)


def test_half_precision_does_not_overflow():
    x = np.full((64, K), 1000, np.float16)
    model = single(
        "MatMul",
        {"x": info("x", ("n", K), TensorProto.FLOAT16)},
        {"w": noise(K, 2, dtype=np.float16)},
        ["x", "w"],
    )
    check(model, {"x": x}, {"n": x})


def test_no_rows_at_all():
    model = single("MatMul", {"x": ("n", K)}, {"w": noise(K, 2)}, ["x", "w"])
    check(model, {"x": noise(0, K)}, {"n": []})
    for group in (1, 2):
        model = single(
            "Conv", {"x": ("n", 4, 6)}, {"w": noise(4, 4 // group, 3)}, ["x", "w"], group=group
        )
        check(model, {"x": noise(0, 4, 6)}, {"n": []})


@pytest.mark.parametrize("ir", [3, 8])
def test_every_operator_at_once(ir):
    """One graph with a view of each kind; both ways of looking agree."""
    nodes = [
        node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1], strides=[2, 1]),
        node("ConvTranspose", ["c", "t"], ["u"], name="up", group=2),
        node("Flatten", ["u"], ["f"], name="flat"),
        node("Gemm", ["f", "g"], ["p"], name="gemm"),
        node("Gemm", ["p", "g2"], ["q"], name="gemm_t", transA=1),
        node("MatMul", ["m", "q"], ["r"], name="left"),
        node("Einsum", ["r", "e"], ["y"], name="einsum", equation="ij,jk->ki"),
    ]
    constants = {
        "k": noise(4, 2, 3, 3),
        "t": noise(4, 3, 2, 2),
        "g": noise(6 * 5 * 8, 6),
        "g2": noise(3, 7),
        "m": noise(4, 6),
        "e": noise(7, 3),
    }
    model = make(
        nodes, {"x": (3, 2, 7, 7)}, ["c", "u", "f", "p", "q", "r", "y"], constants, opset=12, ir=ir
    )
    x = noise(3, 2, 7, 7, seed=1)
    c, u, f, p, q, r, _ = run(model, {"x": x})
    assert f.shape[1] == 6 * 5 * 8
    check(model, {"x": x}, {"conv": x, "up": c, "gemm": f, "gemm_t": p, "left": q, "einsum": r})


def test_recurrent_views():
    model = single(
        "LSTM",
        {"x": (4, 3, K)},
        {"w": noise(2, 12, K), "r": noise(2, 12, 3)},
        ["x", "w", "r"],
        outputs=("Y",),
        hidden_size=3,
        direction="bidirectional",
    )
    x = noise(4, 3, K)
    (y,) = run(model, {"x": x})
    check(model, {"x": x}, {"n": x, "n/recurrent": y})


def choose(then, other, inner_constants=None, names=("t", "e"), outputs=("y",), key="c"):
    """An If whose branches are lists of nodes."""
    return node(
        "If",
        [key],
        list(outputs),
        name="if",
        then_branch=body(then, [], [onnx.ValueInfoProto(name=names[0])], inner_constants, "then"),
        else_branch=body(other, [], [onnx.ValueInfoProto(name=names[1])], None, "else"),
    )


@pytest.mark.parametrize("c", [True, False])
@pytest.mark.parametrize("ir", [4, 8])
def test_if_both_branches(c, ir):
    model = make(
        [
            node("Relu", ["x"], ["h"]),
            choose(
                [node("MatMul", ["h", "w"], ["t"], name="inner")],
                [node("Neg", ["h"], ["m"]), node("MatMul", ["m", "v"], ["e"], name="other")],
                {"w": noise(K, K)},
            ),
        ],
        {"x": (3, K), "c": info("c", (), BOOL)},
        ["y"],
        {"v": noise(K, K, seed=2)},
        ir=ir,
        opset=12 if ir == 4 else 17,
    )
    x = noise(3, K)
    h = np.maximum(x, 0)
    check(model, {"x": x, "c": np.array(c)}, {"inner": h if c else [], "other": [] if c else -h})


def loop(states, scans, nodes, *, inputs, name="loop", outs=None, constants=None, cond="on"):
    """A Loop: `states` and `scans` by name inside; `inputs` are M, condition and states."""
    first = [info("i", (), INT64), info("on", (), BOOL)]
    inner = [node("Identity", [cond], ["on_out"]), *nodes]
    if cond == "on":
        inner = [node("Identity", ["on"], ["on_out"]), *nodes]
    made = [onnx.ValueInfoProto(name=n) for n in ("on_out", *(f"{s}_out" for s in states), *scans)]
    typed = [info(s, None) for s in states]
    made[0].CopyFrom(info("on_out", (), BOOL))
    for value in made[1:]:
        value.CopyFrom(info(value.name, None))
    graph = body(inner, [*first, *typed], made, constants)
    outs = outs or [f"{n}_final" for n in (*states, *scans)]
    return node("Loop", inputs, outs, name=name, body=graph)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("condition", ["", "yes"])
def test_loop(count, condition):
    """h = tanh(h W): every iteration's rows are added up; scans and states still come out."""
    model = make(
        [
            loop(
                ["h"],
                ["s"],
                [
                    node("MatMul", ["h", "w"], ["p"], name="inner"),
                    node("Tanh", ["p"], ["h_out"]),
                    node("Identity", ["p"], ["s"]),
                ],
                inputs=["count", condition, "x"],
            ),
            node("MatMul", ["h_final", "w"], ["y"], name="outer"),
        ],
        {"x": (3, K), "count": info("count", (), INT64), "yes": info("yes", (), BOOL)},
        ["y", "s_final"],
        {"w": 0.5 * noise(K, K)},
    )
    x, w = noise(3, K), 0.5 * noise(K, K)
    seen, h = [], x
    for _ in range(count):
        seen.append(h)
        h = np.tanh(h @ w)
    feeds = {"x": x, "count": np.array(count), "yes": np.array(True)}
    check(model, feeds, {"inner": seen, "outer": h})


def test_loop_with_scans_alone_and_two_sites():
    """No state: the first output of the node is a scan, and it still names the scope."""
    model = make(
        [
            loop(
                [],
                ["s", "z"],
                [
                    node("MatMul", ["x", "w"], ["p"], name="one"),
                    node("Relu", ["p"], ["q"]),
                    node("MatMul", ["q", "v"], ["s"], name="two"),
                    node("Identity", ["q"], ["z"]),
                ],
                inputs=["count", ""],
            ),
            node("Identity", ["s_final"], ["y"]),
        ],
        {"x": (3, K), "count": info("count", (), INT64)},
        ["y"],
        {"w": noise(K, K), "v": noise(K, 2)},
    )
    x = noise(3, K)
    q = np.maximum(x @ noise(K, K), 0)
    check(model, {"x": x, "count": np.array(4)}, {"one": [x] * 4, "two": [q] * 4})


def test_while_loop():
    """It ends by its condition: no trip count is given."""
    model = make(
        [
            loop(
                ["h"],
                [],
                [
                    node("MatMul", ["h", "w"], ["h_out"], name="inner"),
                    node("Less", ["i", "limit"], ["go"]),
                ],
                inputs=["", "yes", "x"],
                cond="go",
            ),
            node("Identity", ["h_final"], ["y"]),
        ],
        {"x": (3, K), "yes": info("yes", (), BOOL)},
        ["y"],
        {"w": 0.5 * noise(K, K), "limit": np.array(3)},
    )
    for n in model.graph.node[0].attribute[0].g.node:
        if n.output[0] == "on_out":
            n.input[0] = "go"
    # The condition must be computed before it is passed on.
    inner = model.graph.node[0].attribute[0].g
    inner.node.append(inner.node[0])
    del inner.node[0]
    x, w = noise(3, K), 0.5 * noise(K, K)
    seen = [x, x @ w, x @ w @ w, x @ w @ w @ w]
    check(model, {"x": x, "yes": np.array(True)}, {"inner": seen})


def scan(states, ins, outs, nodes, given, names, **attrs):
    graph = body(
        nodes,
        [info(n, None) for n in (*states, *ins)],
        [info(n, None) for n in (*(f"{s}_out" for s in states), *outs)],
    )
    return node("Scan", given, names, name="scan", body=graph, num_scan_inputs=len(ins), **attrs)


@pytest.mark.parametrize(
    "axes,directions", [(None, None), ([1, 0], None), ([0, 0], [1, 0]), ([-2, 0], [1, 1])]
)
def test_scan(axes, directions):
    """Two states, two scanned inputs, two scanned outputs; axes and directions stay theirs."""
    attrs = {}
    if axes:
        attrs["scan_input_axes"] = axes
    if directions:
        attrs["scan_input_directions"] = directions
    a, b = noise(4, 3, K), noise(4, 3, K, seed=1)
    given = np.moveaxis(a, 0, 1) if axes and axes[0] in (1, -2) else a
    if axes and axes[0] == -2:
        given = np.moveaxis(a, 0, 1)
    model = make(
        [
            scan(
                ["h", "g"],
                ["u", "v"],
                ["o", "p"],
                [
                    node("MatMul", ["h", "w"], ["m"], name="one"),
                    node("Add", ["m", "u"], ["n"]),
                    node("Tanh", ["n"], ["h_out"]),
                    node("MatMul", ["v", "z"], ["q"], name="two"),
                    node("Add", ["g", "q"], ["g_out"]),
                    node("Identity", ["h_out"], ["o"]),
                    node("Identity", ["q"], ["p"]),
                ],
                ["h0", "g0", "a", "b"],
                ["h1", "g1", "os", "ps"],
                **attrs,
            ),
        ],
        {"h0": (3, K), "g0": (3, K), "a": given.shape, "b": b.shape},
        ["h1", "g1", "os", "ps"],
        {"w": 0.4 * noise(K, K), "z": 0.4 * noise(K, K, seed=3)},
    )
    h = noise(3, K, seed=5)
    feeds = {"h0": h, "g0": noise(3, K, seed=6), "a": given, "b": b}
    w, seen_h, seen_v = 0.4 * noise(K, K), [], []
    order = list(range(4))
    first = order[::-1] if directions and directions[0] else order
    second = order[::-1] if directions and directions[1] else order
    for j, k in zip(first, second, strict=True):
        seen_h.append(h)
        seen_v.append(b[k])
        h = np.tanh(h @ w + a[j])
    check(model, feeds, {"one": seen_h, "two": seen_v})


def test_scan_without_states():
    model = make(
        [scan([], ["u"], ["o"], [node("MatMul", ["u", "w"], ["o"], name="one")], ["x"], ["y"])],
        {"x": (4, 3, K)},
        ["y"],
        {"w": noise(K, K)},
    )
    x = noise(4, 3, K)
    check(model, {"x": x}, {"one": x})


@pytest.mark.parametrize("threshold", [-1, 2, 9])
def test_if_in_loop(threshold):
    """The branch is taken in some iterations, in none, or in all."""
    inner = choose(
        [node("MatMul", ["h", "w"], ["t"], name="inner")],
        [node("Identity", ["h"], ["e"])],
        outputs=("h_out",),
        key="small",
    )
    model = make(
        [
            loop(
                ["h"],
                [],
                [node("Less", ["i", "limit"], ["small"]), inner],
                inputs=["count", "", "x"],
            )
        ],
        {"x": (3, K), "count": info("count", (), INT64)},
        ["h_final"],
        {"w": 0.5 * noise(K, K), "limit": np.array(threshold)},
    )
    x, w = noise(3, K), 0.5 * noise(K, K)
    seen, h = [], x
    for k in range(5):
        if k < threshold:
            seen.append(h)
            h = h @ w
    check(model, {"x": x, "count": np.array(5)}, {"inner": seen})


@pytest.mark.parametrize("c", [True, False])
def test_loop_in_if(c):
    inner = loop(
        ["h"],
        [],
        [node("MatMul", ["h", "w"], ["h_out"], name="inner")],
        inputs=["count", "", "x"],
        outs=["t"],
    )
    model = make(
        [choose([inner], [node("MatMul", ["x", "w"], ["e"], name="other")])],
        {"x": (3, K), "count": info("count", (), INT64), "c": info("c", (), BOOL)},
        ["y"],
        {"w": 0.5 * noise(K, K)},
    )
    x, w = noise(3, K), 0.5 * noise(K, K)
    seen = [x, x @ w, x @ w @ w]
    check(
        model,
        {"x": x, "count": np.array(3), "c": np.array(c)},
        {"inner": seen if c else [], "other": [] if c else x},
    )


def test_deep():
    """Loops in Ifs in Loops, a site in every graph, all of one weight."""
    x, w = noise(2, K), 0.5 * noise(K, K)
    depth = 4
    nodes, made = [node("MatMul", ["x", "w"], ["leaf"], name="at0")], "leaf"
    for k in range(1, depth + 1):
        branch = choose(
            nodes, [node("Identity", ["x"], ["e"])], names=(made, "e"), outputs=(f"b{k}",)
        )
        branch.name = f"if{k}"
        nodes = [
            loop(
                ["h"],
                [],
                [
                    branch,
                    node("MatMul", ["h", "w"], ["m"], name=f"at{k}"),
                    node("Add", ["m", f"b{k}"], ["h_out"]),
                ],
                inputs=["count", "", "x"],
                outs=[f"o{k}"],
                name=f"loop{k}",
            )
        ]
        made = f"o{k}"
    model = make(
        nodes,
        {"x": (2, K), "count": info("count", (), INT64), "c": info("c", (), BOOL)},
        [made],
        {"w": w},
    )
    # Names within bodies are those of every level: make them unique.
    _rename(model.graph, "")

    def level(k):
        """What a graph of this depth gives, and what each site of it sees."""
        if k == 0:
            return x @ w, {"at0": [x]}
        h, seen = x, {f"at{j}": [] for j in range(k + 1)}
        for _ in range(2):
            inner, below = level(k - 1)
            for name, tensors in below.items():
                seen[name] += tensors
            seen[f"at{k}"].append(h)
            h = h @ w + inner
        return h, seen

    _, expected = level(depth)
    check(model, {"x": x, "count": np.array(2), "c": np.array(True)}, expected)


def _rename(graph, suffix, names=None, level=0):
    names = dict(names or {})
    if level:
        for value in graph.input:
            names[value.name] = f"{value.name}@{level}"
        for inner in graph.node:
            for output in inner.output:
                names[output] = f"{output}@{level}"
    for value in [*graph.input, *graph.output]:
        value.name = names.get(value.name, value.name)
    for inner in graph.node:
        inner.input[:] = [names.get(n, n) for n in inner.input]
        inner.output[:] = [names.get(n, n) for n in inner.output]
        for k, attribute in enumerate(inner.attribute):
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, suffix, names, 10 * (level + 1) + k)


def test_weight_shared_by_body_and_main_graph():
    """Four views of one weight in four graphs, each by its own transposition."""
    model = make(
        [
            node("Transpose", ["w"], ["wt"]),
            node("MatMul", ["x", "wt"], ["h0"], name="outer"),
            loop(
                ["h"],
                [],
                [
                    node("Transpose", ["w"], ["wt_in"]),
                    node("MatMul", ["h", "wt_in"], ["h_out"], name="inner"),
                ],
                inputs=["count", "", "h0"],
            ),
        ],
        {"x": (3, K), "count": info("count", (), INT64)},
        ["h_final"],
        {"w": 0.5 * noise(K, K)},
    )
    x, w = noise(3, K), 0.5 * noise(K, K).T
    seen = [x @ w, x @ w @ w]
    check(model, {"x": x, "count": np.array(2)}, {"outer": x, "inner": seen})


def test_views_inside_bodies_of_convolutions():
    """Patches of a tensor whose size changes with each iteration."""
    model = make(
        [
            loop(
                ["h"],
                [],
                [
                    node("Conv", ["h", "k"], ["p"], name="inner", auto_pad="SAME_UPPER"),
                    node("Concat", ["p", "p"], ["h_out"], axis=2),
                ],
                inputs=["count", "", "x"],
            ),
        ],
        {"x": (2, 3, 4), "count": info("count", (), INT64)},
        ["h_final"],
        {"k": noise(3, 3, 3)},
    )
    x = noise(2, 3, 4)
    layer = single(
        "Conv", {"x": (2, 3, "n")}, {"k": noise(3, 3, 3)}, ["x", "k"], auto_pad="SAME_UPPER"
    )
    seen = [x]
    for _ in range(2):
        (p,) = run(layer, {"x": seen[-1]})
        seen.append(np.concatenate([p, p], axis=2))
    check(model, {"x": x, "count": np.array(3)}, {"inner": seen})


def test_tensor_from_outside_read_in_a_body():
    """The view's tensor is made by the main graph, where another view of it lies."""
    model = make(
        [
            node("Relu", ["x"], ["h"]),
            node("MatMul", ["h", "w"], ["m"], name="outer"),
            choose(
                [node("MatMul", ["h", "v"], ["t"], name="inner")], [node("Identity", ["m"], ["e"])]
            ),
        ],
        {"x": (3, K), "c": info("c", (), BOOL)},
        ["y"],
        {"w": noise(K, K), "v": noise(K, K, seed=1)},
    )
    x = noise(3, K)
    h = np.maximum(x, 0)
    for c in (True, False):
        check(model, {"x": x, "c": np.array(c)}, {"outer": h, "inner": h if c else []})


def test_inlined_functions_are_probed():
    from .test_functions import twice

    x = noise(3, 6, seed=1)
    model = twice()
    names = [s.name for s in find_sites(load(model))[0]]
    w, b = noise(6, 6), noise(6)
    check(model, {"x": x}, {names[0]: x, names[1]: np.maximum(x @ w + b, 0)})


def test_attention_and_fused_matmul():
    model = make(
        [
            node("FusedMatMul", ["x", "w"], ["h"], name="fused", domain=MS, transA=1),
            node("Attention", ["h", "q", "b"], ["y"], name="attention", domain=MS, num_heads=1),
        ],
        {"x": (2, K, 4)},
        ["h", "y"],
        {"w": noise(K, 6), "q": noise(6, 18), "b": noise(18)},
    )
    x = noise(2, K, 4)
    h, _ = run(model, {"x": x})
    check(model, {"x": x}, {"fused": x, "attention": h})


def test_external_data_are_not_loaded(tmp_path):
    proto = single("MatMul", {"x": ("n", K)}, {"w": noise(K, 300)}, ["x", "w"])
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = load(tmp_path / "m.onnx")
    sites, _ = find_sites(model)
    views = {s.view: s.d_in for s in sites}
    probed = probe(model, list(views), views, reduce=True)
    weight = next(t for t in probed.proto.graph.initializer if t.name == "w")
    assert weight.data_location == onnx.TensorProto.EXTERNAL and not weight.raw_data


def test_names_that_are_taken():
    """A model may have tensors that bear our names already."""
    first = single("MatMul", {"x": ("n", K)}, {"w": noise(K, 2)}, ["x", "w"])
    model = load(first)
    (site,) = find_sites(model)[0]
    taken = probe(model, [site.view], {site.view: K}, reduce=True).proto
    for value in list(taken.graph.output)[1:]:
        taken.graph.output.remove(value)
    check(taken, {"x": noise(3, K)}, {"n": noise(3, K), **_own(taken)})


def _own(proto):
    """Sites among the probe's own nodes: none of them has a constant weight that counts."""
    return {s.name: None for s in find_sites(load(proto))[0] if s.name != "n"}


def test_constant_inputs_of_bodies_are_shared():
    model = make(
        [
            choose(
                [node("MatMul", ["x", "w"], ["t"], name="inner")], [node("Identity", ["x"], ["e"])]
            )
        ],
        {"x": (3, K), "c": info("c", (), BOOL)},
        ["y"],
        [const("w", noise(K, K))],
    )
    check(model, {"x": noise(3, K), "c": np.array(True)}, {"inner": noise(3, K)})


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 18, 21])
def test_operator_sets(opset):
    """Before the ninth, tensors are fetched; later they may be reduced in the graph."""
    model = make(
        [
            node("MatMul", ["x", "w"], ["h"], name="n"),
            node("Conv", ["h", "k"], ["y"], name="conv", pads=[1, 1]),
        ],
        {"x": (2, 3, K)},
        ["y"],
        {"w": noise(K, 4), "k": noise(2, 3, 3)},
        opset=opset,
    )
    x = noise(2, 3, K)
    loaded = load(model)
    views = {s.view: s.d_in for s in find_sites(loaded)[0]}
    probed = probe(loaded, list(views), views, reduce=True)
    assert all(isinstance(name, str) == (opset < 9) for name in probed.names.values())
    if opset >= 9:
        check(model, {"x": x}, {"n": x, "conv": x @ noise(K, 4)})


@pytest.mark.parametrize("opset", [8, 9, 11, 16, 21])
def test_operator_sets_of_bodies(opset):
    model = make(
        [choose([node("MatMul", ["x", "w"], ["t"], name="inner")], [node("Neg", ["x"], ["e"])])],
        {"x": (3, K), "c": info("c", (), BOOL)},
        ["y"],
        {"w": noise(K, K)},
        opset=opset,
    )
    if opset < 9:
        sites, skips = find_sites(load(model))
        assert not sites and [s.code for s in skips] == ["body"]
    else:
        check(model, {"x": noise(3, K), "c": np.array(True)}, {"inner": noise(3, K)})


def test_bodies_that_cannot_be_measured():
    """A body of an operator that is none of the three."""
    inner = body(
        [node("MatMul", ["u", "w"], ["o"], name="inner")], [info("u", (3, K))], [info("o", (3, K))]
    )
    model = make(
        [
            node("SequenceConstruct", ["x", "x"], ["s"]),
            node("SequenceMap", ["s"], ["t"], name="map", body=inner),
            node("ConcatFromSequence", ["t"], ["y"], axis=0),
        ],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K)},
    )
    sites, skips = find_sites(load(model))
    assert not sites and [(s.name, s.code) for s in skips] == [("inner", "body")]


def test_bodies_that_repeat_names_of_the_graph_around_them():
    """No valid ONNX, but onnxruntime runs some of it: in the copy, names are made to differ."""
    inner = loop(
        ["h"],
        [],
        [node("MatMul", ["h", "w"], ["m"], name="inner"), node("Tanh", ["m"], ["h_out"])],
        inputs=["count", "on", "h"],
        outs=["g"],
        name="in",
    )
    model = make(
        [
            loop(
                ["h"],
                [],
                [
                    inner,
                    node("MatMul", ["g", "v"], ["m"], name="outer"),
                    node("Sigmoid", ["m"], ["h_out"]),
                ],
                inputs=["count", "yes", "x"],
                outs=["y"],
                name="out",
            )
        ],
        {"x": (3, K), "count": info("count", (), INT64), "yes": info("yes", (), BOOL)},
        ["y"],
        {"w": noise(K, K), "v": noise(K, K, seed=3)},
    )
    # The condition last, as it was found in the wild: then onnxruntime takes the model.
    for graph in (model.graph.node[0].attribute[0].g, inner.attribute[0].g):
        graph.node.append(graph.node[0])
        del graph.node[0]
    held = next(n for n in model.graph.node[0].attribute[0].g.node if n.op_type == "Loop")
    held.attribute[0].g.CopyFrom(inner.attribute[0].g)
    x, w, v = noise(3, K), noise(K, K), noise(K, K, seed=3)
    seen = {"inner": [], "outer": []}
    h = x
    for _ in range(2):
        for _ in range(2):
            seen["inner"].append(h)
            h = np.tanh(h @ w)
        seen["outer"].append(h)
        h = 1 / (1 + np.exp(-(h @ v)))
    feeds = {"x": x, "count": np.array(2), "yes": np.array(True)}
    check(model, feeds, seen)


def test_unknown_ranks():
    """What cannot be reduced in the graph is fetched; in a body, where it cannot be, skipped."""
    one = single("Gemm", {"x": None}, {"w": noise(K, 2)}, ["x", "w"], transA=1)
    loaded = load(one)
    views = {s.view: s.d_in for s in find_sites(loaded)[0]}
    assert list(probe(loaded, list(views), views, reduce=True).names.values()) == ["x"]
    gemm = single("Gemm", {"x": None}, {"w": noise(K, 2)}, ["x", "w"])
    check(gemm, {"x": noise(3, K)}, {"n": noise(3, K)})
    model = make(
        [
            choose(
                [node("Gemm", ["x", "w"], ["t"], name="a", transA=1)],
                [node("MatMul", ["x", "w"], ["e"], name="b")],
            )
        ],
        {"x": None, **{"c": info("c", (), BOOL)}},
        ["y"],
        {"w": noise(K, K)},
    )
    sites, skips = find_sites(load(model))
    assert [s.name for s in sites] == ["b"]
    assert [(s.name, s.code) for s in skips] == [("a", "unknown_rank")]


def test_declared_ranks_that_do_not_fit():
    """A shape that lies: nothing to move, so nothing is reduced in the graph."""
    for shape in ((), (K,)):
        model = single("Gemm", {"x": shape}, {"w": noise(K, 2)}, ["x", "w"], transA=1)
        loaded = load(model)
        views = {s.view: s.d_in for s in find_sites(loaded)[0]}
        assert list(probe(loaded, list(views), views, reduce=True).names.values()) == ["x"]

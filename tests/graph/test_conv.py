"""Conv, FusedConv and ConvTranspose in every geometry."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .build import (
    MS,
    assert_full,
    codes,
    differ,
    load,
    make,
    node,
    noise,
    only,
    ops,
    random_pair,
    rewrite,
    run,
    single,
    split,
    tensors,
)

OUT = 6


def conv(axes=2, group=1, channels=4, kernel=None, bias=True, size=9, op="Conv", batch=2, **attrs):
    """channels inputs a group, OUT outputs in all (a ConvTranspose: OUT // group a group)."""
    kernel = kernel or (3,) * axes
    shape = (
        (channels * group, OUT // group, *kernel)
        if op == "ConvTranspose"
        else (OUT, channels, *kernel)
    )
    constants = {"w": noise(*shape)}
    if bias:
        constants["b"] = noise(OUT, seed=2)
    x = (batch, channels * group, *(size + k for k in range(axes)))
    attrs = {"group": group, **attrs} if group != 1 else attrs
    model = single(op, {"x": x}, constants, ["x", "w", "b"][: 3 if bias else 2], **attrs)
    return model, {"x": noise(*x, seed=1)}


def check(model, feeds):
    """Full rank, then any pair and shift against the same node with that weight and bias."""
    written = assert_full(model, feeds, 1)
    site = only(model)
    pair = random_pair(site)
    written, _ = split(model, lambda *_: pair)
    shape = tensors(model)["w"].shape
    weight = pair.product.transpose(0, 2, 1).reshape(shape).astype(np.float32)
    bias = tensors(model).get("b", 0) + pair.bias.reshape(-1)
    original = model.graph.node[0]
    dense = make(
        [node("Conv", ["x", "w", "b"], ["y"], **{a.name: _value(a) for a in original.attribute})],
        {"x": feeds["x"].shape},
        ["y"],
        {"w": weight, "b": bias.astype(np.float32)},
    )
    assert differ(run(dense, feeds), run(written, feeds)) < 2e-5


def _value(attribute):
    import onnx

    return onnx.helper.get_attribute_value(attribute)


GEOMETRIES = [
    {},
    {"strides": [2], "pads": [1]},
    {"dilations": [2], "pads": [2]},
    {"strides": [3], "dilations": [2], "pads": [1]},
    {"auto_pad": "SAME_UPPER", "strides": [2]},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "SAME_LOWER", "strides": [2]},
    {"auto_pad": "VALID", "strides": [2]},
    {"auto_pad": "NOTSET", "pads": [1]},
]


def spread(geometry, axes):
    found = {
        k: v if isinstance(v, str) else v * (axes * 2 if k == "pads" else axes)
        for k, v in geometry.items()
    }
    if "output_shape" in found:
        found["output_shape"] = [v + 2 * k for k, v in enumerate(found["output_shape"])]
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("geometry", range(len(GEOMETRIES)))
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_geometry(axes, geometry, group, bias):
    check(*conv(axes, group, bias=bias, **spread(GEOMETRIES[geometry], axes)))


def test_asymmetric():
    check(*conv(2, kernel=(1, 4), pads=[0, 3, 1, 2], strides=[2, 1], dilations=[1, 2]))
    check(*conv(2, kernel=(5, 1), kernel_shape=[5, 1], pads=[4, 0, 0, 1]))
    check(*conv(2, kernel=(1, 1)))
    check(*conv(2, kernel=(9, 10)))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_geometry(data):
    axes = data.draw(st.integers(1, 3), "axes")
    draw = lambda low, high, count=axes: data.draw(  # noqa: E731
        st.lists(st.integers(low, high), min_size=count, max_size=count)
    )
    kernel = draw(1, 3)
    model, feeds = conv(
        axes,
        data.draw(st.sampled_from([1, 2, 3])),
        data.draw(st.integers(2, 4)),
        tuple(kernel),
        data.draw(st.booleans()),
        size=7,
        batch=1,
        strides=draw(1, 3),
        dilations=draw(1, 3),
        pads=draw(0, 2, 2 * axes),
    )
    check(model, feeds)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": [2], "output_padding": [1]},
        {"dilations": [2], "pads": [1]},
        {"strides": [2], "auto_pad": "SAME_UPPER"},
        {"strides": [3], "auto_pad": "SAME_LOWER"},
        {"strides": [2], "auto_pad": "VALID"},
        {"strides": [2], "output_shape": [10]},
    ],
)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_transpose(axes, attrs, group, bias):
    model, feeds = conv(
        axes, group, 4, bias=bias, op="ConvTranspose", size=5, **spread(attrs, axes)
    )
    assert ops(assert_full(model, feeds, 1)) == {"Conv": 1, "ConvTranspose": 1}
    site = only(model)
    assert not site.centers
    pair = random_pair(site, shift=False)
    written, _ = split(model, lambda *_: pair)
    changed = pair.product.reshape(tensors(model)["w"].shape).astype(np.float32)
    dense = make(
        list(model.graph.node),
        {"x": feeds["x"].shape},
        ["y"],
        {"w": changed, **({"b": tensors(model)["b"]} if bias else {})},
    )
    assert differ(run(dense, feeds), run(written, feeds)) < 2e-5


def test_transpose_refuses_a_shift():
    model, _ = conv(op="ConvTranspose")
    with pytest.raises(Exception, match="shift"):
        split(model, lambda m, s: random_pair(s))


@pytest.mark.parametrize("z", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Clip", "HardSigmoid"])
def test_fused(activation, bias, z):
    params = {"LeakyRelu": [0.1], "Clip": [-1.0, 1.0], "HardSigmoid": [0.2, 0.5]}.get(activation)
    if z and activation != "Relu":
        pytest.skip("onnxruntime has it with Relu alone")
    extra = {"activation_params": params} if params else {}
    order = ["x", "w"] + (["b"] if bias else [""] if z else []) + (["z"] if z else [])
    constants = {"w": noise(OUT, 4, 3, 3)} | ({"b": noise(OUT, seed=2)} if bias else {})
    shape = (2, OUT, 9, 9)
    inputs = {"x": (2, 4, 9, 9)} | ({"z": shape} if z else {})
    model = single(
        "FusedConv",
        inputs,
        constants,
        order,
        domain=MS,
        activation=activation,
        pads=[1] * 4,
        **extra,
    )
    feeds = {"x": noise(2, 4, 9, 9, seed=1)} | ({"z": noise(*shape, seed=4)} if z else {})
    assert ops(assert_full(model, feeds, 1)) == {"Conv": 1, "FusedConv": 1}
    pair = random_pair(only(model))
    written, _ = split(model, lambda *_: pair)
    weight = pair.product.transpose(0, 2, 1).reshape(OUT, 4, 3, 3).astype(np.float32)
    value = (constants.get("b", 0) + pair.bias.reshape(-1)).astype(np.float32)
    dense = make(
        [node("Conv", ["x", "w", "b"], ["y"], pads=[1] * 4)],
        {"x": (2, 4, 9, 9)},
        ["y"],
        {"w": weight, "b": value},
    )
    y = run(dense, {"x": feeds["x"]})[0] + feeds.get("z", 0)
    y = {
        "Relu": lambda: np.maximum(y, 0),
        "LeakyRelu": lambda: np.where(y > 0, y, 0.1 * y),
        "Clip": lambda: np.clip(y, -1, 1),
        "HardSigmoid": lambda: np.clip(0.2 * y + 0.5, 0, 1),
    }[activation]()
    assert differ([y.astype(np.float32)], run(written, feeds)) < 2e-5


def test_dynamic_bias_takes_the_shift():
    model = single(
        "Conv", {"x": (1, 4, 5, 5), "b": (OUT,)}, {"w": noise(OUT, 4, 3, 3)}, ["x", "w", "b"]
    )
    feeds = {"x": noise(1, 4, 5, 5, seed=1), "b": noise(OUT, seed=2)}
    assert_full(model, feeds, 1)
    pair = random_pair(only(model))
    zero = type(pair)(pair.parts)
    (plain,) = run(split(model, lambda *_: zero)[0], feeds)
    (moved,) = run(split(model, lambda *_: pair)[0], feeds)
    expected = plain + pair.bias.reshape(-1, 1, 1)
    assert differ([expected.astype(np.float32)], [moved]) < 1e-5


def test_unknown_shapes():
    for shape in (None, ["n", 4, "h", "w"], ["n", "c", "h", "w"]):
        model = single(
            "Conv",
            {"x": shape},
            {"w": noise(OUT, 4, 3, 3)},
            ["x", "w"],
            auto_pad="SAME_UPPER",
            strides=[2, 2],
        )
        assert_full(model, {"x": noise(2, 4, 7, 8)}, 1)


def test_reasons():
    def one(shape=(OUT, 4, 3, 3), op="Conv", **attrs):
        return codes(single(op, {"x": None}, {"w": noise(*shape)}, ["x", "w"], **attrs))["n"]

    assert one() == "site"
    assert one((OUT, 1, 3, 3), group=OUT) == "depthwise"
    assert one((OUT, 1, 3, 3), group=OUT, op="ConvTranspose") == "depthwise"
    assert one((OUT, 1, 3, 3), op="ConvTranspose") == "site"
    assert one((OUT, 4)) == "layout"
    assert one(group=4) == "layout"
    assert one(group=0) == "layout"
    assert one(group=-2) == "layout"
    assert one(kernel_shape=[3, 5]) == "layout"
    assert one(kernel_shape=[3]) == "layout"
    assert one(strides=[1]) == "layout"
    assert one(strides=[0, 1]) == "layout"
    assert one(dilations=[1, 0]) == "layout"
    assert one(pads=[1, 1]) == "layout"
    assert one(pads=[-1, 0, 0, 0]) == "layout"
    assert one(auto_pad="SAME") == "layout"
    for wrong in (
        {"group": "2"},
        {"group": 2.0},
        {"strides": 2},
        {"pads": "abcd"},
        {"auto_pad": 3},
        {"dilations": [1.0, 1.0]},
        {"kernel_shape": [3.0, 3.0]},
    ):
        assert one(**wrong) in ("damaged", "layout"), wrong
        assert one(**wrong, op="ConvTranspose") in ("damaged", "layout"), wrong
    none = single("Conv", {"x": (1, 4, 5, 5), "w": (OUT, 4, 3, 3)}, {}, ["x", "w"])
    assert codes(none) == {"n": "no_constant_weight"}


def test_rows():
    """Rows a sample are output positions, where shapes are known."""

    def one(shape, **attrs):
        return only(
            single("Conv", {"x": shape}, {"w": noise(OUT, 4, 3, 3)}, ["x", "w"], **attrs)
        ).rows

    assert one((1, 4, 9, 9)) == 49
    assert one(("n", 4, 9, 9), auto_pad="SAME_UPPER", strides=[2, 2]) == 25
    assert one(("n", 4, "h", 9)) is None
    assert one(None) is None


def test_rank_one_weight_of_a_group():
    model, feeds = conv(1, 2, 2, kernel=(1,), size=3)
    written, _ = split(model, lambda m, s: random_pair(s, rank=1))
    assert math.prod(tensors(written)["n/rank_in.weight"].shape) == 4
    run(written, feeds)


def test_two_edits_of_one_node_are_refused():
    model = load(conv()[0])
    site = only(model.proto)
    pair = random_pair(site)
    with pytest.raises(Exception, match="two edits"):
        rewrite(model, [(site, pair), (site, pair)])

"""Operators on the way from a constant to a node: the same numbers as onnxruntime's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxrank.graph.constants import NotConstant, WeightRef, evaluate, resolve
from onnxrank.graph.model import load
from onnxrank.graph.scopes import MAIN

from .build import const, make, node, noise, run_plain


def chained(nodes, constants, opset=17, read="w", ir=10):
    """The tensor `read` by our interpreter and by onnxruntime."""
    model = make(nodes, {"x": (1,)}, [read], constants, opset=opset, ir=ir)
    loaded = load(model)
    ref = resolve(loaded, MAIN, read)
    if isinstance(ref, NotConstant):
        return ref, None
    value = evaluate(loaded, ref)
    assert value.shape == ref.shape
    assert helper.np_dtype_to_tensor_dtype(value.dtype) == ref.dtype
    return value, run_plain(model, {"x": noise(1)})[0]


def same(nodes, constants, **more):
    ours, theirs = chained(nodes, constants, **more)
    assert not isinstance(ours, NotConstant), ours
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours.astype(np.float64), theirs.astype(np.float64))


V = noise(2, 3, 4)
INTS = lambda *v: np.array(v, np.int64)  # noqa: E731


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_moves(opset):
    old = opset < 13
    squeezed = noise(1, 3, 1, 4)

    def axes(*values):
        return ({"axes": list(values)}, {}) if old else ({}, {"a": INTS(*values)})

    def one(op, v, attrs=None, extra=None):
        extra = extra or {}
        same([node(op, ["v", *extra], ["w"], **(attrs or {}))], {"v": v, **extra}, opset=opset)

    one("Identity", V)
    one("Transpose", V)
    one("Transpose", V, {"perm": [1, 2, 0]})
    for shape in ((24,), (4, -1), (0, -1), (2, 0, 2, 2), (-1, 1, 0)):
        one("Reshape", V, extra={"s": INTS(*shape)})
    one("Flatten", V)
    one("Flatten", V, {"axis": 0})
    one("Flatten", V, {"axis": 3})
    if opset >= 11:
        one("Flatten", V, {"axis": -1})
    for values in ((0,), (2,), (0, 3), (1, 2)):
        one("Unsqueeze", V, *axes(*values))
    if opset >= 11:
        one("Unsqueeze", V, *axes(-1))
        one("Squeeze", squeezed, *axes(-2))
    one("Squeeze", squeezed)
    one("Squeeze", squeezed, *axes(0))
    one("Squeeze", squeezed, *axes(2, 0))
    one("Cast", V, {"to": TensorProto.DOUBLE})
    one("Cast", V, {"to": TensorProto.FLOAT16})
    one("Cast", 10 * V, {"to": TensorProto.INT64})
    one("Cast", V, {"to": TensorProto.BOOL})


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_splits(opset):
    for which in (0, 1):
        names = ["p", "q"]
        names[which] = "w"
        for axis, sizes in ((0, (1, 1)), (2, (1, 3)), (1, (0, 3))):
            as_input = opset >= 13
            order = ["v", "s"] if as_input else ["v"]
            attrs = {"axis": axis} | ({} if as_input else {"split": list(sizes)})
            constants = {"v": V} | ({"s": INTS(*sizes)} if as_input else {})
            same([node("Split", order, names, **attrs)], constants, opset=opset)
        attrs = {"num_outputs": 2} if opset >= 18 else {}
        same([node("Split", ["v"], names, axis=-1, **attrs)], {"v": V}, opset=opset)
    if opset >= 18:
        for which in range(3):
            names = ["a", "b", "c"]
            names[which] = "w"
            made = [node("Split", ["v"], names, axis=0, num_outputs=3)]
            same(made, {"v": noise(7, 2)}, opset=opset)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_slice(data):
    axes = data.draw(st.lists(st.sampled_from([0, 1, -1]), unique_by=lambda a: a % 3, min_size=1))
    far = st.sampled_from([-(2**63), 2**63 - 1, *range(-6, 7)])
    starts = [data.draw(far) for _ in axes]
    steps = [data.draw(st.sampled_from([-3, -1, 1, 2])) for _ in axes]
    # onnxruntime takes the largest end to mean all, also backwards.
    ends = [data.draw(far.filter(lambda e, s=s: s > 0 or e < 9)) for s in steps]
    constants = {"v": V, "s": INTS(*starts), "e": INTS(*ends), "a": INTS(*axes), "t": INTS(*steps)}
    same([node("Slice", ["v", "s", "e", "a", "t"], ["w"])], constants)


def test_slice_forms():
    same([node("Slice", ["v"], ["w"], starts=[1, 0], ends=[3, -1], axes=[1, 2])], {"v": V}, opset=9)
    same([node("Slice", ["v"], ["w"], starts=[1, 0], ends=[2, 1])], {"v": V}, opset=9)
    same([node("Slice", ["v", "s", "e"], ["w"])], {"v": V, "s": INTS(1, 1), "e": INTS(2, 9)})
    same(
        [node("Slice", ["v", "s", "e", "", "t"], ["w"])],
        {"v": V, "s": INTS(1), "e": INTS(-9), "t": INTS(-1)},
    )


@pytest.mark.parametrize("opset", [10, 13, 19, 21])
@pytest.mark.parametrize("kind", ["uint8", "int8", "int32"])
def test_dequantize(opset, kind):
    q = (
        (noise(4, 6) * 40).astype(kind)
        if kind != "uint8"
        else (noise(4, 6) * 40 + 128).astype(kind)
    )
    zero = np.array(3, kind)
    s = np.float32(0.07)
    if kind != "int32":
        same(
            [node("DequantizeLinear", ["q", "s", "z"], ["w"])],
            {"q": q, "s": s, "z": zero},
            opset=opset,
        )
    same([node("DequantizeLinear", ["q", "s"], ["w"])], {"q": q, "s": s}, opset=opset)
    if opset >= 13:
        for axis, n in ((0, 4), (1, 6), (-1, 6), (-2, 4)):
            scales = (0.01 + np.arange(n)).astype(np.float32)
            zeros = np.arange(n).astype(kind) if kind != "int32" else np.zeros(n, kind)
            same(
                [node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis)],
                {"q": q, "s": scales, "z": zeros},
                opset=opset,
            )


@pytest.mark.parametrize("axis", [0, 1])
def test_dequantize_blocks(axis):
    q = (noise(6, 7) * 40).astype(np.int8)
    shape = [6, 7]
    shape[axis] = -(-shape[axis] // 4)
    scales, zeros = np.abs(noise(*shape)), (noise(*shape) * 5).astype(np.int8)
    same(
        [node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis, block_size=4)],
        {"q": q, "s": scales, "z": zeros},
        opset=21,
    )


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
def test_dequantize_four_bits(kind):
    low = -8 if kind == TensorProto.INT4 else 0
    q = helper.make_tensor("q", kind, (3, 5), [low + k for k in range(15)])
    z = helper.make_tensor("z", kind, (3,), [1, 2, 3])
    s = const("s", (0.1 + np.arange(3)).astype(np.float32))
    same([node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0)], [q, s, z], opset=21)


def test_dequantize_float8():
    q = helper.make_tensor("q", TensorProto.FLOAT8E4M3FN, (2, 3), [0.5, -1, 2, 3.5, 100, -448])
    s = const("s", np.float32(0.3))
    same([node("DequantizeLinear", ["q", "s"], ["w"])], [q, s], opset=19)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("opset", [10, 13, 21])
def test_quantize_and_back(opset, kind):
    v = np.array([[-9, -0.5, 0.5, 1.5], [2.5, 200, -200, 0.26]], np.float32)
    nodes = [
        node("QuantizeLinear", ["v", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["w"]),
    ]
    constants = {"v": v, "s": np.float32(1), "z": np.array(3, kind)}
    same(nodes, constants, opset=opset)
    same(nodes, constants, opset=opset, read="q")
    same([node("QuantizeLinear", ["v", "s"], ["w"])], constants, opset=opset)


def test_cast_like_and_bfloat16():
    import ml_dtypes

    half = np.zeros(1, np.float16)
    same([node("CastLike", ["v", "h"], ["w"])], {"v": V, "h": half})
    b = V.astype(ml_dtypes.bfloat16)
    same([node("Cast", ["b"], ["w"], to=TensorProto.FLOAT)], {"b": b})


def test_shape_inputs_may_be_chains():
    nodes = [
        node("Constant", [], ["s0"], value_ints=[4, 6]),
        node("Identity", ["s0"], ["s1"]),
        node("Cast", ["s1"], ["s2"], to=TensorProto.INT64),
        node("Reshape", ["v", "s2"], ["w"]),
    ]
    same(nodes, {"v": V})


@pytest.mark.parametrize(
    "nodes,constants",
    [
        ([node("Reshape", ["v", "s"], ["w"])], {"s": INTS(5, 5)}),
        ([node("Reshape", ["v", "s"], ["w"])], {"s": INTS(-1, -1)}),
        ([node("Reshape", ["v", "s"], ["w"])], {"s": INTS(2**62, 2**62)}),
        ([node("Reshape", ["v", "s"], ["w"])], {"s": INTS(0, 0, 0, 0)}),
        ([node("Reshape", ["v"], ["w"])], {}),
        ([node("Transpose", ["v"], ["w"], perm=[0, 0, 1])], {}),
        ([node("Transpose", ["v"], ["w"], perm=[0, 1])], {}),
        ([node("Transpose", ["v"], ["w"], perm="xyz")], {}),
        ([node("Unsqueeze", ["v", "s"], ["w"])], {"s": INTS(0, 0)}),
        ([node("Unsqueeze", ["v", "s"], ["w"])], {"s": INTS(9)}),
        ([node("Squeeze", ["v", "s"], ["w"])], {"s": INTS(0)}),
        ([node("Flatten", ["v"], ["w"], axis=9)], {}),
        ([node("Split", ["v", "s"], ["w", "u"], axis=0)], {"s": INTS(1, 5)}),
        ([node("Split", ["v"], ["w", "u"], axis=7)], {}),
        ([node("Slice", ["v", "s", "s", "s", "t"], ["w"])], {"s": INTS(0), "t": INTS(0)}),
        ([node("Slice", ["v", "s"], ["w"])], {"s": INTS(0)}),
        ([node("Cast", ["v"], ["w"], to=TensorProto.STRING)], {}),
        ([node("Cast", ["v"], ["w"], to=TensorProto.FLOAT8E4M3FN)], {}),
        ([node("Cast", ["v"], ["w"], to=99)], {}),
        ([node("Cast", ["v"], ["w"])], {}),
        ([node("DequantizeLinear", ["v", "s"], ["w"])], {"s": noise(5)}),
        ([node("DequantizeLinear", ["v"], ["w"])], {}),
        ([node("DequantizeLinear", ["v", "s"], ["w"], block_size=2)], {"s": noise(2, 1, 4)}),
        ([node("QuantizeLinear", ["v", "s", "z"], ["w"])], {"s": noise(1), "z": np.int64(0)}),
    ],
)
def test_what_cannot_be_followed_is_a_reason(nodes, constants):
    model = make(nodes, {"x": (1,)}, ["w"], {"v": V, **constants}, opset=21, ir=10)
    answer = resolve(load(model), MAIN, "w")
    assert isinstance(answer, NotConstant) and answer.code == "constant_kind", answer


def test_long_and_branching_ways_end():
    """Ten thousand Identities, and a way that doubles with each operator."""
    nodes = [node("Identity", [f"v{k}"], [f"v{k + 1}"]) for k in range(10_000)]
    model = load(make(nodes, {"x": (1,)}, ["v10000"], {"v0": V}))
    assert isinstance(resolve(model, MAIN, "v64"), WeightRef)
    answer = resolve(model, MAIN, "v10000")
    assert isinstance(answer, NotConstant) and answer.code == "constant_kind"
    nodes = [node("CastLike", [f"v{k}", f"v{k}"], [f"v{k + 1}"]) for k in range(60)]
    model = load(make(nodes, {"x": (1,)}, ["v60"], {"v0": V}))
    ref = resolve(model, MAIN, "v60")
    assert np.array_equal(evaluate(model, ref), V)
    nodes = [node("Reshape", [f"v{k}", f"v{k}"], [f"v{k + 1}"]) for k in range(60)]
    model = load(make(nodes, {"x": (1,)}, ["v60"], {"v0": INTS(1)}))
    assert np.array_equal(evaluate(model, resolve(model, MAIN, "v60")), INTS(1))
    nodes = [node("Reshape", ["v", f"s{k}"], [f"s{k + 1}"]) for k in range(5000)]
    model = load(make(nodes, {"x": (1,)}, ["s5000"], {"v": INTS(3), "s0": INTS(1)}))
    assert isinstance(resolve(model, MAIN, "s5000"), NotConstant)

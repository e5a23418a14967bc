"""Gemm: every option, every form of C, and every opset."""

import itertools

import numpy as np
import pytest

from .build import (
    MS,
    assert_full,
    codes,
    differ,
    info,
    make,
    node,
    noise,
    only,
    ops,
    random_pair,
    reference,
    run,
    single,
    split,
    tensors,
)

M, K, N = 5, 8, 6
SHAPES = {
    "absent": None,
    "scalar": (),
    "one": (1,),
    "N": (N,),
    "1N": (1, N),
    "M1": (M, 1),
    "11": (1, 1),
    "MN": (M, N),
}


def gemm(
    trans_a=0, trans_b=0, alpha=1.0, beta=1.0, c="N", dynamic=False, opset=13, left=False, **more
):
    a, b = (K, M) if trans_a else (M, K), (N, K) if trans_b else (K, N)
    inputs = {"x": b if left else a}
    constants = {"w": noise(*(a if left else b))}
    order = ["w", "x"] if left else ["x", "w"]
    feeds = {"x": noise(*inputs["x"], seed=1)}
    if SHAPES[c] is not None:
        order.append("c")
        value = noise(*SHAPES[c], seed=2).reshape(SHAPES[c])
        if dynamic:
            inputs["c"], feeds["c"] = SHAPES[c], value
        else:
            constants["c"] = value
    attrs = dict(transA=trans_a, transB=trans_b, alpha=alpha, beta=beta)
    return single("Gemm", inputs, constants, order, opset=opset, **attrs, **more), feeds


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("c", SHAPES)
@pytest.mark.parametrize("trans_a,trans_b", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_full_rank(trans_a, trans_b, c, left):
    for dynamic, (alpha, beta) in itertools.product(
        [False, True], [(1.0, 1.0), (0.5, 2.0), (3.0, 0.0)]
    ):
        model, feeds = gemm(trans_a, trans_b, alpha, beta, c, dynamic, left=left)
        written = assert_full(model, feeds, 1)
        assert ops(written) == {"Gemm": 2}
        assert "w" not in tensors(written)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("c", SHAPES)
@pytest.mark.parametrize("trans_a,trans_b", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_shift(trans_a, trans_b, c, left):
    """alpha (x W' + shift) + beta C, with any pair and shift."""
    for dynamic, (alpha, beta) in itertools.product(
        [False, True], [(1.0, 1.0), (0.5, 2.0), (3.0, 0.0)]
    ):
        model, feeds = gemm(trans_a, trans_b, alpha, beta, c, dynamic, left=left)
        pair = random_pair(only(model))
        written, _ = split(model, lambda *_, pair=pair: pair)
        x = feeds["x"].astype(np.float64)
        flipped = trans_b if left else trans_a
        x = x.T if flipped else x
        product = (x.T if left else x) @ pair.product[0] + pair.bias[0]
        product = product.T if left else product
        value = feeds.get("c", tensors(model).get("c", np.float32(0)))
        expected = alpha * product + beta * value
        assert differ([expected.astype(np.float32)], run(written, feeds)) < 1e-5


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
@pytest.mark.parametrize("c", ["absent", "N", "scalar"])
def test_opsets(opset, c):
    if c == "absent" and opset < 11:
        pytest.skip("C was required")
    model, feeds = gemm(trans_b=1, c=c, opset=opset)
    assert_full(model, feeds, 1)
    written, _ = split(model, lambda m, s: random_pair(s))
    run(written, feeds)


@pytest.mark.parametrize("opset,broadcast", [(6, 1), (6, 0), (1, 1)])
def test_opsets_before_7(opset, broadcast):
    """onnxruntime does not run them; onnx's reference evaluator runs 6."""
    c = "N" if broadcast else "MN"
    model, feeds = gemm(c=c, opset=opset, alpha=0.5, broadcast=broadcast, ir=3)
    runner = reference if opset == 6 else (lambda proto, feeds: [])
    written = assert_full(model, feeds, 1, runner=runner)
    first, last = written.graph.node
    assert len(first.input) == 3
    assert {a.name: a.i for a in first.attribute}["broadcast"] == 1
    assert {a.name: a.i for a in last.attribute}["broadcast"] == broadcast


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_types(dtype):
    model = single(
        "Gemm",
        {"x": info("x", (M, K), {2: 10, 4: 1, 8: 11}[dtype().itemsize])},
        {"w": noise(K, N, dtype=dtype), "c": noise(N, dtype=dtype)},
        ["x", "w", "c"],
    )
    tolerance = {2: 1e-2, 4: 1e-5, 8: 1e-12}[dtype().itemsize]
    written = assert_full(model, {"x": noise(M, K, seed=1, dtype=dtype)}, 1, tolerance=tolerance)
    assert all(t.dtype == dtype for t in tensors(written).values())


@pytest.mark.parametrize("op", ["Gemm", "FusedGemm"])
def test_fused(op):
    attrs = (
        {"domain": MS, "activation": "LeakyRelu", "activation_alpha": 0.1} if op != "Gemm" else {}
    )
    model = single(
        op,
        {"x": (M, K)},
        {"w": noise(N, K), "c": noise(N)},
        ["x", "w", "c"],
        transB=1,
        alpha=0.5,
        beta=2.0,
        **attrs,
    )
    feeds = {"x": noise(M, K, seed=1)}
    written = assert_full(model, feeds, 1)
    assert ops(written)["Gemm"] == (2 if op == "Gemm" else 1)
    pair = random_pair(only(model))
    written, _ = split(model, lambda *_: pair)
    y = 0.5 * (feeds["x"] @ pair.product[0] + pair.bias[0]) + 2 * tensors(model)["c"]
    y = y if op == "Gemm" else np.where(y > 0, y, 0.1 * y)
    assert differ([y.astype(np.float32)], run(written, feeds)) < 1e-5


def test_reasons():
    def one(constants, order, **attrs):
        return codes(single("Gemm", {"x": (M, K)}, constants, order, **attrs))["n"]

    assert one({"w": noise(K, N)}, ["x", "w"]) == "site"
    assert one({}, ["x", "x"], transB=1) == "no_constant_weight"
    assert one({"v": noise(M, K), "w": noise(K, N)}, ["v", "w"]) == "constant_result"
    assert one({"w": noise(2, K, N)}, ["x", "w"]) == "rank"
    assert one({"w": np.ones((K, N), np.int32)}, ["x", "w"]) == "type"
    assert one({"w": np.ones((K, 0), np.float32)}, ["x", "w"]) == "empty"


def test_c_by_two_gemms_stays():
    model = make(
        [
            node("Gemm", ["x", "w", "c"], ["h"], name="a"),
            node("Gemm", ["h", "v", "c"], ["y"], name="b"),
        ],
        {"x": (M, K)},
        ["y"],
        {"w": noise(K, K), "v": noise(K, K), "c": noise(K)},
    )
    written = assert_full(model, {"x": noise(M, K, seed=1)}, 2)
    assert "c" in tensors(written)

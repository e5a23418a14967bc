"""MatMul and FusedMatMul: constants on either side, any leading axes, biases that follow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    random_pair,
    run,
    single,
    split,
    tensors,
)

K, N = 7, 5
LEADS = [(), (1,), (1, 1)]
RIGHT = [(K,), (3, K), (2, 3, K), (2, 1, 3, K)]
LEFT = [(K,), (K, 4), (2, K, 4), (2, 3, K, 4)]


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("shape", RIGHT)
def test_right(shape, lead):
    weight = noise(*lead, K, N)
    model = single("MatMul", {"x": shape}, {"w": weight}, ["x", "w"])
    feeds = {"x": noise(*shape, seed=1)}
    assert_full(model, feeds, 1)
    pair = random_pair(only(model))
    written, _ = split(model, lambda *_: pair)
    expected = np.matmul(feeds["x"], pair.product[0].reshape(weight.shape)) + pair.bias[0]
    assert differ([expected.astype(np.float32)], run(written, feeds)) < 1e-5


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("shape", LEFT)
def test_left(shape, lead):
    weight = noise(*lead, N, K)
    model = single("MatMul", {"x": shape}, {"w": weight}, ["w", "x"])
    feeds = {"x": noise(*shape, seed=1)}
    assert_full(model, feeds, 1)
    pair = random_pair(only(model))
    written, _ = split(model, lambda *_: pair)
    shift = pair.bias[0] if len(shape) == 1 else pair.bias[0][:, None]
    expected = np.matmul(pair.product[0].T.reshape(weight.shape), feeds["x"]) + shift
    assert differ([expected.astype(np.float32)], run(written, feeds)) < 1e-5


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_fused(trans_a, trans_b, alpha, left, lead):
    a = (*(() if left else lead), *((K, 4) if trans_a else (4, K)))
    b = (*(lead if left else ()), *((N, K) if trans_b else (K, N)))
    model = single(
        "FusedMatMul",
        {"x": b if left else a},
        {"w": noise(*(a if left else b))},
        ["w", "x"] if left else ["x", "w"],
        domain=MS,
        alpha=alpha,
        transA=trans_a,
        transB=trans_b,
    )
    feeds = {"x": noise(*(b if left else a), seed=1)}
    assert_full(model, feeds, 1)
    pair = random_pair(only(model))
    written, _ = split(model, lambda *_: pair)
    x = np.swapaxes(feeds["x"], -1, -2) if (trans_b if left else trans_a) else feeds["x"]
    if left:
        expected = alpha * (np.matmul(pair.product[0].T, x) + pair.bias[0][:, None])
    else:
        expected = alpha * (np.matmul(x, pair.product[0]) + pair.bias[0])
    assert differ([expected.astype(np.float32)], run(written, feeds)) < 1e-5


BIASES = {
    "N": (N,),
    "1N": (1, N),
    "111N": (1, 1, 1, N),
    "scalar": (),
    "one": (1,),
    "3N": (3, N),
    "31": (3, 1),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", BIASES)
def test_following_bias(shape, first):
    """A bias takes the shift up where it has an entry an output; else a new Add does."""
    order = ["b", "h"] if first else ["h", "b"]
    model = make(
        [node("MatMul", ["x", "w"], ["h"], name="n"), node("Add", order, ["y"], name="add")],
        {"x": (2, 3, K)},
        ["y"],
        {"w": noise(K, N), "b": noise(*BIASES[shape], seed=3)},
    )
    feeds = {"x": noise(2, 3, K, seed=1)}
    assert_full(model, feeds, 1)
    pair = random_pair(only(model))
    from .lossless import assert_lossless

    written, sites = split(model, lambda *_: pair)
    assert_lossless(model, written, sites)
    expected = feeds["x"] @ pair.product[0] + pair.bias[0] + tensors(model)["b"]
    assert differ([expected.astype(np.float32)], run(written, feeds)) < 1e-5
    moved = shape in ("N", "1N", "111N")
    assert len(written.graph.node) == (3 if moved else 4)
    assert ("b" in tensors(written)) != moved


def test_bias_of_others_is_left_alone():
    """Each of these Adds must not take the shift: read twice, an output, no constant, axes."""
    pair = None
    feeds = {"x": noise(3, K, seed=1)}
    for nodes, outputs in (
        ([node("Add", ["h", "b"], ["y"]), node("Relu", ["h"], ["z"])], ["y", "z"]),
        ([node("Add", ["h", "b"], ["y"])], ["y", "h"]),
        ([node("Add", ["h", "h"], ["y"])], ["y"]),
        ([node("Sub", ["b", "h"], ["y"])], ["y"]),
    ):
        model = make(
            [node("MatMul", ["x", "w"], ["h"], name="n"), *nodes],
            {"x": (3, K)},
            outputs,
            {"w": noise(K, N), "b": noise(N, seed=3)},
        )
        pair = random_pair(only(model))
        written, _ = split(model, lambda *_, pair=pair: pair)
        dense = make(
            [node("MatMul", ["x", "w"], ["h0"]), node("Add", ["h0", "s"], ["h"]), *nodes],
            {"x": (3, K)},
            outputs,
            {
                "w": pair.product[0].astype(np.float32),
                "b": noise(N, seed=3),
                "s": pair.bias[0].astype(np.float32),
            },
        )
        assert differ(run(dense, feeds), run(written, feeds)) < 1e-5


def test_bias_shared_by_two_adds():
    model = make(
        [
            node("MatMul", ["x", "w"], ["h"], name="a"),
            node("Add", ["h", "b"], ["p"]),
            node("MatMul", ["p", "v"], ["q"], name="b"),
            node("Add", ["b", "q"], ["y"]),
        ],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, N), "v": noise(N, N), "b": noise(N, seed=3)},
    )
    written = assert_full(model, {"x": noise(3, K)}, 2)
    assert "b" in tensors(written)
    written, _ = split(model, lambda m, s: random_pair(s, seed=len(s.name)))
    assert "b" not in tensors(written)
    run(written, {"x": noise(3, K)})


def test_reasons():
    def one(weight, order=("x", "w"), shape=(3, 3), op="MatMul", **attrs):
        return codes(single(op, {"x": shape}, {"w": weight}, order, **attrs))["n"]

    w = noise(3, 3)
    assert one(w) == "site"
    assert one(w, ("w", "w")) == "constant_result"
    assert one(w, ("x", "x")) == "no_constant_weight"
    assert one(noise(3)) == "vector"
    assert one(noise(2, 3, 3)) == "batched_weight"
    assert one(noise(2, 3, 3), ("w", "x")) == "batched_weight"
    assert one(np.ones((3, 3), np.int64)) == "type"
    assert one(np.ones((3, 0), np.float32)) == "empty"
    assert one(w, ("w", "x"), None) == "unknown_rank"
    assert one(w, ("x", "w"), None) == "site"
    assert one(w, domain=MS, op="FusedMatMul", transBatchA=1) == "layout"
    assert one(np.ones((), np.float32)) == "vector"


def test_bfloat16_in_its_own_type():
    import ml_dtypes

    w = noise(K, N).astype(ml_dtypes.bfloat16)
    model = single("MatMul", {"x": info("x", (3, K), 16)}, {"w": w}, ["x", "w"])
    written, (site,) = split(model)
    assert site.weight.dtype == 16
    assert {t.data_type for t in written.graph.initializer} == {16}
    product = tensors(written)
    a, b = (v.astype(np.float32) for v in product.values())
    assert np.abs(a @ b - w.astype(np.float32)).max() < 0.05


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_any_shape(lead, k, n, left, dynamic):
    """Symbolic dimensions change nothing."""
    shape = (*lead, k, 3) if left else (*lead, 3, k)
    declared = [f"d{i}" for i in range(len(shape))] if dynamic else shape
    weight = noise(*((n, k) if left else (k, n)))
    model = single("MatMul", {"x": declared}, {"w": weight}, ["w", "x"] if left else ["x", "w"])
    assert_full(model, {"x": noise(*shape, seed=1)}, 1)

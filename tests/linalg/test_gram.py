"""Moments against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.linalg.gram import BLOCK, Accumulator, CrossMoment, SecondMoment

QUICK = settings(deadline=None, max_examples=40)


def reference(rows):
    x = rows.astype(np.float64)
    return x.sum(axis=1), np.einsum("gni,gnj->gij", x, x)


@QUICK
@given(
    st.lists(st.sampled_from([0, 1, 7, 300, BLOCK - 1, BLOCK, BLOCK + 1]), min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_any_batches_give_the_moments_of_all_rows(sizes, groups, d, turned, seed):
    rng = np.random.default_rng(seed)
    everything = rng.standard_normal((groups, sum(sizes), d)).astype(np.float32) + 0.5
    if turned:
        everything = np.ascontiguousarray(everything.swapaxes(1, 2)).swapaxes(1, 2)
    accumulator = Accumulator(groups, d)
    for part in np.split(everything, np.cumsum(sizes)[:-1], axis=1):
        accumulator.add(part)
    moment = accumulator.result()
    total, gram = reference(everything)
    assert moment.n == sum(sizes)
    scale = max(gram.max(), 1)
    np.testing.assert_allclose(moment.sum, total, atol=1e-5 * scale)
    np.testing.assert_allclose(moment.gram, gram, atol=2e-6 * scale)
    np.testing.assert_array_equal(moment.gram, moment.gram.swapaxes(1, 2))


@QUICK
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_moments_of_disjoint_rows_add(n, m, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n + m, 3)), rng.standard_normal((2, n + m, 4))
    whole = SecondMoment.of(x)
    added = SecondMoment.of(x[:, :n]) + SecondMoment.of(x[:, n:]) + SecondMoment.zeros(2, 3)
    assert added.n == whole.n
    np.testing.assert_allclose(added.gram, whole.gram, atol=1e-12)
    np.testing.assert_allclose(added.mean, x.mean(axis=1), atol=1e-12)
    centred = x - x.mean(axis=1, keepdims=True)
    expected = centred.swapaxes(1, 2) @ centred / (n + m)
    np.testing.assert_allclose(added.covariance, expected, atol=1e-12)
    cross = CrossMoment.of(x[:, :n], y[:, :n]) + CrossMoment.of(x[:, n:], y[:, n:])
    expected = centred.swapaxes(1, 2) @ (y - y.mean(axis=1, keepdims=True)) / (n + m)
    np.testing.assert_allclose(cross.covariance, expected, atol=1e-12)


def test_results_may_be_asked_for_in_between():
    accumulator = Accumulator(1, 2)
    accumulator.add(np.ones((1, 3, 2), np.float32))
    first = accumulator.result()
    accumulator.add(np.ones((1, 3, 2), np.float32))
    assert (first.n, first.gram[0, 0, 0]) == (3, 3)
    assert (accumulator.result().n, accumulator.result().gram[0, 0, 0]) == (6, 6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [3, BLOCK + 5])
def test_non_finite_rows_are_refused_whole(bad, n):
    accumulator = Accumulator(1, 2)
    rows = np.ones((1, n, 2), np.float32)
    rows[0, 1, 1] = bad
    with pytest.raises(ValueError, match="non-finite"):
        accumulator.add(rows)
    assert accumulator.result().n == 0
    assert not accumulator.result().sum.any()


@pytest.mark.parametrize("scale", [1e-30, 1e25, 3e38])
def test_scales_float32_squares_cannot_hold(scale):
    rng = np.random.default_rng(0)
    rows = (rng.uniform(-1, 1, (1, 50, 3)) * scale).astype(np.float32)
    total, gram = reference(rows)
    moment = SecondMoment.of(rows)
    np.testing.assert_allclose(moment.gram / scale**2, gram / scale**2, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moment.sum / scale, total / scale, rtol=1e-5, atol=1e-5)


def test_float64_rows_keep_float64():
    rows = np.random.default_rng(0).standard_normal((1, 100, 3))
    np.testing.assert_allclose(SecondMoment.of(rows).gram, reference(rows)[1], rtol=1e-13)


def test_rows_per_dimension_and_empty_moments():
    assert SecondMoment.of(np.ones((2, 30, 3))).rows_per_dimension == 10
    empty = SecondMoment.zeros(1, 2)
    assert not empty.mean.any() and not empty.covariance.any()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        Accumulator(1, 2).add(np.ones((1, 3, 3), np.float32))
    with pytest.raises(ValueError):
        SecondMoment.zeros(1, 2) + SecondMoment.zeros(1, 3)
    with pytest.raises(ValueError):
        CrossMoment.zeros(1, 2, 2) + CrossMoment.zeros(1, 2, 3)
    with pytest.raises(ValueError):
        CrossMoment.of(np.ones((1, 3, 2)), np.ones((1, 4, 2)))

"""Comparison of outputs against plain formulas."""

from __future__ import annotations

from math import inf, isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.linalg.metrics import OutputStats, Top1


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_batches_add_up(n, m, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n + m, 2, 3)).astype(np.float32)
    b = a + rng.standard_normal(a.shape).astype(np.float32)
    got = OutputStats() + OutputStats.of(a[:n], b[:n]) + OutputStats.of(a[n:], b[n:])
    a, b = a.astype(np.float64), b.astype(np.float64)
    assert got.n == n + m
    assert got.max_abs == np.abs(a - b).max()
    relative = np.linalg.norm(a - b) / np.linalg.norm(a)
    assert got.relative_l2 == pytest.approx(relative)
    assert got.sqnr_db == pytest.approx(-20 * np.log10(relative))
    cosines = [
        x.ravel() @ y.ravel() / np.linalg.norm(x) / np.linalg.norm(y)
        for x, y in zip(a, b, strict=True)
    ]
    assert got.cosine == pytest.approx(np.mean(cosines))


def test_zeros():
    zero, one = np.zeros((2, 3)), np.ones((2, 3))
    same = OutputStats.of(zero, zero)
    assert (same.relative_l2, same.cosine, same.sqnr_db) == (0, 1, inf)
    off = OutputStats.of(zero, one)
    assert (off.relative_l2, off.cosine, off.sqnr_db, off.max_abs) == (inf, 0, -inf, 1)
    gone = OutputStats.of(one, zero)
    assert (gone.relative_l2, gone.cosine, gone.sqnr_db) == (1, 0, 0)
    assert isnan(OutputStats().cosine)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16])
def test_other_types(dtype):
    stats = OutputStats.of(np.array([[0, 1]], dtype), np.array([[1, 1]], dtype))
    assert (stats.max_abs, stats.error_square) == (1, 1)
    assert stats.cosine == pytest.approx(2**-0.5)


def test_scalars_and_nan():
    assert OutputStats.of(np.array(2.0), np.array(3.0)).n == 1
    bad = OutputStats.of(np.array([1.0]), np.array([np.nan]))
    for stats in (bad + OutputStats.of(np.ones(1), np.ones(1)), OutputStats() + bad):
        assert isnan(stats.max_abs) and isnan(stats.relative_l2) and isnan(stats.cosine)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError):
        OutputStats.of(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError):
        OutputStats.of(np.array(["a"]), np.array(["a"]))
    with pytest.raises(ValueError):
        Top1.of(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError):
        Top1.of(np.ones((2, 3)), np.ones((2, 3)), np.zeros(3, int))


def test_top1():
    a = np.array([[1, 2], [3, 0], [0, 1]])
    b = np.array([[1, 2], [0, 3], [0, 1]])
    got = Top1.of(a[:2], b[:2], np.array([1, 0])) + Top1.of(a[2:], b[2:], np.array([0]))
    assert got == Top1(3, 2, 3, 2, 1)
    assert (got.agreement, got.accuracy_reference, got.accuracy_candidate) == (2 / 3, 2 / 3, 1 / 3)
    assert isnan(Top1.of(a, b).accuracy_reference)
    assert isnan(Top1().agreement)

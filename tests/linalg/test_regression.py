"""Regression on moments against regression on rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.linalg.regression import reduced_rank, ridge

from .cases import maps

QUICK = settings(deadline=None, max_examples=40)


def augmented(rows, targets, epsilon):
    """Rows and targets whose plain least squares is the ridge regression."""
    groups, _, d = rows.shape
    size = np.sqrt(epsilon * np.square(rows).sum(axis=(1, 2)) / d)
    extra = size[:, None, None] * np.eye(d)
    nothing = np.zeros((groups, d, targets.shape[2]))
    return np.concatenate([rows, extra], axis=1), np.concatenate([targets, nothing], axis=1)


@QUICK
@given(maps(), st.sampled_from([1e-2, 1e-4]), st.floats(0, 1, exclude_max=True))
def test_against_rows(case, epsilon, share):
    weight, rows = case
    targets = rows @ weight + np.random.default_rng(0).standard_normal((*rows.shape[:2], 1))
    gram, cross = rows.swapaxes(1, 2) @ rows, rows.swapaxes(1, 2) @ targets
    got = ridge(gram, cross, epsilon)
    rank = 1 + int(share * min(weight.shape[1:]))
    low = reduced_rank(gram, cross, rank, epsilon)
    assert [part.shape[2] for part in low.parts] == [rank, weight.shape[2]]
    for g, (x, y) in enumerate(zip(*augmented(rows, targets, epsilon), strict=True)):
        expected = np.linalg.lstsq(x, y, rcond=None)[0]
        np.testing.assert_allclose(got[g], expected, atol=1e-7 * (1 + np.abs(expected).max()))
        # Eckart and Young: the fit of rank r is off by the residual, and by the tail of the fit.
        fitted = x @ expected
        tail = np.square(np.linalg.svd(fitted, compute_uv=False)[rank:]).sum()
        best = np.square(y - fitted).sum() + tail
        assert abs(np.square(y - x @ low.product[g]).sum() - best) <= 1e-7 * (1 + best)


def test_no_ridge_and_no_rows():
    x = np.random.default_rng(0).standard_normal((1, 30, 4))
    gram = x.swapaxes(1, 2) @ x
    weight = np.ones((1, 4, 2))
    np.testing.assert_allclose(ridge(gram, gram @ weight, 0.0), weight, atol=1e-9)
    assert not ridge(np.zeros((1, 4, 4)), np.zeros((1, 4, 2)), 1e-2).any()

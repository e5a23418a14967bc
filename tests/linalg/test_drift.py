"""Compensation on moments against least squares on rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.linalg.drift import (
    RIDGES,
    Drift,
    choose_ridge,
    compensated,
    fitted,
    judged,
    uncentred,
)
from onnxrank.linalg.factorize import Factors, factorize, output_pair
from onnxrank.linalg.gram import CrossMoment

from .cases import maps, moments

QUICK = settings(deadline=None, max_examples=60)
TINY = 1e-12


def refit(weight, gram, rank):
    """Nothing is cut."""
    return Factors((weight,))


def cross(x, y):
    return CrossMoment(x.shape[1], x.sum(axis=1), y.sum(axis=1), np.einsum("gni,gnj->gij", x, y))


@dataclass
class Rows:
    """What a layer reads in both networks, and by how much its stream has drifted."""

    weight: np.ndarray
    before: np.ndarray
    after: np.ndarray
    pull: np.ndarray | None

    @property
    def drift(self):
        pull = None if self.pull is None else cross(self.after, self.pull)
        return Drift(moments(self.after), cross(self.after, self.before), pull)

    @property
    def wanted(self):
        wanted = self.before @ self.weight
        return wanted if self.pull is None else wanted + self.pull

    def error(self, factors):
        """Squared error a row, by running the layer."""
        got = self.after @ factors.product
        if factors.bias is not None:
            got = got + factors.bias[:, None]
        return np.square(self.wanted - got).sum() / self.before.shape[1]

    @property
    def scale(self):
        return (
            1
            + np.square(self.wanted).sum()
            + np.square(self.after).sum() * np.square(self.weight).sum()
        )

    def part(self, which):
        pull = None if self.pull is None else self.pull[:, which]
        return Rows(self.weight, self.before[:, which], self.after[:, which], pull)


@st.composite
def drifts(draw):
    weight, before = draw(maps(max_width=7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups, n, d_in = before.shape
    moved = before @ (np.eye(d_in) + 0.2 * rng.standard_normal((groups, d_in, d_in)))
    after = moved + 0.1 * rng.standard_normal(before.shape) + 0.3
    pulled = draw(st.booleans())
    pull = rng.standard_normal((groups, n, weight.shape[2])) + 1 if pulled else None
    return Rows(weight, before, after, pull)


def plain(rows):
    """The constant that `judged` leaves out: what is wanted, about its mean."""
    wanted = rows.wanted
    return np.square(wanted - wanted.mean(axis=1, keepdims=True)).sum() / wanted.shape[1]


@QUICK
@given(drifts(), st.sampled_from([output_pair, refit]))
def test_full_rank_is_least_squares(rows, cut):
    got = fitted(rows.weight, rows.drift, min(rows.weight.shape[1:]), TINY, cut)
    assert got.bias is not None
    for g in range(len(rows.weight)):
        x, y = rows.after[g], rows.wanted[g]
        ones = np.column_stack([x, np.ones(len(x))])
        best = np.square(y - ones @ np.linalg.lstsq(ones, y, rcond=None)[0]).sum()
        mine = np.square(y - x @ got.product[g] - got.bias[g]).sum()
        assert mine == pytest.approx(best, abs=1e-6 * rows.scale)


@QUICK
@given(drifts())
def test_least_squares_about_zero_needs_no_shift(rows):
    got = fitted(rows.weight, uncentred(rows.drift), 1, TINY, refit)
    assert not got.bias.any()
    for g in range(len(rows.weight)):
        x, y = rows.after[g], rows.wanted[g]
        best = np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum()
        mine = np.square(y - x @ got.product[g]).sum()
        assert mine == pytest.approx(best, abs=1e-6 * rows.scale)


@QUICK
@given(drifts(), st.integers(0, 2**32 - 1), st.booleans())
def test_judged_is_the_error_but_for_a_constant(rows, seed, shifted):
    rng = np.random.default_rng(seed)
    groups, d_in, d_out = rows.weight.shape
    a, b = rng.standard_normal((groups, d_in, 2)), rng.standard_normal((groups, 2, d_out))
    factors = Factors((a, b), rng.standard_normal((groups, d_out)) if shifted else None)
    found = judged(rows.weight, factors, rows.drift) + plain(rows)
    assert found == pytest.approx(rows.error(factors), abs=1e-9 * rows.scale)
    zero = Factors((a, b))
    whole = np.square(rows.wanted).sum() / rows.wanted.shape[1]
    found = judged(rows.weight, zero, uncentred(rows.drift)) + whole
    assert found == pytest.approx(rows.error(zero), abs=1e-9 * rows.scale)


@QUICK
@given(maps(), st.floats(0, 1, exclude_max=True), st.sampled_from(RIDGES))
def test_without_drift_it_is_the_centred_pair(case, share, epsilon):
    weight, rows = case
    rank = 1 + int(share * min(weight.shape[1:]))
    same = Drift(moments(rows), cross(rows, rows))
    got = fitted(weight, same, rank, epsilon, output_pair)
    expected = factorize(weight, moments(rows), rank, "centered")
    atol = 1e-7 * (1 + np.abs(rows).max() * np.abs(weight).max())
    outputs = rows @ expected.product + expected.bias[:, None]
    # Where singular values tie the pair is not the only one, but its error is.
    errors = [
        np.square(rows @ weight - rows @ f.product - f.bias[:, None]).sum() for f in (got, expected)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6, abs=atol)
    np.testing.assert_allclose(
        (rows @ got.product + got.bias[:, None]).mean(axis=1), outputs.mean(axis=1), atol=atol
    )


@QUICK
@given(drifts(), st.floats(0, 1, exclude_max=True))
def test_never_worse_than_the_plain_pair_on_the_rows_it_was_fitted_to(rows, share):
    rank = 1 + int(share * min(rows.weight.shape[1:]))
    drift = rows.drift
    best = fitted(rows.weight, drift, rank, TINY, output_pair)
    original = factorize(rows.weight, moments(rows.before), rank, "centered")
    kept = fitted(rows.weight, drift, rank, None, output_pair)
    slack = 1e-6 * rows.scale
    assert rows.error(best) <= rows.error(original) + slack
    assert rows.error(best) <= rows.error(kept) + slack


def few_and_noisy(n, seed=0, d=24):
    """A drift that no map of x' can follow."""
    rng = np.random.default_rng(seed)
    weight, before = rng.standard_normal((1, d, d)), rng.standard_normal((1, n, d))
    after = before + 0.05 * rng.standard_normal(before.shape)
    return Rows(weight, before, after, 3 * rng.standard_normal((1, n, d)))


def halves(rows):
    n = rows.before.shape[1] // 2
    return rows.part(slice(0, n)).drift, rows.part(slice(n, None)).drift


def test_the_folds_refuse_to_fit_noise_and_take_what_is_there():
    noisy = few_and_noisy(60)
    assert choose_ridge(noisy.weight, halves(noisy), 12, output_pair) is None
    rng = np.random.default_rng(1)
    turn = np.eye(24) + 0.3 * rng.standard_normal((24, 24))
    clear = few_and_noisy(4000)
    clear.after, clear.pull = clear.before @ turn, None
    epsilon = choose_ridge(clear.weight, halves(clear), 12, output_pair)
    assert epsilon == min(e for e in RIDGES if e)
    got, chosen = compensated(clear.weight, halves(clear), 12)
    assert chosen == epsilon
    kept = fitted(clear.weight, clear.drift, 12, None, output_pair)
    assert clear.error(got) < 0.9 * clear.error(kept)


def test_a_fold_without_rows_cannot_choose():
    rows = few_and_noisy(40)
    empty = rows.part(slice(0, 0)).drift
    assert choose_ridge(rows.weight, (rows.drift, empty), 8, output_pair) is None


def test_moments_add():
    rows = few_and_noisy(50)
    first, second = halves(rows)
    both, whole = first + second, rows.drift
    assert both.moved.n == whole.moved.n == 50
    np.testing.assert_allclose(both.cross.covariance, whole.cross.covariance, atol=1e-12)
    assert both.pull is not None and whole.pull is not None
    np.testing.assert_allclose(both.pull.cross, whole.pull.cross, atol=1e-10)
    without = Drift(first.moved, first.cross)
    assert (without + second).pull is None


def test_without_a_shift():
    rows = few_and_noisy(400)
    got, _ = compensated(rows.weight, halves(rows), 8, output_pair, shifts=False)
    assert got.bias is None

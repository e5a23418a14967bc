"""Every form against every other, and against the error measured on rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.errors import PlanError
from onnxrank.linalg.factorize import FORMS, cross_tails, factorize, layer_error, pair_error, tails

from .cases import maps, moments

QUICK = settings(deadline=None, max_examples=80)
RANKS = st.floats(0, 1, exclude_max=True)


def rank_of(share, weight):
    return 1 + int(share * min(weight.shape[1:]))


def measured(weight, factors, rows):
    """Squared error of the outputs, by running both layers."""
    outputs = rows
    for part in factors.parts:
        outputs = outputs @ part
    if factors.bias is not None:
        outputs = outputs + factors.bias[:, None]
    return np.square(rows @ weight - outputs).sum()


def slack(weight, rows):
    """What float64 may lose of a squared error."""
    return 1e-10 * (1 + np.square(rows).sum() * np.square(weight).sum())


@QUICK
@given(maps(), RANKS, st.sampled_from(sorted(FORMS)))
def test_shapes_and_closed_form_error(case, share, form):
    weight, rows = case
    groups, d_in, d_out = weight.shape
    rank = rank_of(share, weight)
    factors = factorize(weight, moments(rows), rank, form)
    assert [part.shape for part in factors.parts] == [(groups, d_in, rank), (groups, rank, d_out)]
    assert (factors.bias is not None) == (form == "centered")
    error = layer_error(weight, factors, moments(rows))
    assert abs(error - measured(weight, factors, rows)) <= slack(weight, rows)


@QUICK
@given(maps(), RANKS, st.booleans())
def test_squared_error_on_the_calibration_rows_is_the_tail(case, share, centered):
    weight, rows = case
    rank = rank_of(share, weight)
    factors = factorize(weight, moments(rows), rank, "centered" if centered else "optimal")
    outputs = rows @ weight
    if centered:
        outputs = outputs - outputs.mean(axis=1, keepdims=True)
    singular = np.linalg.svd(outputs, compute_uv=False)
    tail = np.square(singular[:, rank:]).sum()
    assert abs(measured(weight, factors, rows) - tail) <= slack(weight, rows)
    assert abs(tails(weight, moments(rows), centered)[rank] - tail) <= slack(weight, rows)


@QUICK
@given(maps(), RANKS)
def test_order_of_forms_at_equal_rank(case, share):
    weight, rows = case
    rank = rank_of(share, weight)
    error = {
        form: measured(weight, factorize(weight, moments(rows), rank, form), rows)
        for form in FORMS
    }  # fmt: skip
    assert error["centered"] <= error["optimal"] + slack(weight, rows)
    assert error["optimal"] <= error["projection"] + slack(weight, rows)
    assert error["optimal"] <= error["svd"] + slack(weight, rows)


@QUICK
@given(maps(max_width=14), st.sampled_from(sorted(FORMS)))
def test_full_rank_gives_the_weight_back(case, form):
    weight, rows = case
    factors = factorize(weight, moments(rows), min(weight.shape[1:]), form)
    np.testing.assert_allclose(factors.product, weight, atol=1e-12 * np.abs(weight).max() * 14)
    if factors.bias is not None:
        assert np.abs(factors.bias).max() <= 1e-10 * (1 + np.abs(rows).max())


@QUICK
@given(maps(), RANKS, st.integers(1, 9), st.integers(1, 9))
def test_projection_is_the_papers(case, share, k_in, k_out):
    weight, rows = case
    _, d_in, d_out = weight.shape
    k_in, k_out = min(k_in, d_in), min(k_out, d_out)
    rank = min(k_in, k_out)
    got = factorize(weight, moments(rows), rank, "projection", (k_in, k_out)).product
    if rank == min(d_in, d_out):
        np.testing.assert_allclose(got, weight, atol=1e-10)
        return
    # On the rows only: which directions are taken among those no row has shown is free.
    left = np.linalg.svd(rows)[2][:, :k_in]
    right = np.linalg.svd(rows @ weight)[2][:, :k_out]
    gaps = [np.linalg.svd(m, compute_uv=False) for m in (rows, rows @ weight)]
    for values, k in zip(gaps, (k_in, k_out), strict=True):
        if k < values.shape[1] and (values[:, k - 1] - values[:, k]).min() < 1e-3:
            return  # the subspace is not defined
        if k > values.shape[1]:
            return
    expected = left.swapaxes(1, 2) @ left @ weight @ right.swapaxes(1, 2) @ right
    np.testing.assert_allclose(rows @ got, rows @ expected, atol=1e-6 * (1 + np.abs(rows).max()))


def test_projection_raises_the_smaller_sides_to_the_rank():
    rng = np.random.default_rng(0)
    weight, rows = rng.standard_normal((1, 8, 9)), rng.standard_normal((1, 50, 8))
    moment = moments(rows)

    def at(rank, ranks):
        return factorize(weight, moment, rank, "projection", ranks).product

    np.testing.assert_allclose(at(4, (2, 7)), at(4, (4, 7)))
    np.testing.assert_allclose(at(4, (3, 2)), at(4, (4, 4)))
    np.testing.assert_allclose(at(4, None), at(4, (4, 4)))


@QUICK
@given(maps(), RANKS, st.booleans(), st.floats(0, 1))
def test_cross_tails_against_running_every_rank(case, share, centered, where):
    weight, rows = case
    cut = int(where * rows.shape[1])
    fit, judge = rows[:, cut:], rows[:, :cut]
    got = cross_tails(weight, moments(fit), moments(judge), centered)
    assert len(got) == min(weight.shape[1:]) + 1 and got[-1] == 0
    assert (np.diff(got) <= 0).all()
    form = "centered" if centered else "optimal"
    factors = factorize(weight, moments(fit), rank_of(share, weight), form)
    expected = measured(weight, factors, judge)
    assert abs(got[rank_of(share, weight)] - expected) <= slack(weight, rows)
    bias = moments(fit).mean[:, None] @ weight if centered else 0
    assert abs(got[0] - np.square(judge @ weight - bias).sum()) <= slack(weight, rows)
    if centered is False:
        own = cross_tails(weight, moments(fit), moments(fit))
        np.testing.assert_allclose(own, tails(weight, moments(fit)), atol=slack(weight, rows))


def test_weights_of_float32_give_float64_factors():
    weight = np.ones((1, 3, 2), np.float32)
    factors = factorize(weight, moments(np.ones((1, 4, 3))), 1, "centered")
    assert {part.dtype for part in (*factors.parts, factors.bias)} == {np.dtype(np.float64)}


def test_factors_do_not_depend_on_chance():
    rng = np.random.default_rng(0)
    weight, rows = rng.standard_normal((2, 8, 5)), rng.standard_normal((2, 50, 8))
    for form in FORMS:
        one, two = (factorize(weight, moments(rows), 3, form) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one.parts, two.parts, strict=True))


def test_what_cannot_be_is_refused():
    weight, moment = np.ones((1, 3, 2)), moments(np.ones((1, 4, 3)))
    with pytest.raises(PlanError, match="centered, optimal, projection, svd"):
        factorize(weight, moment, 1, "lu")
    for rank in (0, 3):
        with pytest.raises(ValueError):
            factorize(weight, moment, rank, "svd")
    with pytest.raises(ValueError):
        factorize(np.ones((1, 4, 2)), moment, 1, "svd")


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 8, 5)])
def test_without_any_rows_the_weight_decides(shape):
    weight = np.random.default_rng(0).standard_normal(shape)
    nothing = moments(np.zeros((2, 4, shape[1])))
    optimal, svd = (factorize(weight, nothing, 3, form).product for form in ("optimal", "svd"))
    np.testing.assert_allclose(optimal, svd, atol=1e-10)


@QUICK
@given(maps(), RANKS, st.sampled_from(sorted(FORMS)))
def test_error_of_a_pair_is_known_without_it(case, share, form):
    weight, rows = case
    rank, moment = rank_of(share, weight), moments(rows)
    made = layer_error(weight, factorize(weight, moment, rank, form), moment)
    assert abs(pair_error(weight, moment, rank, form) - made) <= slack(weight, rows)

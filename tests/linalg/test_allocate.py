"""Allocation against trying everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.errors import PlanError
from onnxrank.linalg.allocate import Curve, allocate, path

QUICK = settings(deadline=None, max_examples=150)


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    whole = draw(st.booleans())
    curves = {}
    for unit in range(draw(st.integers(1, 4))):
        options = draw(st.integers(1, 5))
        cost, error = rng.random(options) * 10, rng.random(options)
        if draw(st.booleans()):  # an ordinary curve: falling
            cost, error = np.sort(cost), np.sort(error)[::-1]
        curves[f"u{unit}"] = Curve(error, np.round(cost) if whole else cost)
    least = sum(curve.cost.min() for curve in curves.values())
    most = sum(curve.cost.max() for curve in curves.values())
    return curves, least + draw(st.floats(0, 1.1)) * (most - least) + 1e-12


@QUICK
@given(cases())
def test_never_over_the_budget_and_near_the_optimum(case):
    curves, budget = case
    got = allocate(curves, budget)
    assert list(got.choice) == list(curves)
    assert got.cost <= budget
    picked = [(curves[name].error[k], curves[name].cost[k]) for name, k in got.choice.items()]
    assert np.sum(picked, axis=0) == pytest.approx((got.error, got.cost))
    options = [list(zip(c.error, c.cost, strict=True)) for c in curves.values()]
    best = min(
        sum(error for error, _ in each)
        for each in product(*options)
        if sum(cost for _, cost in each) <= budget
    )
    assert got.bound <= best + 1e-12
    assert best <= got.error + 1e-12
    # One step of one hull is all that can be lost.
    assert got.error <= best + max(np.ptp(curve.error) for curve in curves.values()) + 1e-12


@QUICK
@given(cases())
def test_more_budget_lowers_the_bound(case):
    curves, budget = case
    assert allocate(curves, budget * 1.2).bound <= allocate(curves, budget).bound + 1e-12


def test_the_greedy_fill_spends_what_the_hull_leaves():
    curves = {
        "a": Curve(np.array([10.0, 0.0]), np.array([0.0, 10.0])),
        "b": Curve(np.array([1.0, 0.9, 0.0]), np.array([0.0, 1.0, 2.0])),
    }
    assert allocate(curves, 1).choice == {"a": 0, "b": 1}
    assert allocate(curves, 10).choice == {"a": 1, "b": 0}
    assert allocate(curves, 12) == allocate(curves, 100)


def test_infinite_errors_are_never_chosen():
    curve = Curve(np.array([np.inf, 1.0]), np.array([0.0, 5.0]))
    assert allocate({"a": curve}, 5).choice == {"a": 1}
    with pytest.raises(PlanError, match="5"):
        allocate({"a": curve}, 4)


def test_nothing_to_allocate():
    assert allocate({}, 0).choice == {}


@pytest.mark.parametrize(
    ("error", "cost"),
    [([np.nan, 1], [0, 1]), ([1], [0, 1]), ([1], [np.inf]), ([np.inf], [1]), ([], [])],
)
def test_curves_that_are_none_are_refused(error, cost):
    with pytest.raises(ValueError, match="a:"):
        allocate({"a": Curve(np.array(error, float), np.array(cost, float))}, 10)


def test_ties_keep_the_order_of_the_units():
    curve = Curve(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert allocate({"b": curve, "a": curve}, 1).choice == {"b": 1, "a": 0}


@QUICK
@given(cases())
def test_the_path_is_what_budgets_lead_to(case):
    curves, _ = case
    choices = path(curves)
    costs = [sum(curves[n].cost[k] for n, k in choice.items()) for choice in choices]
    errors = [sum(curves[n].error[k] for n, k in choice.items()) for choice in choices]
    assert all(set(choice) == set(curves) for choice in choices)
    assert (np.diff(costs) > 0).all()
    assert (np.diff(errors) < 0).all()
    for choice, cost, error in zip(choices, costs, errors, strict=True):
        got = allocate(curves, cost + 1e-9)
        # At the prices in between nothing is better.
        assert got.bound == pytest.approx(error, abs=1e-6)
        assert got.error <= error + 1e-12, choice
    rates = np.diff(errors) / np.diff(costs)
    assert (np.diff(rates) >= -1e-9 * np.abs(rates[1:])).all()


def test_the_path_of_nothing():
    assert path({}) == [{}]

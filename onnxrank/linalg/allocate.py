"""How much of a budget each unit gets (method: section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxrank.errors import PlanError
from onnxrank.linalg.gram import Array


@dataclass(frozen=True, eq=False)
class Curve:
    """What a unit can become, in any order: the k-th option has the k-th error and cost.

    Attributes
    ----------
    error : ndarray of float64, shape (options,)
        Expected error; an infinite one is never chosen.
    cost : ndarray of float64, shape (options,)
        Finite, in the unit of the budget.
    """

    error: Array
    cost: Array


@dataclass(frozen=True)
class Allocation:
    """One option a unit.

    Attributes
    ----------
    choice : dict of str to int
        Index of the option, by unit.
    error, cost : float
        Their sums over the units; the cost is within the budget.
    bound : float
        No choice within the budget has an error below this (the Lagrangian dual's value).
    """

    choice: dict[str, int]
    error: float
    cost: float
    bound: float


@dataclass(frozen=True)
class _Step:
    """From one vertex of a unit's hull to the next: what it costs, and saves for its cost."""

    name: str
    option: int
    cost: float
    slope: float


def allocate(curves: Mapping[str, Curve], budget: float) -> Allocation:
    """Minimise the sum of errors with the sum of costs within a budget.

    Every unit walks the lower convex hull of its options, from the cheapest on. Where a
    multiplier λ, the price of cost, sends them all is where the steps of slope above λ lead; so
    the multiplier that just meets the budget is found by sorting the steps. Up to there the
    choice is optimal for its cost; what is left of the budget is filled greedily.

    Parameters
    ----------
    curves : mapping of str to Curve
        The units. Their order breaks ties.
    budget : float
        Largest sum of costs.

    Raises
    ------
    PlanError
        Even the cheapest options cost more.
    """
    hulls = {name: _hull(curve, name) for name, curve in curves.items()}
    choice = {name: hull[0] for name, hull in hulls.items()}
    least = _total(curves, choice, "cost")
    if least > budget:
        raise PlanError(
            f"no plan costs {budget:g} or less", hint=f"the cheapest options cost {least:g}"
        )
    steps = [step for name, hull in hulls.items() for step in _steps(curves[name], hull, name)]
    steps.sort(key=lambda step: -step.slope)  # stable: ties keep the order
    spent = least + np.cumsum([step.cost for step in steps])
    taken = int(np.searchsorted(spent, budget, side="right"))
    choice.update((step.name, step.option) for step in steps[:taken])
    while _total(curves, choice, "cost") > budget:  # by rounding of the cumulative sum
        taken -= 1
        choice = {name: hull[0] for name, hull in hulls.items()}
        choice.update((step.name, step.option) for step in steps[:taken])
    bound = _total(curves, choice, "error")
    if taken < len(steps):
        bound -= steps[taken].slope * (budget - _total(curves, choice, "cost"))
    _fill(curves, choice, budget)
    error = _total(curves, choice, "error")
    return Allocation(choice, error, _total(curves, choice, "cost"), min(bound, error))


def path(curves: Mapping[str, Curve]) -> list[dict[str, int]]:
    """Every choice that is optimal at some price, the cheapest first."""
    hulls = {name: _hull(curve, name) for name, curve in curves.items()}
    choice = {name: hull[0] for name, hull in hulls.items()}
    steps = [step for name, hull in hulls.items() for step in _steps(curves[name], hull, name)]
    choices = [dict(choice)]
    for step in sorted(steps, key=lambda step: -step.slope):
        choice[step.name] = step.option
        choices.append(dict(choice))
    return choices


def _hull(curve: Curve, name: str) -> list[int]:
    """Options on the lower convex hull while it falls, cheapest first."""
    error, cost = curve.error, curve.cost
    if error.shape != cost.shape or np.isnan(error).any() or not np.isfinite(cost).all():
        raise ValueError(f"{name}: errors and costs do not pair, or are not numbers")
    hull: list[int] = []
    for k in map(int, np.lexsort((error, cost))):
        if not np.isfinite(error[k]) or (hull and error[k] >= error[hull[-1]]):
            continue
        # The middle one of three vertices goes if the line between its neighbours passes below.
        while len(hull) > 1 and _cross(curve, hull[-2], hull[-1], k) <= 0:
            hull.pop()
        hull.append(k)
    if not hull:
        raise ValueError(f"{name}: no option of finite error")
    return hull


def _cross(curve: Curve, a: int, b: int, c: int) -> float:
    """Twice the signed area of three options; positive if b lies below the line from a to c."""
    x, y = curve.cost, curve.error
    return float((x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]))


def _steps(curve: Curve, hull: list[int], name: str) -> list[_Step]:
    """Steps between neighbours on the hull; their slopes never rise, whatever the rounding."""
    steps: list[_Step] = []
    for a, b in zip(hull, hull[1:], strict=False):
        cost = float(curve.cost[b] - curve.cost[a])
        slope = float(curve.error[a] - curve.error[b]) / cost
        steps.append(_Step(name, b, cost, min([slope, *(step.slope for step in steps[-1:])])))
    return steps


def _total(curves: Mapping[str, Curve], choice: Mapping[str, int], what: str) -> float:
    """Sum of the chosen options' errors or costs, rounded once."""
    columns: dict[str, NDArray[Any]] = {name: getattr(curves[name], what) for name in choice}
    return fsum(columns[name][option] for name, option in choice.items())


def _fill(curves: Mapping[str, Curve], choice: dict[str, int], budget: float) -> None:
    """Improve a choice within the budget, one option at a time, most gain for its cost first."""
    while True:
        left = budget - _total(curves, choice, "cost")
        best, best_rate = None, 0.0
        for name, curve in curves.items():
            now = choice[name]
            gain, extra = curve.error[now] - curve.error, curve.cost - curve.cost[now]
            fits = (gain > 0) & (extra > 0) & (extra <= left)
            rate = np.divide(gain, extra, out=np.zeros_like(extra), where=fits)
            option = int(rate.argmax())
            if rate[option] > best_rate:
                best, best_rate = (name, option), float(rate[option])
        if best is None:
            return
        before = choice[best[0]]
        choice[best[0]] = best[1]
        if _total(curves, choice, "cost") > budget:  # by rounding
            choice[best[0]] = before
            return

"""Search: the smallest model that loses no more than is allowed, decided on samples kept apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from onnxrank.linalg.factorize import Factors
from onnxrank.results import Frontier, FrontierPoint, Plan
from onnxrank.stages.budget import Budget, Planner
from onnxrank.stages.compensate import site_feeds
from onnxrank.stages.judge import Judge, Loss
from onnxrank.stages.survey import Progress, silent

# Shares that are looked at, the least step between them, and where that ends, of what is kept.
_STEPS, _NEAR, _FINE = 6, 0.01, 0.05
# Looks between what the deciding samples refuse and what they accept.
_MORE = 3
# A loss this near to what is allowed is not worth another look.
_CLOSE = 0.85
# Predicted relative error of the first look, and by how much one look corrects it at most.
_FIRST, _LEAP = 0.02, 4.0

# What is kept, and what plans predict, in the words of a report.
_SIZES = {"params": "parameters", "macs": "multiply-accumulates", "size": "bytes"}
_PREDICTED = "relative error"
_LOST = {
    "accuracy": "accuracy lost",
    "agreement": "samples that change class",
    "error": _PREDICTED,
}

# Factors of every unit that a plan cuts, by unit name.
Fit = Callable[[Plan], dict[str, Factors]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One plan that was looked at."""

    share: float
    plan: Plan
    factors: dict[str, Factors]
    loss: Loss


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes
    ----------
    chosen : Candidate or None
        The smallest one that holds on the samples that decide; None if none does.
    frontier : Frontier
        All that were looked at, with what they lose on the samples that were searched with.
    """

    chosen: Candidate | None
    frontier: Frontier


def search(
    planner: Planner,
    fit: Fit,
    searched: Judge,
    deciding: Judge,
    tolerance: Callable[[Loss], float],
    *,
    kind: str = "params",
    progress: Progress = silent,
) -> Found:
    """Close in on the share of the model that is kept; where the result does not hold, keep more.

    What plans predict is off by a factor, but by much the same for plans that are alike: each look
    tells it, and so where to look next.

    Parameters
    ----------
    planner : Planner
        Gives the best plan for a share.
    fit : callable
        Factors of a plan.
    searched, deciding : Judge
        Samples to search with, and others that decide: of those that hold on the first, the
        smallest that holds on the second is taken.
    tolerance : callable
        What may be lost, of a kind of loss.
    kind : str
        What is to be small: a kind of budget.
    progress : callable
        Called with (done, total, what).
    """
    looked: list[Candidate] = []

    def look(share: float) -> bool:
        """Try a share; whether it holds on the samples that are searched with."""
        progress(len(looked), max(_STEPS, len(looked) + 1), "searching")
        plan = planner.plan(Budget(kind, share))
        factors = fit(plan)
        loss = _loss(planner, searched, factors)
        looked.append(Candidate(share, plan, factors, loss))
        progress(1, 1, f"{share:.1%} of the {kind}: {loss.value:.2%} {_LOST[loss.kind]}")
        return loss.value <= tolerance(loss)

    low, high, target = planner.reach(kind), 1.0, _FIRST
    while len(looked) < _STEPS and high - low >= max(_NEAR, _FINE * high):
        aside = (high - low) / 4  # looks that are apart give the deciding samples a choice
        share = min(max(_share(planner, kind, target), low + aside), high - aside)
        low, high = (low, share) if look(share) else (share, high)
        allowed = tolerance(looked[-1].loss)
        if _CLOSE * allowed <= looked[-1].loss.value <= allowed:
            break
        target = _target(looked[-1], allowed)
    decided: dict[float, bool] = {}

    def decide() -> Candidate | None:
        """The smallest that holds on both; what the deciding samples say of each is kept."""
        for candidate in sorted(looked, key=lambda c: c.share):
            if candidate.plan.split and candidate.loss.value <= tolerance(candidate.loss):
                if candidate.share not in decided:
                    loss = _loss(planner, deciding, candidate.factors)
                    decided[candidate.share] = loss.value <= tolerance(loss)
                if decided[candidate.share]:
                    return candidate
        return None

    chosen = decide()
    # The search ends at the edge, where the other samples may refuse what it found.
    for _ in range(_MORE):
        refused = [share for share, held in decided.items() if not held]
        high = chosen.share if chosen else 1.0
        if not refused or high - max(refused) < max(_NEAR, 2 * _FINE * high):
            break
        look((max(refused) + high) / 2)
        chosen = decide()
    progress(len(looked), len(looked), "searching")
    return Found(chosen, _frontier(looked, chosen, kind, tolerance))


def _share(planner: Planner, kind: str, error: float) -> float:
    """The smallest share, to within the least step, whose plan predicts at most this error."""
    low, high = planner.reach(kind), 1.0
    while high - low > _NEAR / 2:
        share = (low + high) / 2
        found, _ = planner.allocate(Budget(kind, share))
        low, high = (low, share) if found.error <= error**2 else (share, high)
    return high


def _target(candidate: Candidate, allowed: float) -> float:
    """The predicted error of plans that lose just what is allowed, going by one that was tried."""
    predicted = math.sqrt(candidate.plan.predicted_error or 0.0)
    factor = allowed / candidate.loss.value if candidate.loss.value > 0 else _LEAP
    return predicted * min(max(factor, 1 / _LEAP), _LEAP)


def _loss(planner: Planner, judge: Judge, factors: dict[str, Factors]) -> Loss:
    units = [unit for unit in planner.free if unit.name in factors]
    return judge.loss(site_feeds(planner.replay, units, factors))


def _frontier(
    looked: list[Candidate],
    chosen: Candidate | None,
    kind: str,
    tolerance: Callable[[Loss], float],
) -> Frontier:
    points = tuple(
        FrontierPoint(
            size=candidate.share,
            predicted=math.sqrt(candidate.plan.predicted_error or 0.0),
            measured=candidate.loss.value,
            chosen=candidate is chosen,
        )
        for candidate in sorted(looked, key=lambda c: c.share)
    )
    limit = tolerance(looked[0].loss) if looked else None
    what = looked[0].loss.kind if looked else "error"
    error = _LOST[what]
    other = _PREDICTED if error != _PREDICTED else ""
    return Frontier(f"share of the {_SIZES.get(kind, kind)}", error, points, limit, other)

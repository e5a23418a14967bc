"""Curves: what each unit can become, what that costs, and what it does to the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxrank.graph.model import Model
from onnxrank.graph.sites import Unit
from onnxrank.linalg.allocate import Curve, path
from onnxrank.linalg.factorize import cross_tails
from onnxrank.linalg.gram import Array, SecondMoment
from onnxrank.linalg.sensitivity import predicted
from onnxrank.moments import Moments
from onnxrank.stages.blocks import Block
from onnxrank.stages.costs import Costs
from onnxrank.stages.forms import FORMS
from onnxrank.stages.latency import LatencyCosts
from onnxrank.stages.measure import unit_folds
from onnxrank.stages.sensitivity import Probes


@dataclass(frozen=True, eq=False)
class UnitCurve:
    """One unit's own error in every form at every rank, on rows it was not fitted to.

    Attributes
    ----------
    unit : Unit
        What is cut.
    tails : mapping of str to ndarray of float64, shape (full rank + 1,)
        By form: squared error of its output, over both folds; entry 0 is the whole energy.
    """

    unit: Unit
    tails: Mapping[str, Array]

    def most(self, form: str) -> int:
        """The largest rank at which a form saves parameters."""
        site, known = self.unit.sites[0], FORMS[form]
        each = known.parameters(site, 1)
        return min((site.parameters - 1) // each, known.full(site))

    @property
    def pair(self) -> Array:
        """The tails of a factor pair, which every unit has."""
        return self.tails["pair"]


def unit_curve(model: Model, unit: Unit, moments: Moments) -> UnitCurve:
    """Fit each fold and judge on the other (method: section 1)."""
    folds = unit_folds(moments, unit)
    block, site = Block.of(unit), unit.sites[0]
    weight = block.weight(model)
    tails = {}
    for name, form in FORMS.items():
        if form.full(site):
            tails[name] = _cross(partial(form.tails, site, weight), folds)
    return UnitCurve(unit, tails)


def _cross(
    tails: Callable[[SecondMoment, SecondMoment], Array], folds: tuple[SecondMoment, SecondMoment]
) -> Array:
    first, second = folds
    if not first.n or not second.n:
        return tails(first + second, first + second)
    return tails(first, second) + tails(second, first)


@dataclass(frozen=True)
class Cut:
    """What becomes of one unit in an option.

    Attributes
    ----------
    form : str or None
        Name in `FORMS`, or ``shared``; None stays dense.
    rank : int
        Of the form; 0 for dense.
    shares : tuple of str
        The units that have the first factor in common, this one among them.
    scale : float
        Of its weight in a shared first factor.
    """

    form: str | None
    rank: int
    shares: tuple[str, ...] = ()
    scale: float = 1.0


DENSE = Cut(None, 0)


@dataclass(frozen=True, eq=False)
class Options:
    """The options of one unit, or of several that may share a factor.

    Attributes
    ----------
    cuts : list of mapping of str to Cut
        By unit name, one mapping an option.
    curve : Curve
        Predicted error at the model's outputs, and cost.
    """

    cuts: list[Mapping[str, Cut]]
    curve: Curve


def unit_options(
    curve: UnitCurve, probes: Probes | None, align: int, costs: Costs | LatencyCosts
) -> Options:
    """What a unit can become alone; only dense without probes."""
    unit, site = curve.unit, curve.unit.sites[0]
    cuts: list[Mapping[str, Cut]] = [{unit.name: DENSE}]
    errors, prices = [0.0], [costs.dense(unit)]
    for name, tail in curve.tails.items() if probes is not None else ():
        assert probes is not None
        form = FORMS[name]
        expected = predicted(points(curve, probes), tail)
        step = align if site.convolves else 1
        for rank in range(step, curve.most(name) + 1, step):
            if math.isfinite(expected[rank]) and form.parameters(site, rank) < site.parameters:
                cuts.append({unit.name: Cut(name, rank)})
                errors.append(float(expected[rank]))
                prices.append(costs.cut(unit, form, rank))
    return Options(cuts, Curve(np.array(errors), np.array(prices)))


def points(curve: UnitCurve, probes: Probes) -> list[tuple[float, float]]:
    """The unit's own error and the model's, of each probe."""
    return [(float(curve.pair[r]), e) for r, e in zip(probes.ranks, probes.errors, strict=True)]


def weighing(curve: UnitCurve, probes: Probes) -> float:
    """The model's error for each of the unit's, at a moderate cut."""
    ratios = [error / tail for tail, error in points(curve, probes) if tail > 0]
    return float(np.median(ratios)) if ratios else 0.0


def shared_options(
    model: Model,
    moments: Moments,
    curves: Sequence[UnitCurve],
    alone: Mapping[str, Options],
    weights: Mapping[str, float],
    costs: Costs | LatencyCosts,
) -> Options:
    """What units that read one input can become: each alone, or with a common first factor.

    With every weight scaled by the root of what its error weighs, the error of the common
    factorization is already that of the model.
    """
    choices = path({name: options.curve for name, options in alone.items()})
    cuts: list[Mapping[str, Cut]] = []
    errors, prices = [], []
    for choice in choices:
        cuts.append({n: alone[n].cuts[k][n] for n, k in choice.items()})
        errors.append(sum(float(alone[n].curve.error[k]) for n, k in choice.items()))
        prices.append(sum(float(alone[n].curve.cost[k]) for n, k in choice.items()))
    block = shared_block([curve.unit for curve in curves], weights)
    tail = _cross(
        lambda a, b: cross_tails(block.weight(model), a, b, True),
        unit_folds(moments, block.units[0]),
    )
    wide = sum(unit.sites[0].d_out for unit in block.units)
    dense = sum(unit.sites[0].parameters for unit in block.units)
    names = tuple(unit.name for unit in block.units)
    for rank in range(1, len(tail)):
        if rank * (block.site.d_in + wide) < dense:
            scales = zip(block.units, block.scales, strict=True)
            cuts.append({unit.name: Cut("shared", rank, names, scale) for unit, scale in scales})
            errors.append(float(tail[rank]))
            prices.append(costs.shared(block.units, rank))
    return Options(cuts, Curve(np.array(errors), np.array(prices)))


def shared_block(units: Sequence[Unit], weights: Mapping[str, float]) -> Block:
    """Units with a common first factor; a unit's errors weigh `weights`."""
    floor = max(weights[unit.name] for unit in units) * 1e-6
    scales = tuple(math.sqrt(max(weights[unit.name], floor, 1e-300)) for unit in units)
    return Block(tuple(units), scales)

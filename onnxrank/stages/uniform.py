"""Uniform: one kept share for every layer, which is all that moments alone can justify."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxrank.errors import PlanError
from onnxrank.graph.cost import pays
from onnxrank.graph.sites import Unit
from onnxrank.results import Plan, PlanEntry
from onnxrank.stages.budget import Budget
from onnxrank.stages.costs import Costs
from onnxrank.stages.forms import FORMS
from onnxrank.stages.latency import LATENCY
from onnxrank.stages.measure import Measured
from onnxrank.stages.ranks import SMALL, kept_reason, small


def uniform(
    measured: Measured,
    budget: Budget,
    rows: Mapping[str, float],
    align: int = 8,
    allow_unstable: bool = False,
) -> Plan:
    """The largest share that every layer can keep as a pair within a budget.

    Parameters
    ----------
    measured : Measured
        Units and ranks.
    budget : Budget
        What may be kept of the whole model.
    rows : mapping of str to float
        Rows a sample by site, for MACs.
    align : int
        Ranks of convolutions are multiples of this.
    allow_unstable : bool
        Cut units whose rank has not settled as well.

    Raises
    ------
    PlanError
        The budget is out of reach.
    """
    if budget.kind == LATENCY:
        raise PlanError("a latency is measured by running samples", hint="give data as well")
    survey = measured.survey
    kept = {u.name: kept_reason(u, measured.ranks[u.name], allow_unstable) for u in survey.units}
    kept.update((name, SMALL) for name in small(survey.units) if kept[name] is None)
    costs = Costs(survey, budget.kind, rows)

    def entries(share: float) -> list[PlanEntry]:
        return [_uniform(u, measured, kept[u.name], share, align) for u in survey.units]

    def total(share: float) -> float:
        found = costs.whole
        for unit, entry in zip(survey.units, entries(share), strict=True):
            if entry.rank is not None:
                found += costs.cut(unit, FORMS["pair"], entry.rank) - costs.dense(unit)
        return (found + (costs.reserve if found < costs.whole else 0.0)) / costs.whole

    if total(0.0) > budget.share:
        raise PlanError(
            f"a share of {budget.share:g} of the {budget.kind} is out of reach",
            where=survey.model.name,
            hint=f"these layers and data reach {math.ceil(total(0.0) * 1000) / 1000:g}",
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) <= budget.share else (low, middle)
    settings = survey.settings(
        energy=measured.energy, align=align, budget=budget.kind, share=budget.share, uniform=True
    )
    return Plan(
        model_sha256=survey.model.sha256,
        settings=settings,
        mean_layer_utilization=measured.mean_utilization,
        units=tuple(entries(low)),
    )


def _uniform(
    unit: Unit, measured: Measured, kept: str | None, share: float, align: int
) -> PlanEntry:
    site, ranks, form = unit.sites[0], measured.ranks[unit.name], FORMS["pair"]
    step = align if site.convolves else 1
    rank = max(int(share * site.parameters / form.parameters(site, 1)) // step * step, step)
    if kept is None and not pays(site, rank):
        kept = f"does not pay at rank {rank}"
    return PlanEntry(
        name=unit.name,
        kind=unit.kind,
        sites=tuple(one.name for one in unit.sites),
        form=None if kept else ("centered" if site.centers else "optimal"),
        rank=None if kept else rank,
        kept=kept,
        parameters=site.parameters,
        factorized_parameters=site.parameters if kept else form.parameters(site, rank),
        k_in=ranks.k_in,
        k_out=ranks.k_out,
    )

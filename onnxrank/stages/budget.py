"""Budget: ranks for all units at once, so that the model's outputs change least (section 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from onnxrank.errors import PlanError
from onnxrank.graph.override import override
from onnxrank.graph.sites import Unit
from onnxrank.linalg.allocate import Allocation, allocate
from onnxrank.linalg.factorize import Factors, factorize
from onnxrank.linalg.sensitivity import probe_ranks
from onnxrank.results import REFIT, Plan, PlanEntry
from onnxrank.runtime.batch import Batch, DataSource
from onnxrank.runtime.data import open_data
from onnxrank.runtime.replay import Replay
from onnxrank.runtime.session import Run
from onnxrank.stages.analyze import rows_a_sample
from onnxrank.stages.blocks import Block, sharing
from onnxrank.stages.costs import Costs
from onnxrank.stages.curves import (
    DENSE,
    Cut,
    Options,
    UnitCurve,
    shared_options,
    unit_curve,
    unit_options,
    weighing,
)
from onnxrank.stages.draw import sample
from onnxrank.stages.forms import FORMS
from onnxrank.stages.latency import LATENCY, LatencyCosts, measured_share, within
from onnxrank.stages.measure import Measured, unit_folds
from onnxrank.stages.ranks import kept_reason
from onnxrank.stages.sensitivity import Probes, probe
from onnxrank.stages.survey import Progress, silent
from onnxrank.stages.tasks import refittable
from onnxrank.stages.work import rows_of_data

# Probing may cost this share of running all samples once.
_COST = 0.8
_LEAST, _MOST = 16, 256


@dataclass(frozen=True)
class Budget:
    """What may be kept of the whole model.

    Attributes
    ----------
    kind : str
        ``params``, ``macs``, ``size`` (bytes) or ``latency``.
    share : float
        In (0, 1].
    """

    kind: str
    share: float


class Planner:
    """Curves and sensitivities of one model, from which plans for any budget follow.

    Parameters
    ----------
    measured : Measured
        The model, its units, their moments and ranks.
    source : DataSource
        Samples to probe with.
    run : Run
        How to run them.
    rows : mapping of str to float
        Rows a sample by site, for MACs.
    align : int
        Ranks are multiples of this.
    allow_unstable : bool
        Cut units whose rank has not settled as well.
    progress : callable
        Called with (done, total, what).
    """

    def __init__(
        self,
        measured: Measured,
        source: DataSource,
        run: Run,
        rows: Mapping[str, float],
        *,
        align: int = 8,
        allow_unstable: bool = False,
        progress: Progress = silent,
    ) -> None:
        self.measured, self.run, self.align = measured, run, align
        self.allow_unstable, self._progress = allow_unstable, progress
        survey = measured.survey
        self.model = survey.model
        self.kept = {
            u.name: kept_reason(u, measured.ranks[u.name], allow_unstable) for u in survey.units
        }
        self.free = free_units(measured, allow_unstable)
        self.rows = {**rows_a_sample(survey, measured.moments), **rows}
        sites = [site for unit in self.free for site in unit.sites]
        self.replay = Replay(override(self.model, sites), run)
        self._source = source
        self._costs: dict[str, Costs | LatencyCosts] = {}
        self._known: dict[str, dict[str, Options]] = {}
        self.curves = self._curves(progress)
        self.probes = self._probe(source, progress)

    def _curves(self, progress: Progress) -> dict[str, UnitCurve]:
        curves = {}
        for done, unit in enumerate(self.free):
            progress(done, len(self.free), "fitting curves")
            curves[unit.name] = unit_curve(self.model, unit, self.measured.moments)
        return curves

    def _probe(self, source: DataSource, progress: Progress) -> dict[str, Probes]:
        ranks = {n: probe_ranks(c.pair, c.most("pair")) for n, c in self.curves.items()}
        units = [unit for unit in self.free if ranks[unit.name]]
        if not units:
            return {}
        # Half of the model runs for a probe, on average.
        steps = sum(map(len, ranks.values()))
        count = int(2 * _COST * (source.samples or 0) / steps)
        batches = sample(self.model, source, 1, min(max(count, _LEAST), _MOST))
        return probe(self.replay, units, ranks, self._half, batches, progress=progress)

    def _half(self, unit: Unit, rank: int) -> Factors:
        """A pair fitted to fold A: the probes run samples of fold B."""
        first, second = unit_folds(self.measured.moments, unit)
        name = "centered" if unit.sites[0].centers else "optimal"
        weight = Block.of(unit).weight(self.model)
        return factorize(weight, first if first.n else second, rank, name)

    def allocate(self, budget: Budget) -> tuple[Allocation, dict[str, Cut]]:
        """Choose what becomes of each unit.

        Raises
        ------
        PlanError
            The budget is out of reach, or of an unknown kind.
        """
        found = self.options(budget.kind)
        reach = self.reach(budget.kind)
        if budget.share < reach:
            raise PlanError(
                f"a share of {budget.share:g} of the {budget.kind} is out of reach",
                where=self.model.name,
                hint=f"these layers and data reach {math.ceil(reach * 1000) / 1000:g}",
            )
        costs = self.costs(budget.kind)
        left = budget.share * costs.whole - self._fixed(budget.kind)
        if budget.share >= 1:  # then nothing need be written
            left += costs.reserve
        allowed = max(left, self._least(budget.kind) * (1 + 1e-9))  # the reach is rounded
        allocation = allocate({n: o.curve for n, o in found.items()}, allowed)
        cuts: dict[str, Cut] = {}
        for name, index in allocation.choice.items():
            cuts.update(found[name].cuts[index])
        return allocation, cuts

    def reach(self, kind: str) -> float:
        """The smallest share of the model that its options reach."""
        whole = self.costs(kind).whole
        return min((self._fixed(kind) + self._least(kind)) / whole, 1.0) if whole else 1.0

    def _fixed(self, kind: str) -> float:
        """What the rest of the model costs beside the units that may be cut."""
        costs = self.costs(kind)
        return costs.whole + costs.reserve - sum(costs.dense(unit) for unit in self.free)

    def _least(self, kind: str) -> float:
        """What the units that may be cut cost at the least."""
        return sum(float(o.curve.cost.min()) for o in self.options(kind).values())

    def costs(self, kind: str) -> Costs | LatencyCosts:
        """What units cost.

        Raises
        ------
        PlanError
            The kind of cost is unknown.
        """
        if kind not in self._costs:
            self._costs[kind] = self._priced(kind)
        return self._costs[kind]

    def _priced(self, kind: str) -> Costs | LatencyCosts:
        if kind != LATENCY:
            return Costs(self.measured.survey, kind, self.rows)
        return LatencyCosts(
            self.model, self.free, self._batch, self.run, self.align, self._progress
        )

    @cached_property
    def _batch(self) -> Batch:
        """What latencies are measured on."""
        return next(self._source.batches())

    def options(self, kind: str) -> dict[str, Options]:
        """What each unit, or group of units that may share, can become."""
        if kind not in self._known:
            self._known[kind] = self._options(kind)
        return self._known[kind]

    def _options(self, kind: str) -> dict[str, Options]:
        costs = self.costs(kind)
        found = {
            n: unit_options(c, self.probes.get(n), self.align, costs)
            for n, c in self.curves.items()
        }
        weights = {n: weighing(self.curves[n], p) for n, p in self.probes.items()}
        for group in sharing([unit for unit in self.free if unit.name in self.probes]):
            names = [unit.name for unit in group]
            alone = {name: found.pop(name) for name in names}
            curves = [self.curves[name] for name in names]
            moments = self.measured.moments
            found[names[0]] = shared_options(self.model, moments, curves, alone, weights, costs)
        return found

    def plan(self, budget: Budget) -> Plan:
        """The plan of least predicted error within a budget; a latency is held as measured."""
        if budget.kind != LATENCY or not self.free:
            return self._planned(budget)
        found = within(
            lambda share: self._planned(Budget(LATENCY, share)),
            self.reach(LATENCY),
            budget.share,
            measured_share(self.model, self.measured.moments, self._batch, self.run),
        )
        return replace(found, settings={**found.settings, "share": budget.share})

    def _planned(self, budget: Budget) -> Plan:
        allocation, cuts = self.allocate(budget)
        return Plan(
            model_sha256=self.model.sha256,
            settings=self.measured.survey.settings(
                energy=self.measured.energy,
                centered=self.measured.centered,
                align=self.align,
                allow_unstable=self.allow_unstable,
                budget=budget.kind,
                share=budget.share,
            ),
            mean_layer_utilization=self.measured.mean_utilization,
            units=tuple(
                self._entry(unit, cuts.get(unit.name, DENSE)) for unit in self.measured.survey.units
            ),
            predicted_error=allocation.error,
            bound=allocation.bound,
        )

    def _entry(self, unit: Unit, cut: Cut) -> PlanEntry:
        site, ranks = unit.sites[0], self.measured.ranks[unit.name]
        entry = PlanEntry(
            name=unit.name,
            kind=unit.kind,
            sites=tuple(site.name for site in unit.sites),
            form=None,
            rank=None,
            kept=self.kept[unit.name],
            parameters=site.parameters,
            factorized_parameters=site.parameters,
            k_in=ranks.k_in,
            k_out=ranks.k_out,
        )
        if self.kept[unit.name] is not None:
            return entry
        if cut.form is None:
            return replace(
                entry,
                form=REFIT if refittable(self.model, unit) else None,
                kept="the budget is better spent on it than elsewhere",
            )
        tail = self.curves[unit.name].tails["pair" if cut.form == "shared" else cut.form]
        left = float(tail[min(cut.rank, len(tail) - 1)])  # shared, it may exceed the unit's own
        name = cut.form
        if name == "pair":
            name = "centered" if site.centers else "optimal"
        return replace(
            entry,
            form=name,
            rank=cut.rank,
            factorized_parameters=_parameters(unit, cut),
            expected_relative_error=math.sqrt(left / tail[0]) if tail[0] > 0 else 0.0,
            sensitivity=weighing(self.curves[unit.name], self.probes[unit.name]) * float(tail[0]),
            shares=cut.shares,
            scale=cut.scale,
        )


def free_units(measured: Measured, allow_unstable: bool) -> list[Unit]:
    """The units that nothing keeps as they are."""
    return [
        unit
        for unit in measured.survey.units
        if kept_reason(unit, measured.ranks[unit.name], allow_unstable) is None
    ]


def plan_budget(
    measured: Measured,
    budget: Budget,
    data: Any,
    run: Run,
    *,
    align: int = 8,
    allow_unstable: bool = False,
    progress: Progress = silent,
) -> Plan:
    """The plan for a budget, from data as in `collect`."""
    survey = measured.survey
    source = open_data(data, survey.model.inputs, run)
    rows = rows_of_data(survey.model, source, run)
    planner = Planner(
        measured, source, run, rows, align=align, allow_unstable=allow_unstable, progress=progress
    )
    return planner.plan(budget)


def _parameters(unit: Unit, cut: Cut) -> int:
    """What a unit keeps; a shared first factor counts with the first that has it."""
    site = unit.sites[0]
    if cut.form != "shared":
        assert cut.form is not None
        return FORMS[cut.form].parameters(site, cut.rank)
    first = site.d_in * cut.rank if cut.shares[0] == unit.name else 0
    return first + cut.rank * site.d_out

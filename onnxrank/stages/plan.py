"""Plan: form and rank of every unit at one energy, with the expected error. Nothing is written."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from onnxrank.errors import PlanError
from onnxrank.graph.model import Model, load
from onnxrank.graph.sites import Selection, Unit
from onnxrank.graph.weights import weight_matrix
from onnxrank.linalg.factorize import FORMS, pair_error
from onnxrank.moments import Moments
from onnxrank.results import Plan, PlanEntry
from onnxrank.runtime.session import Run
from onnxrank.stages.measure import Measured, measure, unit_moment
from onnxrank.stages.ranks import choose, small
from onnxrank.stages.survey import Progress, Source, silent

METHODS = ("auto", *FORMS)


def plan(
    model: Source,
    moments: Moments,
    *,
    energy: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    size: float | None = None,
    latency: float | None = None,
    data: Any = None,
    run: Run | None = None,
    method: str = "auto",
    align: int = 8,
    allow_unstable: bool = False,
    force: bool = False,
    centered: bool = False,
    selection: Selection | None = None,
    progress: Progress = silent,
) -> Plan:
    """Choose what to split, for one energy in every layer or for a budget of the whole model.

    Parameters
    ----------
    model : path, ModelProto or Model
        The model the moments belong to.
    moments : Moments
        From `collect`.
    energy : float, optional
        Share of the energy that the kept directions hold, in (0, 1]; 0.99 without a budget.
    params, macs, size, latency : float, optional
        Kept share of the model's parameters, multiply-accumulates, bytes or measured time of a
        batch; at most one.
    data : object, optional
        Calibration data as in `collect`. With them a budget goes to the layers that mean most to
        the outputs; without them every layer keeps the same share.
    run : Run, optional
        How to run `data`.
    method : str
        A factor form, or ``auto`` for the best available; for an energy.
    align : int
        Ranks of convolutions are multiples of this.
    allow_unstable : bool
        Split units whose rank has not settled.
    force : bool
        Split whatever can be split, even where it saves nothing; at full rank for energy 1.
    centered : bool
        Measure ranks about the mean.
    selection : Selection, optional
        Which nodes are meant; all by default.
    progress : callable
        Called with (done, total, what).

    Raises
    ------
    PlanError
        The method is unknown, the budget out of reach, or more than one goal is given.
    MomentsError
        The moments belong to another model, or lack a node.
    """
    shares = {"params": params, "macs": macs, "size": size, "latency": latency}
    given = [(kind, share) for kind, share in shares.items() if share is not None]
    if len(given) + (energy is not None) > 1:
        raise PlanError("more than one goal is given", hint="an energy or one budget")
    original = load(model)
    measured = measure(
        original,
        moments,
        energy=energy or 0.99,
        centered=centered,
        selection=selection,
        progress=progress,
    )
    if given:
        from onnxrank.stages.budget import Budget, plan_budget
        from onnxrank.stages.uniform import uniform

        budget = Budget(*given[0])
        if data is None:
            return uniform(measured, budget, measured.survey.rows(), align, allow_unstable)
        return plan_budget(
            measured,
            budget,
            data,
            run or Run(),
            align=align,
            allow_unstable=allow_unstable,
            progress=progress,
        )
    return decide(measured, method=method, align=align, allow_unstable=allow_unstable, force=force)


def decide(
    measured: Measured, *, method: str, align: int, allow_unstable: bool, force: bool
) -> Plan:
    """Choose from what was measured; see `plan`."""
    if method not in METHODS:
        raise PlanError(f"unknown method '{method}'", hint=f"one of {', '.join(METHODS)}")
    found = measured.survey
    slivers = small(found.units) if method == "auto" and not force else set()
    entries = [
        choose(
            unit,
            measured.ranks[unit.name],
            form="centered" if method == "auto" else method,
            align=align,
            allow_unstable=allow_unstable,
            force=force,
            full=force and measured.energy == 1,
            spare=unit.name in slivers,
        )
        for unit in found.units
    ]
    return Plan(
        model_sha256=found.model.sha256,
        settings=found.settings(
            energy=measured.energy,
            centered=measured.centered,
            method=method,
            align=align,
            allow_unstable=allow_unstable,
            force=force,
        ),
        mean_layer_utilization=measured.mean_utilization,
        units=tuple(
            _with_error(found.model, measured.moments, unit, entry)
            for unit, entry in zip(found.units, entries, strict=True)
        ),
    )


def _with_error(model: Model, moments: Moments, unit: Unit, entry: PlanEntry) -> PlanEntry:
    """The entry with the relative error of its output on the calibration rows."""
    if entry.form is None or entry.rank is None:
        return entry
    weight, moment = weight_matrix(model, unit.sites[0]), unit_moment(moments, unit)
    whole = float(np.sum(weight * (moment.gram @ weight)))
    lost = pair_error(weight, moment, entry.rank, entry.form, ranks_of(entry))
    return replace(entry, expected_relative_error=math.sqrt(lost / whole) if whole > 0 else 0.0)


def ranks_of(entry: PlanEntry) -> tuple[int, int] | None:
    """Ranks of both sides, where the plan knows them."""
    if entry.k_in is None or entry.k_out is None:
        return None
    return entry.k_in, entry.k_out

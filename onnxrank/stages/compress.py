"""Compress: the factors that a plan asks for, written into a copy of the model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import onnx

from onnxrank.errors import PlanError
from onnxrank.graph.model import Model, load
from onnxrank.graph.rewrite import rewrite
from onnxrank.graph.sites import Selection, Site, Unit
from onnxrank.graph.weights import weight_matrix
from onnxrank.linalg.factorize import Factors, factorize
from onnxrank.moments import Moments
from onnxrank.results import Plan, PlanEntry
from onnxrank.stages.measure import check_model, unit_moment
from onnxrank.stages.plan import ranks_of
from onnxrank.stages.survey import Progress, Source, silent, survey
from onnxrank.version import __version__


def compress(
    model: Source, plan: Plan, moments: Moments, *, progress: Progress = silent
) -> onnx.ModelProto:
    """Apply a plan. The same inputs give the same bytes.

    Parameters
    ----------
    model : path, ModelProto or Model
        The model that was planned for; it is left as it is.
    plan : Plan
        What to split, from `plan` or a file.
    moments : Moments
        What the factors are fitted to.
    progress : callable
        Called with (done, total, what).

    Returns
    -------
    ModelProto
        Same inputs and outputs; with provenance in its metadata.

    Raises
    ------
    PlanError
        The plan belongs to another model, or asks for what it does not have.
    """
    original = load(model)
    check_model(original, moments)
    if plan.model_sha256 != original.sha256:
        raise PlanError("this plan belongs to another model", hint=f"plan {original.name} again")
    found = survey(original, _selection(plan))
    units = {unit.name: unit for unit in found.units}
    chosen = [(_unit(units, entry, original), entry) for entry in plan.split]

    def pairs() -> Iterator[tuple[Site, Factors]]:
        for done, (unit, entry) in enumerate(chosen):
            progress(done, len(chosen), "factorizing")
            factors = _factors(original, unit, entry, moments)
            yield from ((site, factors) for site in unit.sites)

    return rewrite(original, pairs(), provenance(original, plan, moments))


def _selection(plan: Plan) -> Selection:
    """The nodes that were meant when the plan was made; they settle which sites make a unit."""
    include, exclude = (plan.settings.get(key) or [] for key in ("include", "exclude"))
    assert isinstance(include, list) and isinstance(exclude, list)
    return Selection(tuple(include), tuple(exclude))


def provenance(model: Model, plan: Plan, moments: Moments) -> dict[str, str]:
    """What a reader of the written model can know about its making; no clock, no paths."""
    data = moments.data
    settings = json.dumps(dict(plan.settings), sort_keys=True)
    kept = plan.mean_layer_utilization
    return {
        "onnxrank.version": __version__,
        "onnxrank.source_sha256": model.sha256,
        "onnxrank.settings": settings,
        "onnxrank.data": json.dumps({"source": data.source, "samples": data.samples}),
        "onnxrank.mean_layer_utilization": "" if kept is None else f"{kept:.6f}",
    }


def _unit(units: dict[str, Unit], entry: PlanEntry, model: Model) -> Unit:
    where = f"plan for {model.name}"
    if entry.name not in units:
        raise PlanError(f"the model has no unit '{entry.name}'", where=where)
    unit = units[entry.name]
    if tuple(site.name for site in unit.sites) != entry.sites:
        raise PlanError(f"unit '{entry.name}' has other sites than planned", where=where)
    return unit


def _factors(model: Model, unit: Unit, entry: PlanEntry, moments: Moments) -> Factors:
    full = unit.sites[0].full_rank
    if entry.form is None or entry.rank is None or not 1 <= entry.rank <= full:
        raise PlanError(f"rank {entry.rank} of unit '{entry.name}' is not in 1 to {full}")
    weight = weight_matrix(model, unit.sites[0])
    return factorize(weight, unit_moment(moments, unit), entry.rank, entry.form, ranks_of(entry))

"""Compress: the factors that a plan asks for, written into a copy of the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx

from onnxrank.errors import PlanError
from onnxrank.graph.model import Model, load
from onnxrank.graph.override import override
from onnxrank.graph.rewrite import rewrite
from onnxrank.graph.sites import Selection, Site
from onnxrank.linalg.factorize import Factors
from onnxrank.moments import Moments
from onnxrank.results import Plan
from onnxrank.runtime.data import open_data
from onnxrank.runtime.replay import Replay
from onnxrank.runtime.session import Run
from onnxrank.stages.compensate import Task, affordable, compensate
from onnxrank.stages.measure import check_model
from onnxrank.stages.survey import Progress, Source, silent, survey
from onnxrank.stages.tasks import refits, tasks
from onnxrank.version import __version__


def compress(
    model: Source,
    plan: Plan,
    moments: Moments,
    factors: Mapping[str, Factors] | None = None,
    *,
    data: Any = None,
    run: Run | None = None,
    progress: Progress = silent,
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
    factors : mapping of str to Factors, optional
        By unit name, where they were fitted otherwise.
    data : object, optional
        Calibration data as in `collect`: with them, every layer is fitted to what the compressed
        ones before it give (method: section 6).
    run : Run, optional
        How to run `data`.
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
    if factors is None and data is not None:
        chosen = [*tasks(original, units, plan, moments), *refits(original, units, plan)]
        factors = _compensated(original, chosen, data, run or Run(), progress)
    if factors is None:
        pairs = _plain(tasks(original, units, plan, moments), len(plan.split), progress)
    else:
        pairs = ((s, factors[n]) for n, u in units.items() if n in factors for s in u.sites)
    return rewrite(original, pairs, provenance(original, plan, moments))


def _compensated(
    model: Model, chosen: list[Task], data: Any, run: Run, progress: Progress
) -> dict[str, Factors]:
    sites = [site for task in chosen for unit in task.block.units for site in unit.sites]
    replay = Replay(override(model, sites), run)
    batches = affordable(replay, open_data(data, model.inputs, run), run)
    return compensate(model, replay, chosen, batches, run, progress=progress)


def _plain(
    chosen: Iterable[Task], count: int, progress: Progress
) -> Iterator[tuple[Site, Factors]]:
    """One block at a time, so that the factors need not all be in memory."""
    done = 0
    for task in chosen:
        progress(done, count, "factorizing")
        found = task.block.split(task.plain)
        for unit in task.block.units:
            done += 1
            yield from ((site, found[unit.name]) for site in unit.sites)


def _selection(plan: Plan) -> Selection:
    """The nodes that were meant when the plan was made; they settle which sites make a unit."""
    include, exclude = (plan.settings.get(key) or [] for key in ("include", "exclude"))
    assert isinstance(include, list) and isinstance(exclude, list)
    quantized, overridable = (bool(plan.settings.get(k)) for k in ("quantized", "overridable"))
    return Selection(tuple(include), tuple(exclude), quantized, overridable)


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

"""Deliver: everything between a model and a smaller one in its place, verified and compared."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxrank.graph.files import check_output, staged, verify
from onnxrank.graph.model import Model, load
from onnxrank.graph.sites import Selection
from onnxrank.results import Comparison, Plan, Report
from onnxrank.runtime.data import DataSource, Preprocess, holdout, open_data
from onnxrank.runtime.evaluate import check_runs
from onnxrank.runtime.session import Run
from onnxrank.stages.analyze import report
from onnxrank.stages.collect import obtain
from onnxrank.stages.compare import compare
from onnxrank.stages.compress import compress
from onnxrank.stages.goal import Goal, Manner, Trial, meet, part_trial
from onnxrank.stages.inspect import described
from onnxrank.stages.measure import measure
from onnxrank.stages.survey import Progress, Source, Survey, silent, survey
from onnxrank.stages.work import rows_of_data

NOT_COMPARED = "not compared: moments hold no samples, give --eval DATA"
RANDOM = "calibrated on random data: the result is good for nothing but a test"
NOT_HELD_OUT = "compared on the calibration data: there are too few samples to hold some out"


def deliver(
    model: Source,
    output: str | os.PathLike[str],
    *,
    data: Any = None,
    moments: Any = None,
    evaluation: Any = None,
    goal: Goal | None = None,
    manner: Manner | None = None,
    centered: bool = False,
    dry_run: bool = False,
    run: Run | None = None,
    selection: Selection | None = None,
    preprocess: Preprocess | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure, plan, factorize, verify, compare, and write the result.

    Nothing is written if the plan splits nothing, or if anything fails.

    Parameters
    ----------
    model, output : path
        What is compressed, and where the result goes.
    data, moments : object
        What to measure on, or moments that were; both where moments are known and samples are
        needed besides. See `collect`.
    evaluation : object, optional
        Data to compare on; by default a part of `data` is kept out for that.
    goal : Goal, optional
        What is wanted; by default the smallest model whose outputs hold.
    manner : Manner, optional
        How.
    centered : bool
        Measure ranks about the mean.
    dry_run : bool
        Stop at the plan.
    run, selection, preprocess, progress
        See `collect`.

    Returns
    -------
    Report
        With the plan, and the comparison where there were data for it.
    """
    original, how = load(model), run or Run()
    wanted, by = goal or Goal(), manner or Manner()
    if data is None and wanted == Goal():
        wanted = Goal(energy=0.99)  # without samples nothing can be tried out
    if not dry_run:
        check_output(original, Path(output))
    surveyed = survey(original, selection or Selection())
    if not surveyed.sites:
        return replace(described(surveyed, surveyed.nothing), plan=_empty(surveyed))
    source, held, note = _parted(original, data, evaluation, how, preprocess)
    trial: Trial | None = None
    if source is not None and wanted.searches:
        source, trial = part_trial(source, held if evaluation is not None else None)
    known = obtain(original, source, moments, run=how, selection=selection, progress=progress)
    measured = measure(
        original,
        known.moments,
        energy=wanted.energy or 0.99,
        centered=centered,
        selection=selection,
        progress=progress,
    )
    rows = known.rows or ({} if source is None else rows_of_data(original, source, how))
    met = meet(wanted, by, measured, rows, source, trial, how, fits=not dry_run, progress=progress)
    plan = met.plan
    found = replace(
        report(measured, rows), settings=plan.settings, plan=plan, frontier=met.frontier
    )
    if dry_run or not plan.split:
        return replace(found, notes=(met.note,) if met.note else ())
    with staged(  # nothing else may hold the result: its memory goes once it is written
        original,
        compress(original, plan, known.moments, met.factors, progress=progress),
        Path(output),
    ) as path:
        verify(path, original)
        comparison = _compared(original, load(path), held, how, progress)
    notes = [text for text in (note, met.note) if text]
    if known.moments.data.meaningless:
        notes.append(RANDOM)
    return replace(found, comparison=comparison, notes=tuple(notes))


def _empty(surveyed: Survey) -> Plan:
    return Plan(surveyed.model.sha256, surveyed.settings(), None, ())


def _parted(
    model: Model, data: Any, evaluation: Any, run: Run, preprocess: Preprocess | None
) -> tuple[DataSource | None, DataSource | None, str]:
    """Data to calibrate with, data to compare on, and what to say about the latter."""
    source = None if data is None else open_data(data, model.inputs, run, preprocess)
    if evaluation is not None:
        return source, open_data(evaluation, model.inputs, run, preprocess), ""
    if source is None:
        return None, None, NOT_COMPARED
    rest, held = holdout(source)
    return rest, held or rest, "" if held else NOT_HELD_OUT


def _compared(
    original: Model, candidate: Model, held: DataSource | None, run: Run, progress: Progress
) -> Comparison | None:
    """Run both models; without data the candidate alone, to see that it runs."""
    if held is not None:
        return compare(original, candidate, held, run=run, progress=progress)
    check_runs(original, candidate, open_data("random:1", original.inputs, run), run)
    return None

"""Deliver: everything between a model and a smaller one in its place, verified and compared."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxrank.graph.files import check_output, staged, verify
from onnxrank.graph.model import Model, load
from onnxrank.graph.sites import Selection
from onnxrank.results import Comparison, Report
from onnxrank.runtime.data import DataSource, Preprocess, holdout, open_data
from onnxrank.runtime.session import Run
from onnxrank.stages.analyze import report
from onnxrank.stages.collect import obtain
from onnxrank.stages.compare import compare
from onnxrank.stages.compress import compress
from onnxrank.stages.measure import measure
from onnxrank.stages.plan import decide
from onnxrank.stages.survey import Progress, Source, silent

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
    energy: float = 0.99,
    centered: bool = False,
    method: str = "auto",
    align: int = 8,
    allow_unstable: bool = False,
    force: bool = False,
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
        Either of them: what to measure on. See `collect`.
    evaluation : object, optional
        Data to compare on; by default a part of `data` is kept out for that.
    energy, centered, method, align, allow_unstable, force
        See `plan`.
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
    if not dry_run:
        check_output(original, Path(output))
    data, held, note = _parted(original, data, evaluation, how, preprocess)
    known = obtain(original, data, moments, run=how, selection=selection, progress=progress)
    measured = measure(
        original,
        known.moments,
        energy=energy,
        centered=centered,
        selection=selection,
        progress=progress,
    )
    plan = decide(measured, method=method, align=align, allow_unstable=allow_unstable, force=force)
    found = replace(report(measured, known.rows), settings=plan.settings, plan=plan)
    if dry_run or not plan.split:
        return found
    proto = compress(original, plan, known.moments, progress=progress)
    with staged(original, proto, Path(output)) as path:
        verify(path, original)
        comparison = _compared(original, load(path), held, how, progress)
    notes = [note] if note else []
    if known.moments.data.meaningless:
        notes.append(RANDOM)
    return replace(found, comparison=comparison, notes=tuple(notes))


def _parted(
    model: Model, data: Any, evaluation: Any, run: Run, preprocess: Preprocess | None
) -> tuple[Any, DataSource | None, str]:
    """Data to calibrate with, data to compare on, and what to say about the latter."""
    if evaluation is not None:
        return data, open_data(evaluation, model.inputs, run, preprocess), ""
    if data is None:
        return None, None, NOT_COMPARED
    rest, held = holdout(open_data(data, model.inputs, run, preprocess))
    return rest, held or rest, "" if held else NOT_HELD_OUT


def _compared(
    original: Model, candidate: Model, held: DataSource | None, run: Run, progress: Progress
) -> Comparison | None:
    """Run both models; on one random sample, only to see that they run, without data."""
    if held is not None:
        return compare(original, candidate, held, run=run, progress=progress)
    compare(original, candidate, "random:1", run=run, latency=False)
    return None

"""Compare: outputs, agreement, size and speed of two models on the same data."""

from __future__ import annotations

from typing import Any

from onnxrank.errors import DataError
from onnxrank.graph.cost import model_macs, parameters, stored_bytes
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import Model, load
from onnxrank.linalg.metrics import OutputStats, Top1
from onnxrank.results import Comparison, DataReport, OutputError, Pair
from onnxrank.runtime import evaluate, timing
from onnxrank.runtime.batch import Batch
from onnxrank.runtime.data import Preprocess, open_data
from onnxrank.runtime.session import Run
from onnxrank.stages.survey import Progress, Source, silent
from onnxrank.stages.work import rows_of_batch


def compare(
    original: Source,
    candidate: Source,
    data: Any,
    *,
    run: Run | None = None,
    preprocess: Preprocess | None = None,
    latency: bool = True,
    progress: Progress = silent,
) -> Comparison:
    """Run two models on the same data, and set what they give and cost side by side.

    Parameters
    ----------
    original, candidate : path, ModelProto or Model
        Models with the same inputs and outputs.
    data : object
        What both are run on; see `collect`.
    run : Run, optional
        How to run them.
    preprocess : Preprocess, optional
        How images become inputs.
    latency : bool
        Time a step of each, in turns.
    progress : callable
        Called with (done, total, what).

    Raises
    ------
    ModelError
        The models differ in their inputs or outputs, or one cannot be run.
    DataError
        The data do not fit.
    """
    first, second, how = load(original), load(candidate), run or Run()
    source = open_data(data, first.inputs, how, preprocess)
    found = evaluate.compare_outputs(first, second, source, how, progress)
    batch = next(source.batches())
    return Comparison(
        data=DataReport(
            source=source.description,
            samples=found.samples,
            rows=None,
            provider=found.provider,
            seconds=found.seconds,
            meaningless=source.meaningless,
        ),
        outputs={name: _error(stats) for name, stats in found.outputs.items()},
        skipped_outputs=dict(found.skipped),
        top1_agreement=found.top1.agreement if found.top1 else None,
        accuracy=_accuracy(found.top1),
        parameters=Pair.of(parameters(first), parameters(second)),
        macs=Pair.of(_macs(first, batch, how), _macs(second, batch, how)),
        bytes=Pair.of(stored_bytes(first), stored_bytes(second)),
        latency_ms=_latency(first, second, batch, how) if latency else Pair(None, None, None),
        latency_samples=batch.size if latency else None,
    )


def missed(
    comparison: Comparison,
    *,
    max_error: float | None = None,
    min_agreement: float | None = None,
    min_speedup: float | None = None,
) -> str | None:
    """Say which gate the candidate misses; None if it holds.

    Raises
    ------
    DataError
        There is nothing that the gate could be judged by.
    """
    if max_error is not None:
        if not comparison.outputs:
            raise DataError("no output can be compared, so --max-error cannot be judged")
        for name, error in comparison.outputs.items():
            if error.relative_l2 is None or not error.relative_l2 <= max_error:
                return f"output '{name}' is off by {error.relative_l2}, more than {max_error}"
    if min_agreement is not None:
        if comparison.top1_agreement is None:
            raise DataError("no output holds classes, so --min-agreement cannot be judged")
        if comparison.top1_agreement < min_agreement:
            return f"agreement is {comparison.top1_agreement:.4f}, less than {min_agreement}"
    if min_speedup is not None:
        before, after = comparison.latency_ms.original, comparison.latency_ms.candidate
        if before is None or not after:
            raise DataError("no latency was measured, so --min-speedup cannot be judged")
        if before / after < min_speedup:
            return f"the candidate is {before / after:.3f} times as fast, less than {min_speedup}"
    return None


def _error(stats: OutputStats) -> OutputError:
    return OutputError(stats.max_abs, stats.relative_l2, stats.cosine, stats.sqnr_db)


def _accuracy(top1: Top1 | None) -> Pair | None:
    if top1 is None or not top1.labelled:
        return None
    return Pair.of(top1.accuracy_reference, top1.accuracy_candidate)


def _macs(model: Model, batch: Batch, run: Run) -> int | None:
    sites, _ = find_sites(model)
    return model_macs(sites, rows_of_batch(model, sites, batch, run))


def _latency(original: Model, candidate: Model, batch: Batch, run: Run) -> Pair:
    return Pair(*timing.latency(original, candidate, batch.feeds, run))

"""Evaluate: run two models over the same data, batch by batch, and compare what comes out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxrank.errors import DataError, ModelError
from onnxrank.graph.model import Model
from onnxrank.linalg.metrics import OutputStats, Top1
from onnxrank.runtime.batch import Batch, DataSource
from onnxrank.runtime.collect import Progress
from onnxrank.runtime.session import Run, execute, open_session, provider_of

if TYPE_CHECKING:
    import onnxruntime as ort


@dataclass(frozen=True)
class OutputComparison:
    """How far a candidate's outputs are from the original's.

    Attributes
    ----------
    outputs : mapping of str to OutputStats
        By output name.
    skipped : mapping of str to str
        Outputs that were not compared, with the reason.
    classes : str or None
        The output taken for class scores: the first of floats along [samples, classes] whose rows
        are no unit vectors (those are embeddings).
    top1 : Top1 or None
        Agreement of the classes, and accuracies if there were labels.
    samples : int
        Samples that were run.
    seconds : float
        Wall time.
    provider : str
        ``cpu`` or ``cuda``.
    """

    outputs: Mapping[str, OutputStats]
    skipped: Mapping[str, str]
    classes: str | None
    top1: Top1 | None
    samples: int
    seconds: float
    provider: str


def run_outputs(
    model: Model, source: DataSource, run: Run, session: ort.InferenceSession | None = None
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Run a model over data: each batch with its outputs by name."""
    session = session or open_session(model.proto, model.folder, run, name=model.name)
    names = [info.name for info in model.outputs]
    for batch in source.batches():
        yield batch, outputs_of(session, names, batch)


def outputs_of(session: ort.InferenceSession, names: Sequence[str], batch: Batch) -> dict[str, Any]:
    """Outputs of one batch by name."""
    values = execute(session, names, batch.feeds, where=batch.where)
    return dict(zip(names, values, strict=True))


def check_runs(original: Model, candidate: Model, source: DataSource, run: Run) -> None:
    """Run a candidate on the first batch, to see that it can take the original's place.

    Raises
    ------
    ModelError
        If the models differ in their inputs or outputs, or the candidate cannot be run.
    """
    _check_interface(original, candidate)
    next(run_outputs(candidate, source, run))


def compare_outputs(
    original: Model,
    candidate: Model,
    source: DataSource,
    run: Run,
    progress: Progress | None = None,
) -> OutputComparison:
    """Run both models over the same data and compare every output.

    Raises
    ------
    ModelError
        If the models differ in their inputs, outputs or output shapes, or one cannot be run.
    DataError
        If data do not fit, or labels do not fit the classes.
    """
    began = time.monotonic()
    _check_interface(original, candidate)
    sessions = [open_session(m.proto, m.folder, run, name=m.name) for m in (original, candidate)]
    names = [info.name for info in original.outputs]
    found = Differences()
    samples = 0
    for batch in source.batches():
        reference, other = (outputs_of(session, names, batch) for session in sessions)
        for name in names:
            found.add(name, reference.pop(name), other.pop(name), batch)
        samples += batch.size
        if progress is not None:
            progress(samples, source.samples, "comparing")
    return OutputComparison(
        outputs=found.outputs,
        skipped=found.skipped,
        classes=found.classes,
        top1=found.top1,
        samples=samples,
        seconds=time.monotonic() - began,
        provider=provider_of(sessions[1]),
    )


@dataclass
class Differences:
    """What the batches so far gave."""

    outputs: dict[str, OutputStats] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    classes: str | None = None
    top1: Top1 | None = None

    def add(self, name: str, a: Any, b: Any, batch: Batch) -> None:
        """Compare one output of a batch."""
        classes = _classes(a)
        if classes is not None and classes == _classes(b):
            a, b = _scores(a, classes), _scores(b, classes)
        pairs = _pairs(a, b)
        if isinstance(pairs, str):
            self.skipped[name] = pairs
            return
        total = self.outputs.get(name, OutputStats())
        for first, second in pairs:
            if first.shape != second.shape:
                raise ModelError(
                    f"output {name!r} has shape {list(first.shape)} in the original, "
                    f"{list(second.shape)} in the candidate",
                    where=batch.where,
                )
            total += OutputStats.of(first, second)
        self.outputs[name] = total
        if not isinstance(a, list):
            self._add_classes(name, *pairs[0], batch, classes)

    def _add_classes(
        self,
        name: str,
        a: NDArray[Any],
        b: NDArray[Any],
        batch: Batch,
        classes: list[Any] | None,
    ) -> None:
        if self.classes not in (None, name) or name in self.embeddings:
            return
        if a.dtype.kind != "f" or a.ndim != 2 or a.shape[1] < 2:
            return
        if self.classes is None and _unit(a):
            self.embeddings.add(name)
            return
        self.classes = name
        self.top1 = (self.top1 or Top1()) + Top1.of(a, b, _labels(batch, classes))


def _labels(batch: Batch, classes: list[Any] | None) -> NDArray[np.intp] | None:
    """Position among the scores of each sample's label."""
    if batch.labels is None:
        return None
    labels = np.asarray(batch.labels)
    if labels.size != batch.size or not (classes or labels.dtype.kind in "iub"):
        raise DataError(
            f"labels of type {labels.dtype} and shape {list(labels.shape)} are no class numbers, "
            f"one for each of {batch.size} samples",
            where=batch.where,
        )
    if classes is None:
        return labels.reshape(-1).astype(np.intp)
    places = {name: place for place, name in enumerate(classes)}
    return np.array([places.get(label, -1) for label in labels.reshape(-1).tolist()])


def _unit(rows: NDArray[Any]) -> bool:
    """Whether rows are unit vectors of either sign: embeddings, no scores."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    return bool((rows < 0).any() and np.allclose(norms, 1, atol=1e-2))


def _pairs(a: Any, b: Any) -> list[tuple[NDArray[Any], NDArray[Any]]] | str:
    """Arrays to compare, or why there are none."""
    if a is None or b is None:
        return "an optional output that is empty"
    firsts, seconds = (value if isinstance(value, list) else [value] for value in (a, b))
    if not all(isinstance(value, np.ndarray) for value in (*firsts, *seconds)):
        return "neither tensors nor class scores"
    if any(value.dtype.kind in "OSU" for value in (*firsts, *seconds)):
        return "text"
    if len(firsts) != len(seconds):
        return "sequences of different lengths"
    return [(_plain(x), _plain(y)) for x, y in zip(firsts, seconds, strict=True)]


def _plain(value: NDArray[Any]) -> NDArray[Any]:
    """Give bfloat16 a type that numpy knows."""
    return value.astype(np.float32) if value.dtype == ml_dtypes.bfloat16 else value


def _classes(value: Any) -> list[Any] | None:
    """Return the classes of a sequence of maps from class to score; None for anything else."""
    if not (isinstance(value, list) and value and all(isinstance(v, dict) for v in value)):
        return None
    classes = sorted(value[0])
    return classes if all(sorted(v) == classes for v in value) else None


def _scores(maps: list[dict[Any, float]], classes: list[Any]) -> NDArray[np.float32]:
    """Along [samples, classes]."""
    return np.array([[scores[name] for name in classes] for scores in maps], np.float32)


def _check_interface(original: Model, candidate: Model) -> None:
    """Raise unless a candidate takes and gives what the original does."""
    for kind in ("inputs", "outputs"):
        wanted, got = ({i.name for i in getattr(m, kind)} for m in (original, candidate))
        if kind == "inputs":
            got -= {i.name for i in candidate.inputs if i.optional}
        if (got - wanted) or (kind == "outputs" and wanted - got):
            raise ModelError(
                f"its {kind} are {sorted(got)}, those of {original.name} are {sorted(wanted)}",
                where=candidate.name,
            )

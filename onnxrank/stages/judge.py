"""Judge: what a candidate loses on samples that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxrank.runtime.batch import Batch
from onnxrank.runtime.evaluate import Differences
from onnxrank.runtime.replay import Replay, Values


@dataclass(frozen=True)
class Loss:
    """What is lost against the original.

    Attributes
    ----------
    kind : str
        ``accuracy`` where there are labels, else ``agreement`` of the classes, else ``error``.
    value : float
        Accuracy lost, share of samples that change class, or largest relative error of an output.
    """

    kind: str
    value: float


class Judge:
    """Samples with the original's outputs, ready to be compared with a candidate's.

    Parameters
    ----------
    replay : Replay
        The model with its weights as inputs.
    batches : iterable of Batch
        Samples; their state before the first layer is kept.
    labelled : bool
        Judge by accuracy where there are labels.
    """

    def __init__(self, replay: Replay, batches: Iterable[Batch], *, labelled: bool = True) -> None:
        self._replay, self._labelled = replay, labelled
        self._batches: list[tuple[Batch, Values, Values]] = []
        for batch in batches:
            start = replay.start(batch.feeds)
            self._batches.append((batch, start, replay.finish(1, start)))

    @property
    def samples(self) -> int:
        """How many samples are judged on."""
        return sum(batch.size for batch, _, _ in self._batches)

    def loss(self, feeds: Mapping[str, NDArray[Any]]) -> Loss:
        """What weights and shifts fed to the model lose."""
        found = Differences()
        for batch, start, reference in self._batches:
            outputs = self._replay.finish(1, start, feeds)
            for name, value in reference.items():
                found.add(name, value, outputs[name], batch)
        top1 = found.top1
        if top1 is not None and top1.labelled and self._labelled:
            return Loss("accuracy", float(top1.accuracy_reference - top1.accuracy_candidate))
        if top1 is not None:
            return Loss("agreement", float(1 - top1.agreement))
        errors = [stats.relative_l2 for stats in found.outputs.values()]
        return Loss("error", max((e for e in errors if e is not None), default=0.0))

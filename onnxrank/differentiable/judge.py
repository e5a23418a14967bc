"""Judge checkpoints: in onnxruntime, on samples held out, with constants as they are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from onnxrank.differentiable.factors import exposed, rounded
from onnxrank.differentiable.losses import Objective
from onnxrank.differentiable.records import Checkpoint
from onnxrank.errors import ModelError
from onnxrank.graph.model import Model
from onnxrank.linalg.metrics import Top1
from onnxrank.runtime.batch import DataSource
from onnxrank.runtime.evaluate import Differences, run_outputs
from onnxrank.runtime.session import Run, execute, open_session

Arrays = Mapping[str, NDArray[Any]]


class Judge:
    """Knows the best factors so far.

    Parameters
    ----------
    original, candidate : Model
    start : mapping of str to ndarray
        The candidate's factors, which are judged first.
    objective : Objective
        The loss.
    held : DataSource
        What is judged on.
    run : Run
        How to run both.
    """

    def __init__(
        self,
        original: Model,
        candidate: Model,
        start: Arrays,
        objective: Objective,
        held: DataSource,
        run: Run,
    ) -> None:
        self._candidate, self._objective = candidate, objective
        self._batches = list(run_outputs(original, held, run))
        self._session = open_session(
            exposed(candidate, start), candidate.folder, run, name=candidate.name
        )
        self._names = [info.name for info in original.outputs]
        self.checkpoints: list[Checkpoint] = []
        self.chosen: int | None = None
        """Step of the best checkpoint, if it is better than the start."""
        self.best, self._lowest = start, math.inf

    def __call__(self, step: int, factors: Arrays) -> float:
        """Judge factors after some steps: their loss, infinite where it is no number."""
        try:
            stored = rounded(self._candidate, factors)
        except ModelError:  # beyond what their type holds, or no numbers any more
            self.checkpoints.append(Checkpoint(step, None, None, None))
            return math.inf
        found = self._run(step, stored)
        loss = math.inf if found.loss is None else found.loss
        if not self.checkpoints:
            self._lowest = loss
        elif loss < self._lowest and self._keeps(found):
            self.chosen, self.best, self._lowest = step, stored, loss
        self.checkpoints.append(found)
        return loss

    def _run(self, step: int, stored: Arrays) -> Checkpoint:
        total, samples = 0.0, 0
        differences = Differences()
        for batch, wanted in self._batches:
            values = execute(
                self._session, self._names, {**batch.feeds, **stored}, where=batch.where
            )
            given = dict(zip(self._names, values, strict=True))
            tensors = {
                name: torch.as_tensor(given[name].astype("float32"))
                for name in self._objective.outputs
            }
            loss = float(self._objective(tensors, wanted, batch.labels))
            total, samples = total + loss * batch.size, samples + batch.size
            if self._objective.classes is not None:
                name = self._objective.classes
                differences.add(name, wanted[name], given[name], batch)
        return _checkpoint(step, total / samples, differences.top1)

    def _keeps(self, found: Checkpoint) -> bool:
        """Whether a checkpoint has no fewer classes right than the start."""
        kind = "accuracy" if self._objective.labels else "agreement"
        return (getattr(found, kind) or 0) >= (getattr(self.checkpoints[0], kind) or 0)


def _checkpoint(step: int, loss: float, top1: Top1 | None) -> Checkpoint:
    if top1 is None:
        return Checkpoint(step, _finite(loss), None, None)
    accuracy = top1.accuracy_candidate if top1.labelled else None
    return Checkpoint(step, _finite(loss), top1.agreement, accuracy)


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None

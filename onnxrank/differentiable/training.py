"""Train: the original teaches in onnxruntime, the candidate learns in torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxrank.differentiable.descent import descend
from onnxrank.differentiable.factors import factors
from onnxrank.differentiable.judge import Judge
from onnxrank.differentiable.losses import Objective, objective
from onnxrank.differentiable.network import Network
from onnxrank.differentiable.pool import fill
from onnxrank.differentiable.records import Checkpoint
from onnxrank.errors import ModelError
from onnxrank.graph.model import Model
from onnxrank.linalg.metrics import OutputStats
from onnxrank.runtime.batch import Batch, DataSource
from onnxrank.runtime.evaluate import outputs_of
from onnxrank.runtime.session import Run, open_session, provider_for
from onnxrank.stages.survey import Progress

CHECKS = 10
"""How often the model is judged on the way."""

# Relative error that torch may have against onnxruntime, in single and in half precision.
_SINGLE, _HALF = 1e-3, 5e-2


@dataclass(frozen=True, eq=False)
class Trained:
    """The best factors, and how they came to be.

    Attributes
    ----------
    constants : mapping of str to ndarray
        As the model stores them; those it had before where `chosen` is None.
    checkpoints : list of Checkpoint
    chosen : int or None
    samples : int
        That were trained on.
    loss, device : str
    seconds : float
    """

    constants: Mapping[str, NDArray[Any]]
    checkpoints: list[Checkpoint]
    chosen: int | None
    samples: int
    loss: str
    device: str
    seconds: float


def train(
    original: Model,
    candidate: Model,
    source: DataSource,
    held: DataSource,
    run: Run,
    *,
    steps: int,
    rate: float,
    labels: bool,
    progress: Progress,
) -> Trained:
    """Train the candidate's factors end to end; see `onnxrank.finetune.finetune`."""
    began = time.monotonic()
    if run.threads:
        torch.set_num_threads(run.threads)
    start = factors(candidate)
    pool = fill(candidate, source, run.memory)
    lesson = _Lesson(original, candidate, start, source, run, labels)
    judge = Judge(original, candidate, start, lesson.objective, held, run)
    batches = pool.steps(run.batch_size, run.seed)

    def loss(values: Mapping[str, Tensor]) -> None:
        step = next(batches)
        total = sum(batch.size for batch in step)
        for batch in step:
            torch.autograd.backward(lesson.loss(batch, values) * (batch.size / total))
        progress(next(done), steps, "training")

    done = count(1)

    def check(step: int, values: Mapping[str, Tensor]) -> float:
        return judge(step, {name: value.cpu().numpy() for name, value in values.items()})

    descend(lesson.values, loss, steps, rate, check, CHECKS)
    kind = "labels" if labels else "classes" if lesson.objective.classes else "outputs"
    return Trained(
        judge.best,
        judge.checkpoints,
        judge.chosen,
        pool.samples,
        kind,
        lesson.network.device.type,
        time.monotonic() - began,
    )


class _Lesson:
    """A batch, what the original gives for it, and what the candidate makes of it."""

    def __init__(
        self,
        original: Model,
        candidate: Model,
        start: Mapping[str, NDArray[Any]],
        source: DataSource,
        run: Run,
        labels: bool,
    ) -> None:
        self._names = [info.name for info in original.outputs]
        self._teacher = open_session(original.proto, original.folder, run, name=original.name)
        batch = next(iter(source.batches()))
        self.objective: Objective = objective(self._teach(batch), batch, labels=labels)
        cuda = provider_for(run) == "cuda" and torch.cuda.is_available()
        device = "cuda" if cuda else "cpu"
        self.network = Network(candidate, start, self.objective.outputs, device)
        self.values = {
            name: torch.from_numpy(np.array(value, np.float32)).to(device)
            for name, value in start.items()
        }
        self._check(candidate, batch, run)

    def loss(self, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch."""
        wanted = {} if self.objective.labels else self._teach(batch)
        return self.objective(self.network(batch.feeds, values), wanted, batch.labels)

    def _teach(self, batch: Batch) -> dict[str, Any]:
        return outputs_of(self._teacher, self._names, batch)

    def _check(self, candidate: Model, batch: Batch, run: Run) -> None:
        """Refuse to train another function than the one that onnxruntime computes."""
        session = open_session(candidate.proto, candidate.folder, run, name=candidate.name)
        with torch.no_grad():
            given = self.network(batch.feeds, self.values)
        wanted = outputs_of(session, self.objective.outputs, batch)
        for name, value in wanted.items():
            half = value.dtype.itemsize < 4 or _stores_half(candidate)
            reference, found = value.astype(np.float32), given[name].cpu().numpy()
            if reference.shape != found.shape:
                raise _differs(candidate, name, f"the shape {list(found.shape)}")
            error = OutputStats.of(reference, found).relative_l2
            if not error <= (_HALF if half else _SINGLE):
                raise _differs(candidate, name, f"a relative error of {error:.2g}")


def _stores_half(model: Model) -> bool:
    halves = (10, 16)  # float16, bfloat16
    return any(tensor.data_type in halves for tensor in model.proto.graph.initializer)


def _differs(model: Model, name: str, how: str) -> ModelError:
    return ModelError(
        f"torch computes output '{name}' with {how} against onnxruntime, so it is not trained",
        where=model.name,
        hint="train it where it was exported from, and report its operators",
    )

"""What is learned: the original's class probabilities, its outputs, or labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxrank.errors import DataError, ModelError
from onnxrank.runtime.batch import Batch
from onnxrank.runtime.evaluate import Differences

# Of an output that is all zero, no share of its size can be lost.
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Objective:
    """A loss by what the outputs are.

    Attributes
    ----------
    outputs : tuple of str
        The outputs that count.
    classes : str or None
        The one that holds class scores, as `compare` takes it.
    probabilities : bool
        Those scores are probabilities already.
    labels : bool
        The classes are learned from labels, and nothing else counts.
    """

    outputs: tuple[str, ...]
    classes: str | None
    probabilities: bool
    labels: bool

    def __call__(
        self, given: Mapping[str, Tensor], wanted: Mapping[str, Any], labels: Any
    ) -> Tensor:
        """The loss of a batch, a mean over its samples.

        Parameters
        ----------
        given : mapping of str to Tensor
            The candidate's outputs.
        wanted : mapping of str to array
            The original's; not needed for labels.
        labels : array or None
            Class numbers.
        """
        if self.labels:
            assert self.classes is not None
            scores = self._log(given[self.classes])
            right = torch.as_tensor(np.asarray(labels).reshape(-1).astype(np.int64))
            return F.nll_loss(scores, right.to(scores.device))
        losses = [self._distance(name, given[name], wanted[name]) for name in self.outputs]
        return torch.stack(losses).mean()

    def _distance(self, name: str, given: Tensor, value: Any) -> Tensor:
        wanted = torch.as_tensor(np.array(value, np.float32)).to(given)
        if name != self.classes:
            return (given - wanted).square().sum() / wanted.square().sum().clamp_min(_SMALLEST)
        scores, target = self._log(given), self._log(wanted)
        return F.kl_div(scores, target, reduction="batchmean", log_target=True)

    def _log(self, scores: Tensor) -> Tensor:
        if self.probabilities:
            return scores.clamp_min(_SMALLEST).log()
        return scores.log_softmax(-1)


def objective(outputs: Mapping[str, Any], batch: Batch, *, labels: bool) -> Objective:
    """Tell the loss from what the original gives on a batch.

    Raises
    ------
    ModelError
        No output is a tensor of floats, or for labels none holds class scores.
    DataError
        Labels are wanted and there are none, or they are no class numbers.
    """
    found = Differences()
    for name, value in outputs.items():
        found.add(name, value, value, batch)
    floats = {
        name: np.asarray(value)
        for name, value in outputs.items()
        if isinstance(value, np.ndarray)
        and (value.dtype.kind == "f" or "float" in str(value.dtype))
    }
    classes = found.classes if found.classes in floats else None
    if not floats or (labels and classes is None):
        what = "no output holds class scores" if floats else "no output is a tensor of floats"
        raise ModelError(f"{what}, so there is nothing to learn")
    if labels and batch.labels is None:
        raise DataError(
            "there are no labels to learn from",
            where=batch.where,
            hint="add them as __label__, or leave --labels out",
        )
    if labels:
        assert classes is not None
        return Objective((classes,), classes, _probabilities(floats[classes]), True)
    probabilities = classes is not None and _probabilities(floats[classes])
    return Objective(tuple(floats), classes, probabilities, False)


def _probabilities(scores: np.ndarray[Any, Any]) -> bool:
    values = scores.astype(np.float64)
    return bool((values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-2))

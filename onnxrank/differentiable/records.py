"""What fine-tuning answers: how the model fared on the way, and what was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxrank.record import Record
from onnxrank.results import Comparison, DataReport, Setting


@dataclass(frozen=True)
class Checkpoint(Record):
    """The model after some steps, on the samples held out.

    Attributes
    ----------
    step : int
    loss : float or None
        What is trained for: divergence of the class probabilities, relative squared error, or
        cross entropy with labels; in onnxruntime, with constants as the model stores them.
    agreement, accuracy : float or None
        For classes; accuracy where there are labels.
    """

    step: int
    loss: float | None
    agreement: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Recovery(Record):
    """What training did to a factorized model.

    Attributes
    ----------
    data : DataReport
        What it was trained on.
    settings : mapping
    constants, parameters : int
        How many constants were trained, and their elements.
    checkpoints : tuple of Checkpoint
        The first before any step.
    chosen : int or None
        Step of the checkpoint that was written; None if none is better than the first.
    before, after : Comparison or None
        With the original, on other data than it was trained on.
    """

    SCHEMA: ClassVar[str] = "onnxrank.recovery/1"

    data: DataReport
    settings: Mapping[str, Setting]
    constants: int
    parameters: int
    checkpoints: tuple[Checkpoint, ...]
    chosen: int | None
    before: Comparison | None = None
    after: Comparison | None = None

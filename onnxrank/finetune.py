"""Finetune: a factorized model learns from the original, and is written if it is better for it.

Only the constants that onnxrank wrote are trained. Needs torch: the extra ``finetune``.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxrank.differentiable.factors import replaced
from onnxrank.differentiable.records import Recovery
from onnxrank.errors import DataError, OnnxRankError
from onnxrank.graph.files import check_output, staged, verify
from onnxrank.graph.model import Model, load
from onnxrank.results import DataReport
from onnxrank.runtime.data import Preprocess, holdout, open_data
from onnxrank.runtime.evaluate import check_runs
from onnxrank.runtime.session import Run
from onnxrank.stages.compare import compare
from onnxrank.stages.survey import Progress, silent


def finetune(
    original: str | os.PathLike[str] | Model,
    candidate: str | os.PathLike[str] | Model,
    output: str | os.PathLike[str],
    data: Any,
    *,
    evaluation: Any = None,
    steps: int = 300,
    rate: float = 0.001,
    labels: bool = False,
    run: Run | None = None,
    preprocess: Preprocess | None = None,
    progress: Progress = silent,
) -> Recovery:
    """Train the factors of a compressed model on the original's outputs, and write it.

    A part of the data is held out. Several times on the way the model is judged on it, in
    onnxruntime and with rounded constants; the checkpoint of the lowest loss is written, if its
    loss is lower than before training and no fewer of its classes are right.

    Parameters
    ----------
    original, candidate : path or Model
        The model that was compressed, and what became of it.
    output : path
        Where the result goes: the candidate with other factors, every other byte the same.
    data : object
        What to train on; see `collect`.
    evaluation : object, optional
        Data to compare on; by default the samples held out.
    steps : int
    rate : float
        Share of its size that a factor changes by in a step, at most about.
    labels : bool
        Learn the data's labels instead of the original's outputs.
    run, preprocess, progress
        See `collect`; `run.batch_size` are the samples of a step.

    Raises
    ------
    OnnxRankError
        torch is missing.
    ModelError
        The candidate has no factors, or torch computes it otherwise than onnxruntime.
    DataError
        The data do not fit, or are too few to hold some out.
    """
    _check_extra()
    first, second, how = load(original), load(candidate), run or Run()
    for model in (first, second):
        check_output(model, Path(output))
    source = open_data(data, first.inputs, how, preprocess)
    rest, held = holdout(source)
    if held is None:
        raise DataError(
            "there are too few samples to hold some out",
            where=source.description,
            hint="give some hundred",
        )
    others = held if evaluation is None else open_data(evaluation, first.inputs, how, preprocess)
    check_runs(first, second, rest, how)
    from onnxrank.differentiable.training import train

    trained = train(
        first, second, rest, held, how, steps=steps, rate=rate, labels=labels, progress=progress
    )
    found = Recovery(
        data=DataReport(
            rest.description,
            trained.samples,
            None,
            trained.device,
            trained.seconds,
            rest.meaningless,
        ),
        settings={"steps": steps, "rate": rate, "labels": labels, "seed": how.seed}
        | {"batch_size": how.batch_size, "loss": trained.loss},
        constants=len(trained.constants),
        parameters=sum(value.size for value in trained.constants.values()),
        checkpoints=tuple(trained.checkpoints),
        chosen=trained.chosen,
    )
    if trained.chosen is None:
        return found
    proto = replaced(second, trained.constants)
    with staged(second, proto, Path(output)) as path:
        verify(path, second)
        before, after = (
            compare(first, model, others, run=how, latency=False, progress=progress)
            for model in (second, load(path))
        )
    return replace(found, before=before, after=after)


def _check_extra() -> None:
    if importlib.util.find_spec("torch") is None:
        raise OnnxRankError(
            "fine-tuning needs torch, which is not installed",
            hint="pip install 'onnxrank[finetune]'",
        )

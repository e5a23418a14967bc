"""Collect: moments of every linear map's input, from one run over the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxrank.errors import ModelError
from onnxrank.graph.model import Model, load
from onnxrank.graph.sites import Selection
from onnxrank.moments import Moments
from onnxrank.runtime import collect as runtime
from onnxrank.runtime.collect import Checkpoint
from onnxrank.runtime.data import Preprocess, open_data
from onnxrank.runtime.session import Run
from onnxrank.stages.survey import Progress, Source, silent, survey
from onnxrank.stages.work import rows_of_data


def collect(
    model: Source,
    data: Any,
    *,
    run: Run | None = None,
    selection: Selection | None = None,
    preprocess: Preprocess | None = None,
    shard: tuple[int, int] | None = None,
    start: Moments | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Moments:
    """Run a model over data, and keep the second moments of what its linear maps read.

    Parameters
    ----------
    model : path, ModelProto or Model
        What is run.
    data : object
        A path, ``loader.py:function``, ``random:N``, arrays by input name, or an iterable of
        complete feeds.
    run : Run, optional
        How to run it.
    selection : Selection, optional
        Which nodes are meant; all by default.
    preprocess : Preprocess, optional
        How images become inputs.
    shard : (int, int), optional
        Only the i-th (from 1) of n parts of the data.
    start : Moments, optional
        Unfinished moments to go on from, or finished ones of other data to add to.
    checkpoint : Checkpoint, optional
        Saves unfinished moments every so often.
    progress : callable
        Called with (done, total, what).

    Raises
    ------
    DataError
        The data do not fit the model, or hold NaN or infinity.
    ModelError
        The model cannot be run, or has no linear map.
    """
    original, how = load(model), run or Run()
    found = survey(original, selection or Selection())
    if not found.sites:
        raise ModelError(
            "no node with a constant weight can be measured",
            where=original.name,
            hint="'inspect' says why",
        )
    source = open_data(data, original.inputs, how, preprocess)
    if shard is not None:
        source = source.shard(*shard)
    views = {site.view: site.d_in for site in found.sites}
    return runtime.collect(
        original,
        source,
        how,
        views=views,
        start=start,
        progress=progress,
        checkpoint=checkpoint,
    )


def resume(
    model: Source,
    data: Any,
    path: str | os.PathLike[str],
    *,
    progress: Progress = silent,
    **how: Any,
) -> Moments:
    """Collect into a file: what an interrupted call left in it is not run again.

    Parameters
    ----------
    model, data, progress, **how
        See `collect`.
    path : path
        Written every two minutes, and at the end; finished moments in it are replaced.
    """
    begun = Moments.load(path) if os.path.exists(path) else None
    found = collect(
        model,
        data,
        start=None if begun is None or begun.complete else begun,
        checkpoint=Checkpoint(lambda moments: moments.save(path)),
        progress=progress,
        **how,
    )
    found.save(path)
    return found


@dataclass(frozen=True, eq=False)
class Obtained:
    """A model with its moments; `rows` a sample by site, where there were data to count them."""

    model: Model
    moments: Moments
    rows: Mapping[str, float]


def obtain(
    model: Source,
    data: Any,
    moments: Moments | str | os.PathLike[str] | None,
    *,
    run: Run | None = None,
    selection: Selection | None = None,
    preprocess: Preprocess | None = None,
    progress: Progress = silent,
) -> Obtained:
    """Return the model with moments: read from a file if one is given, else collected."""
    original, how = load(model), run or Run()
    if moments is not None:
        known = moments if isinstance(moments, Moments) else Moments.load(moments)
        return Obtained(original, known, {})
    source = open_data(data, original.inputs, how, preprocess)
    found = collect(original, source, run=how, selection=selection, progress=progress)
    return Obtained(original, found, rows_of_data(original, source, how))

"""Sensitivity: what cutting one unit alone does to the model's outputs, by a few probes each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxrank.graph.sites import Unit
from onnxrank.linalg.factorize import Factors
from onnxrank.runtime.batch import Batch
from onnxrank.runtime.replay import Replay, Values
from onnxrank.stages.compensate import site_feeds
from onnxrank.stages.survey import Progress, silent


@dataclass(frozen=True)
class Probes:
    """Errors of the model's outputs with one unit cut to some ranks.

    Attributes
    ----------
    ranks : tuple of int
        Ascending.
    errors : tuple of float
        Squared error of all outputs over their squared norm, mean over the outputs.
    """

    ranks: tuple[int, ...]
    errors: tuple[float, ...]


def probe(
    replay: Replay,
    units: Sequence[Unit],
    ranks: Mapping[str, Sequence[int]],
    factors: Callable[[Unit, int], Factors],
    batches: Sequence[Batch],
    *,
    progress: Progress = silent,
) -> dict[str, Probes]:
    """Cut each unit alone to each of its ranks, and run the model from there to its outputs.

    Parameters
    ----------
    replay : Replay
        The model's segments.
    units : sequence of Unit
        What is probed.
    ranks : mapping of str to sequence of int
        By unit name.
    factors : callable
        The pair of a unit at a rank; best fitted to other rows than those of `batches`.
    batches : sequence of Batch
        What is run.
    progress : callable
        Called with (done, total, what).
    """
    first = _first_segments(replay, units)
    values = [replay.start(batch.feeds) for batch in batches]
    reference = [replay.finish(1, here) for here in values]
    found: dict[str, Probes] = {}
    for k in range(1, len(replay)):
        for unit in [u for u in units if first.get(u.name) == k]:
            progress(len(found), len(units), "probing sensitivity")
            errors = []
            for rank in ranks[unit.name]:
                feeds = site_feeds(replay, [unit], {unit.name: factors(unit, rank)})
                outputs = [replay.finish(k, here, feeds) for here in values]
                errors.append(output_error(reference, outputs))
            found[unit.name] = Probes(tuple(ranks[unit.name]), tuple(errors))
        values = [replay.advance(k, here) for here in values]
    progress(len(units), len(units), "probing sensitivity")
    return found


def _first_segments(replay: Replay, units: Sequence[Unit]) -> dict[str, int]:
    """The segment in which a unit's weight is first read."""
    owner = {site.name: unit.name for unit in units for site in unit.sites}
    first: dict[str, int] = {}
    for k, segment in enumerate(replay.cut.segments):
        for site in segment.sites:
            if site in owner:
                first.setdefault(owner[site], k)
    return first


def output_error(reference: Sequence[Values], candidate: Sequence[Values]) -> float:
    """Mean over the float outputs of squared error over squared norm."""
    shares = []
    for name, first in reference[0].items():
        if not isinstance(first, np.ndarray) or first.dtype.kind != "f":
            continue
        whole = sum(_square(batch[name]) for batch in reference)
        lost = sum(
            _square(there[name].astype(np.float64) - here[name])
            for here, there in zip(reference, candidate, strict=True)
        )
        shares.append(lost / whole if whole > 0 else float(lost > 0))
    return float(np.mean(shares)) if shares else 0.0


def _square(values: NDArray[np.generic]) -> float:
    flat = values.astype(np.float64).reshape(-1)
    return float(flat @ flat)

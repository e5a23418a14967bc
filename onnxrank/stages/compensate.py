"""Compensate: factors fitted, in the order of the graph, to what the compressed prefix gives."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxrank.graph.model import Model
from onnxrank.graph.residual import output_layout, stream
from onnxrank.graph.scopes import MAIN
from onnxrank.graph.sites import Site, Unit, View
from onnxrank.linalg.drift import Cut, Drift, compensated
from onnxrank.linalg.factorize import Factors
from onnxrank.linalg.gram import CrossMoment, SecondMoment
from onnxrank.linalg.layout import Layout, Patches, row_shape, rows, width
from onnxrank.runtime.batch import Batch, DataSource
from onnxrank.runtime.mask import rows_kept
from onnxrank.runtime.replay import Replay, Values, size
from onnxrank.runtime.session import Run
from onnxrank.stages.blocks import Block
from onnxrank.stages.draw import evenly
from onnxrank.stages.survey import Progress, silent

# Rows a dimension beyond which a fit gains nothing; narrow layers are cheap enough for more.
_ENOUGH, _PLENTY, _CHEAP = 64, 128, 1 << 16
# Bytes that may be kept alive between two layers.
_HOLD = 1 << 32
# What patches may take as rows at once, in bytes.
_PIECE = 1 << 27

# A tensor, and how it becomes rows.
Added = tuple[str, Layout]
Key = tuple[View, "Added | None"]


@dataclass(frozen=True, eq=False)
class Task:
    """A block to be cut: how, and its factors as fitted to the original's rows.

    Attributes
    ----------
    block : Block
        The units.
    cut : callable
        Gives factors of the block's weight in the metric of a covariance.
    rank : int
        Of the factors; 0 for a weight that stays dense.
    plain : Factors
        Of the block, before compensation.
    fixed : bool
        The plain factors are what is wanted.
    shifts : bool
        The output may be shifted.
    """

    block: Block
    cut: Cut
    rank: int
    plain: Factors
    fixed: bool = False
    shifts: bool = True

    @property
    def dense(self) -> bool:
        """Whether the weight stays in one piece."""
        return len(self.plain.parts) == 1

    @property
    def follows(self) -> bool:
        """Whether a fit can follow: one place of the main graph is served."""
        units = self.block.units
        return not self.fixed and all(alone(unit) for unit in units)


def alone(unit: Unit) -> bool:
    """Whether a weight serves one node, in the main graph."""
    return len(unit.sites) == 1 and unit.sites[0].scope == MAIN


@dataclass(eq=False)
class Stream:
    """One batch on its way through both networks."""

    batch: Batch
    original: Values
    compressed: Values


def compensate(
    model: Model,
    replay: Replay,
    tasks: Sequence[Task],
    batches: Sequence[Batch],
    run: Run,
    *,
    progress: Progress = silent,
) -> dict[str, Factors]:
    """Refit the factors of a plan, segment by segment, each batch running once through each.

    Parameters
    ----------
    model : Model
        The original.
    replay : Replay
        Its segments, with the weights of all sites as inputs.
    tasks : sequence of Task
        What is cut, and what stays dense but may be fitted anew. Blocks in bodies, or of several
        sites, stay as they are.
    batches : sequence of Batch
        The rows to fit to, in two folds.
    run : Run
        Mask and seed.
    progress : callable
        Called with (done, total, what).

    Returns
    -------
    dict of str to Factors
        By unit name; a dense unit is among them where the folds say that a fit helps.
    """
    factors: dict[str, Factors] = {}
    for task in tasks:
        if not task.dense:
            factors.update(task.block.split(task.plain))
    owner = {s.name: t for t in tasks for u in t.block.units for s in u.sites}
    streams = [Stream(batch, values, values) for batch, values in _start(replay, batches)]
    moved, seen = False, set[int]()
    for k in range(1, len(replay)):
        progress(k - 1, len(replay) - 1, "compensating")
        here = list(
            {id(t): t for s in replay.cut.segments[k].sites if (t := owner.get(s))}.values()
        )
        if moved:  # once: where its units first appear
            fresh = [task for task in here if id(task) not in seen]
            factors.update(_refit(model, fresh, streams, run))
        seen.update(id(task) for task in here)
        units = [u for task in here for u in task.block.units if u.name in factors]
        feeds = site_feeds(replay, units, factors)
        moved = moved or bool(feeds)
        for one in streams:
            _advance(replay, k, one, feeds)
    progress(len(replay) - 1, len(replay) - 1, "compensating")
    return factors


def affordable(replay: Replay, source: DataSource, run: Run) -> list[Batch]:
    """The batches that can be kept alive in both networks, as many of each fold at most.

    ``run.memory`` bounds them, or 4 GiB.
    """
    first = next(iter(source.batches()), None)
    if first is None:
        return []
    values = replay.start(first.feeds)
    each = size([values])
    for k in range(1, len(replay)):
        values = replay.advance(k, values)
        each = max(each, size([values]))
    most = (run.memory or _HOLD) // (2 * each + size([first.feeds]) + 1)
    return evenly(source.batches(), max(int(most // 2), 1))


def _start(replay: Replay, batches: Sequence[Batch]) -> Iterable[tuple[Batch, Values]]:
    for batch in batches:
        yield batch, replay.start(batch.feeds)


def _advance(replay: Replay, k: int, one: Stream, feeds: Mapping[str, NDArray[Any]]) -> None:
    same = one.original is one.compressed and not feeds
    before = one.compressed
    one.original = replay.advance(k, one.original)
    one.compressed = one.original if same else replay.advance(k, before, feeds)


def site_feeds(
    replay: Replay, units: Iterable[Unit], factors: Mapping[str, Factors]
) -> dict[str, NDArray[Any]]:
    """Weights and shifts that stand for factors, as inputs of the replayed model."""
    feeds: dict[str, NDArray[Any]] = {}
    for unit in units:
        found = factors[unit.name]
        product = found.product
        for site in unit.sites:
            shift = found.bias if site.name in replay.overridden.shifts else None
            feeds.update(replay.overridden.feeds(site.name, product, shift))
    return feeds


def _refit(
    model: Model, tasks: Sequence[Task], streams: Sequence[Stream], run: Run
) -> dict[str, Factors]:
    """New factors of the tasks of one segment; those that read one input share its moments."""
    found: dict[str, Factors] = {}
    known: dict[Key, tuple[Drift, Drift] | None] = {}
    for task in tasks:
        if not task.follows:
            continue
        site = task.block.site
        added = _added(model, site) if len(task.block.units) == 1 else None
        key = (site.view, added)
        if key not in known:
            known[key] = _drifts(site, added, streams, run)
        folds = known[key]
        if folds is None:
            continue
        weight = task.block.weight(model)
        fitted, ridge = compensated(weight, folds, task.rank, task.cut, shifts=task.shifts)
        if ridge is not None or not task.dense:
            found.update(task.block.split(fitted))
    return found


def _added(model: Model, site: Site) -> Added | None:
    """The stream that a site is added to, where its rows are in step."""
    tensor, layout = stream(model, site), output_layout(model, site)
    return None if tensor is None or layout is None else (tensor, layout)


def _drifts(
    site: Site, added: Added | None, streams: Sequence[Stream], run: Run
) -> tuple[Drift, Drift] | None:
    """The drift of what a site reads, by fold; None if a fold has no rows, or there is no drift."""
    if any(site.view.tensor not in one.original for one in streams):
        return None
    data = [_unpadded(site, one, run) for one in streams]
    wanted = max(_ENOUGH * site.d_in, min(_PLENTY * site.d_in, _CHEAP))
    share = min(1.0, wanted / max(sum(map(len, data)), 1))
    folds: list[Drift | None] = [None, None]
    for one, kept in zip(streams, data, strict=True):
        for drift in _drift(site, one, added, _drawn(site, one, kept, share, run)):
            before = folds[one.batch.fold]
            folds[one.batch.fold] = drift if before is None else before + drift
    first, second = folds
    return None if first is None or second is None else (first, second)


def _drift(site: Site, one: Stream, added: Added | None, keep: NDArray[np.intp]) -> Iterable[Drift]:
    """Moments of some rows of one batch, in pieces."""
    tensor, layout = site.view.tensor, site.view.layout
    before, after = one.original[tensor], one.compressed[tensor]
    pulled = _pull(site, one, added, prod(row_shape(before.shape, layout)))
    for part in _parts(site, keep):
        x, y = rows(before, layout, part), rows(after, layout, part)
        pull = None if pulled is None else CrossMoment.of(y, pulled[:, part])
        yield Drift(SecondMoment.of(y), CrossMoment.of(y, x), pull)


def _unpadded(site: Site, one: Stream, run: Run) -> NDArray[np.intp]:
    """Numbers of the rows of a batch that are data."""
    grid = row_shape(one.original[site.view.tensor].shape, site.view.layout)
    if run.mask is not None:
        mask, _ = rows_kept(np.asarray(one.batch.feeds[run.mask]), grid)
        if mask is not None:
            return np.flatnonzero(mask)
    return np.arange(prod(grid))


def _drawn(
    site: Site, one: Stream, kept: NDArray[np.intp], share: float, run: Run
) -> NDArray[np.intp]:
    """Numbers of the rows to take: a random share of those that are data."""
    if share >= 1:
        return kept
    rng = np.random.default_rng([run.seed, zlib.crc32(site.view.tensor.encode()), one.batch.start])
    return np.sort(rng.choice(kept, ceil(share * len(kept)), replace=False))


def _pull(
    site: Site, one: Stream, added: Added | None, count: int
) -> NDArray[np.floating[Any]] | None:
    """Rows of the drift of the stream that the site is added to, in step with its input's."""
    if added is None or added[0] not in one.original:
        return None
    tensor, layout = added
    before, after = one.original[tensor], one.compressed[tensor]
    if not _in_step(before.shape, layout, count, site.d_out):
        return None
    return rows(before, layout) - rows(after, layout)


def _in_step(shape: Sequence[int], layout: Layout, count: int, d_out: int) -> bool:
    """Whether a stream has as many rows as the site, and as wide ones: it may be broadcast."""
    try:
        return width(shape, layout) == d_out and prod(row_shape(shape, layout)) == count
    except ValueError:
        return False


def _parts(site: Site, keep: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Cut many patches into pieces that fit into memory as rows."""
    if not isinstance(site.view.layout, Patches):
        return [keep]
    each = max(1, _PIECE // (4 * site.groups * site.d_in))
    return [keep[start : start + each] for start in range(0, len(keep), each)] or [keep]

"""Collect: run a model over data, and add up the second moments of what its linear maps read."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from onnxrank.errors import DataError, MomentsError
from onnxrank.graph.model import Model
from onnxrank.graph.probe import Names, probe
from onnxrank.graph.sites import View
from onnxrank.moments import Cursor, DataInfo, Folds, Moments, merge
from onnxrank.runtime.batch import Batch, DataSource
from onnxrank.runtime.mask import check_mask
from onnxrank.runtime.session import Run, execute, open_session, provider_for, provider_of
from onnxrank.runtime.tally import Tally
from onnxrank.runtime.waves import plan_waves

logger = logging.getLogger(__name__)

Progress = Callable[[int, "int | None", str], None]
Widths = Mapping[View, int]


@dataclass(frozen=True)
class Checkpoint:
    """Save unfinished moments every so often.

    Attributes
    ----------
    save : callable
        Given the moments so far.
    every : float
        Seconds between calls.
    """

    save: Callable[[Moments], None]
    every: float = 120.0


def collect(
    model: Model,
    source: DataSource,
    run: Run,
    *,
    views: Widths,
    start: Moments | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Moments:
    """Collect moments.

    Parameters
    ----------
    model : Model
        What is run.
    source : DataSource
        What it is run on; read once for each wave of views that fits into ``run.memory``.
    run : Run
        Provider, threads, memory, rows, mask and seed.
    views : mapping of View to int
        What to collect, with the width of one group's rows.
    start : Moments, optional
        What to go on from: unfinished moments of the same data and settings, or finished ones,
        which those of new data are added to.
    progress : callable, optional
        Called with samples done, samples in all if known, and what is being done.
    checkpoint : Checkpoint, optional
        Saves moments that a later call can go on from.

    Raises
    ------
    DataError
        If data do not fit, or a tensor comes out as NaN or infinity: named with its batch and
        the nodes that read it.
    ModelError
        If the model cannot be run.
    MomentsError
        If `start` belongs to something else, or a view alone takes more than ``run.memory``.
    """
    check_mask(run.mask, model.inputs)
    if start is not None and start.model_sha256 != model.sha256:
        raise MomentsError("these moments belong to another model", where=start.data.source)
    job = _Job(model, source, run, views, progress, checkpoint)
    if start is None or start.complete:
        collected = job.collect()
        return collected if start is None else merge([start, collected])
    job.resume(start)
    return job.collect()


@dataclass
class _Job:
    """One collection, wave after wave."""

    model: Model
    source: DataSource
    run: Run
    views: Widths
    progress: Progress | None
    checkpoint: Checkpoint | None
    found: dict[View, Folds] = field(default_factory=dict)
    done: dict[View, int] = field(default_factory=dict)
    seconds: float = 0.0
    provider: str = "cpu"

    def __post_init__(self) -> None:
        self.began = self.saved = time.monotonic()
        self.seen = _Seen()

    @property
    def settings(self) -> str:
        """What has to be the same for a collection to go on."""
        run = self.run
        return json.dumps(
            [self.source.description, self.source.samples, run.samples, run.batch_size]
            + [run.rows, run.seed, run.mask]
        )

    def resume(self, start: Moments) -> None:
        """Go on from unfinished moments."""
        assert start.cursor is not None
        if start.cursor.settings != self.settings or set(start.views) != set(self.views):
            raise MomentsError(
                "these moments were begun with other data or settings",
                where=start.data.source,
                hint="give the same ones, or start anew",
            )
        self.found, self.done = dict(start.views), dict(start.cursor.done)
        self.seconds = start.data.seconds

    def collect(self) -> Moments:
        """Run every wave."""
        batches = self.source.batches()
        first = next(batches, None)
        if first is None:
            raise DataError("there are no samples", where=self.source.description)
        need = {v: Tally.nbytes(v, d) + _size(self.model, v, first) for v, d in self.views.items()}
        waves = plan_waves(need, self.run.memory)
        logger.info("%d inputs of linear maps in %d passes over the data", len(need), len(waves))
        for number, wave in enumerate(waves):
            again = chain([first], batches) if number == 0 else self.source.batches()
            self._wave(wave, again, number, len(waves))
        return self._moments(None)

    def _wave(self, views: list[View], batches: Iterable[Batch], number: int, waves: int) -> None:
        """Collect some of the views in one pass."""
        session = _Session(self.model, {view: self.views[view] for view in views}, self.run)
        self.provider = session.provider
        tallies = {v: self._tally(v) for v in views}
        samples = self.source.samples
        ran = 0
        for step, batch in enumerate(batches):
            if number == 0:
                self.seen.add(batch)
            wanted = [view for view in views if self.done.get(view, 0) <= step]
            if wanted:
                session.run(wanted, tallies, batch)
                self.done.update((view, step + 1) for view in wanted)
            if step == 0:
                self._check_mask(tallies.values())
            ran += batch.size
            self._report(ran, samples, number, waves)
            self._save(tallies)
        for view in views:  # one by one: a tally goes as its result comes
            self.found[view] = self._total(view, tallies.pop(view))

    def _tally(self, view: View) -> Tally:
        return Tally(self.model, view, self.views[view], self.run, self.source.samples)

    def _total(self, view: View, tally: Tally) -> Folds:
        now = tally.result()
        before = self.found.get(view)
        return now if before is None else (before[0] + now[0], before[1] + now[1])

    def _check_mask(self, tallies: Iterable[Tally]) -> None:
        """Raise if the mask fits no view; tell of those it does not fit."""
        reasons = {t.view.tensor: t.unmasked for t in tallies}
        for tensor, reason in reasons.items():
            if reason:
                logger.info("all rows of tensor %r count: %s", tensor, reason)
        if reasons and all(reasons.values()):
            raise DataError(f"mask {self.run.mask!r} fits no layer: {next(iter(reasons.values()))}")

    def _report(self, ran: int, samples: int | None, number: int, waves: int) -> None:
        if self.progress is not None:
            what = "collecting" if waves == 1 else f"collecting, pass {number + 1} of {waves}"
            before = number * (samples or 0)
            self.progress(before + ran, None if samples is None else samples * waves, what)

    def _save(self, tallies: Mapping[View, Tally]) -> None:
        """Hand out unfinished moments if it is time."""
        now = time.monotonic()
        if self.checkpoint is None or now - self.saved < self.checkpoint.every:
            return
        self.checkpoint.save(self._moments(tallies))
        self.saved = time.monotonic()

    def _moments(self, running: Mapping[View, Tally] | None) -> Moments:
        """Moments so far; finished if nothing is running."""
        if running is None:
            return Moments(self.model.sha256, self._ordered(self.found), self._info())
        found = dict(self.found)
        found.update((view, self._total(view, tally)) for view, tally in running.items())
        for view in self.views.keys() - found.keys():
            found[view] = self._tally(view).result()
        cursor = Cursor(self.settings, {view: self.done.get(view, 0) for view in self.views})
        return Moments(self.model.sha256, self._ordered(found), self._info(), cursor)

    def _ordered(self, found: Mapping[View, Folds]) -> dict[View, Folds]:
        return {view: found[view] for view in self.views}

    def _info(self) -> DataInfo:
        return DataInfo(
            source=self.source.description,
            samples=self.seen.samples,
            seconds=self.seconds + time.monotonic() - self.began,
            provider=self.provider,
            meaningless=self.source.meaningless,
            parts=(self.seen.digest,),
        )


class _Session:
    """An instrumented model that hands its views' tensors to their tallies."""

    def __init__(self, model: Model, widths: Widths, run: Run) -> None:
        probed = probe(model, list(widths), widths, reduce=_reduces(run))
        self._session = open_session(probed.proto, model.folder, run, name=model.name)
        self._names = probed.names
        self.provider = provider_of(self._session)

    def run(self, views: list[View], tallies: Mapping[View, Tally], batch: Batch) -> None:
        """Run a batch, and let go of each tensor once its views have it."""
        readers: dict[Names, list[View]] = defaultdict(list)
        for view in views:
            readers[self._names[view]].append(view)
        names = [name for key in readers for name in _listed(key)]
        outputs = _freeing(execute(self._session, names, batch.feeds, where=batch.where))
        for key, here in readers.items():
            values = [next(outputs) for _ in _listed(key)]
            for view in here:
                if isinstance(key, str):
                    tallies[view].add(values[0], batch)
                else:
                    n, total, gram = values
                    tallies[view].add_moment(int(n), total, gram, batch)
            del values


def _reduces(run: Run) -> bool:
    """Whether the graph itself sums all rows: on a GPU, rather than bring every tensor here."""
    return run.mask is None and run.rows is None and provider_for(run) == "cuda"


def _freeing(items: list[Any]) -> Iterator[Any]:
    """Iterate over a list, dropping its items on the way."""
    items.reverse()
    while items:
        yield items.pop()


@dataclass
class _Seen:
    """Counts samples, and tells data apart by their content, whatever the order of samples."""

    samples: int = 0
    total: int = 0

    def add(self, batch: Batch) -> None:
        """Take note of a batch."""
        self.samples += batch.size
        arrays = sorted(batch.feeds.items())
        cut = all(len(getattr(v, "shape", ())) and len(v) == batch.size for _, v in arrays)
        for k in range(batch.size if cut else 1):
            digest = hashlib.blake2b(digest_size=16)
            for name, value in arrays:
                digest.update(name.encode())
                digest.update(_glance(value[k] if cut else value))
            self.total += int.from_bytes(digest.digest(), "little")

    @property
    def digest(self) -> str:
        """Of all samples."""
        return f"{self.total % 2**128:032x}"


def _glance(value: Any) -> bytes:
    """Shape and some four thousand entries of an array."""
    if isinstance(value, (list, tuple)):
        return b"".join(_glance(item) for item in value)
    if not isinstance(value, np.ndarray):
        return repr(value).encode()
    flat = value.reshape(-1)[:: max(1, value.size // 4096)]
    entries = repr(flat.tolist()).encode() if value.dtype.kind in "OU" else flat.tobytes()
    return repr((value.shape, value.dtype.str)).encode() + entries


def _listed(key: Names) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def _size(model: Model, view: View, batch: Batch) -> int:
    """Bytes of a view's tensor, as far as shapes tell: open sizes as in this batch."""
    if view.scope.path:
        return 0
    known: dict[int | str | None, int] = {}
    for info in model.inputs:
        shape = getattr(batch.feeds.get(info.name), "shape", ())
        known.update(zip(info.shape or (), shape, strict=False))
    dims = model.shape(view.scope, view.tensor) or ()
    return 4 * prod(dim if isinstance(dim, int) else known.get(dim, 1) for dim in dims)

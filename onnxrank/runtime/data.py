"""Data in every form users have them, as batches: files, folders, loaders, Python objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from onnxrank.errors import DataError, OnnxRankError
from onnxrank.graph.model import TensorInfo
from onnxrank.runtime import images, loaders
from onnxrank.runtime.batch import Batch, DataSource
from onnxrank.runtime.check import GROUP, LABEL, check_feed, check_shard, feed_size
from onnxrank.runtime.files import memory_source, open_arrays
from onnxrank.runtime.images import FORMATS, PREPROCESS, Preprocess, named_preprocess
from onnxrank.runtime.session import Run
from onnxrank.runtime.tables import TableSource, settle

__all__ = [
    "PREPROCESS",
    "Batch",
    "DataSource",
    "Preprocess",
    "holdout",
    "named_preprocess",
    "open_data",
]


@dataclass(frozen=True)
class Choice:
    """Which units (feeds, or sources of feeds) are taken, by their numbers.

    Attributes
    ----------
    index, count : int
        The `index`-th (from 1) of `count` shards.
    period : int
        One of so many units is held out; 0 for none.
    held : bool
        Take those held out, not the others.
    """

    index: int = 1
    count: int = 1
    period: int = 0
    held: bool = False

    def takes(self, unit: int) -> bool:
        """Whether a unit is taken. Units go in pairs, one of each fold."""
        if (unit // 2) % self.count != self.index - 1:
            return False
        if not self.period:
            return True
        # Once from an odd place, once from an even one: both folds give alike.
        place = unit % (2 * self.period)
        return (place in (self.period - 1, 2 * self.period - 2)) == self.held


@dataclass
class _Units:
    """Numbers the feeds of a pass, or their sources as they appear."""

    chosen: Choice
    known: dict[Any, int] = field(default_factory=dict)

    def number(self, group: Any, step: int, where: str) -> int:
        """Unit of a feed; sources that appear together for the first time are one."""
        if group is None:
            return step
        names = np.unique(np.asarray(group)).tolist()
        found = {self.known[name] for name in names if name in self.known}
        unit = min(found, default=len(set(self.known.values())))
        if any(u % 2 != unit % 2 or self.chosen.takes(u) != self.chosen.takes(unit) for u in found):
            raise DataError(
                "it mixes sources that earlier feeds kept apart",
                where=where,
                hint=f"feed the samples of one {GROUP} at a time",
            )
        self.known.update((name, unit) for name in names if name not in self.known)
        return unit


@dataclass(frozen=True, eq=False)
class FeedSource:
    """Complete feeds, each a batch.

    A feed is of one fold: folds alternate from feed to feed, or, where feeds carry ``__group__``,
    from source to source.

    Attributes
    ----------
    description : str
        What the user named.
    opener : callable
        Starts a pass.
    inputs : tuple of TensorInfo
        What a feed must hold.
    limit : int or None
        Stop after this many samples.
    sizes : tuple of int or None
        Samples of each feed, where known beforehand.
    chosen : Choice
        Which of the feeds are taken.
    labelled, meaningless : bool
        Labels are known to be there; the numbers are random.
    """

    description: str
    opener: loaders.Opener
    inputs: tuple[TensorInfo, ...]
    limit: int | None = None
    sizes: tuple[int, ...] | None = None
    chosen: Choice = Choice()
    labelled: bool = False
    meaningless: bool = False

    @property
    def samples(self) -> int | None:
        """Samples of one pass; None if only reading tells."""
        if self.sizes is None:
            return None
        starts = np.cumsum((0, *self.sizes))
        return sum(
            size
            for unit, (start, size) in enumerate(zip(starts, self.sizes, strict=False))
            if (self.limit is None or start < self.limit) and self.chosen.takes(unit)
        )

    def batches(self) -> Iterator[Batch]:
        """Start a pass over the data."""
        units = _Units(self.chosen)
        start, empty = 0, True
        for step, given in enumerate(self._feeds()):
            if self.limit is not None and start >= self.limit:
                break
            where = f"{self.description}, feed {step}"
            if not isinstance(given, Mapping):
                raise DataError(
                    f"a feed is a dict of arrays, not {type(given).__name__}", where=where
                )
            feed = self._arrays(given)
            size = self.sizes[step] if self.sizes else feed_size(feed)
            unit = units.number(feed.pop(GROUP, None), step, where)
            if self.chosen.takes(unit):
                labels = feed.pop(LABEL, None)
                check_feed(feed, self.inputs, where)
                yield Batch(feed, unit % 2, labels, start, size, where)
                empty = False
            start += size
        if empty:
            raise DataError("there are no samples", where=self.description)

    def shard(self, index: int, count: int) -> FeedSource:
        """Return the `index`-th (from 1) of `count` disjoint parts; folds stay as they are."""
        check_shard(index, count)
        return replace(
            self,
            chosen=replace(self.chosen, index=index, count=count),
            description=f"{self.description}, shard {index}/{count}",
        )

    def holdout(self, share: float, most: int) -> tuple[FeedSource, FeedSource | None]:
        """Every eighth feed (or source) for a share of an eighth; None if there is only one."""
        period = max(2, round(1 / share))
        if self.sizes is not None:
            period = min(period, len(self.sizes))
        if period < 2:
            return self, None
        rest = replace(self.chosen, period=period, held=False)
        held = replace(self.chosen, period=period, held=True)
        name = f"{self.description}, held out"
        return replace(self, chosen=rest), replace(self, chosen=held, description=name)

    def _feeds(self) -> Iterator[Any]:
        """Iterate, naming the place of whatever the user's code raises."""
        step = 0
        try:
            for step, feed in enumerate(self.opener()):  # noqa: B007
                yield feed
        except OnnxRankError as error:
            raise type(error)(
                error.what, where=error.where or self.description, hint=error.hint
            ) from error
        except Exception as error:
            raise DataError(
                f"the loader raised {type(error).__name__}: {error}",
                where=f"{self.description}, after feed {step}",
            ) from error

    def _arrays(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        opaque = {info.name for info in self.inputs if not info.dtype}
        return {str(k): v if k in opaque else np.asarray(v) for k, v in feed.items()}


def open_data(
    spec: Any,
    model_inputs: Sequence[TensorInfo],
    run: Run,
    preprocess: Preprocess | None = None,
) -> DataSource:
    """Open data for a model.

    Parameters
    ----------
    spec : str, path, mapping, iterable, callable, CalibrationDataReader or DataSource
        A file or folder (.npz, .npy, ``test_data_set_*``, images), ``loader.py:function``,
        ``module:function``, ``random:N``, arrays by input name, or Python objects that give
        complete feeds.
    model_inputs : sequence of TensorInfo
        What the model takes.
    run : Run
        Batch size, limit of samples and seed.
    preprocess : Preprocess, optional
        How images become inputs.

    Raises
    ------
    DataError
        If the data cannot be read, or do not fit the model as far as can be told without
        reading them all.
    """
    inputs = tuple(model_inputs)
    if isinstance(spec, (TableSource, FeedSource)):
        return spec
    if isinstance(spec, (str, PathLike)):
        return _open_named(str(spec), inputs, run, preprocess)
    if isinstance(spec, Mapping):
        return memory_source(spec, inputs, run)
    if hasattr(spec, "get_next") or callable(spec) or hasattr(spec, "__iter__"):
        return _open_object(spec, inputs, run)
    raise DataError(f"{type(spec).__name__} is no data", hint=f"use {FORMATS}")


def holdout(
    source: DataSource, share: float = 1 / 8, most: int = 512
) -> tuple[DataSource, DataSource | None]:
    """Part data into what is used and what is compared on, by whole sources where known.

    Returns
    -------
    (DataSource, DataSource or None)
        The rest, and the samples held out: the same ones every time. None where there is nothing
        to part, as with a single sample; then the first is all of the data.
    """
    return source.holdout(share, most)


def _open_named(
    spec: str, inputs: tuple[TensorInfo, ...], run: Run, preprocess: Preprocess | None
) -> DataSource:
    path = Path(spec)
    if not path.exists():
        if spec.startswith("random:"):
            return _open_random(spec, inputs, run)
        if loaders.is_function(spec):
            return _open_object(loaders.load_function(spec), inputs, run, spec)
        raise DataError("there is no such file or folder", where=spec, hint=f"use {FORMATS}")
    if path.is_file() and path.suffix not in (".npz", ".npy"):
        raise DataError("data of this kind are not read", where=spec, hint=f"use {FORMATS}")
    if path.is_file() or any(chain(path.glob("*.npz"), path.glob("*.npy"))):
        return open_arrays(path, inputs, run)
    sets = loaders.test_sets(path)
    if sets:
        return FeedSource(
            spec, lambda: (loaders.read_test_set(p, inputs) for p in sets), inputs, run.samples
        )
    table = images.open_images(path, inputs, preprocess)
    return settle(spec, table, run, fixed=table.batch)


def _open_random(spec: str, inputs: tuple[TensorInfo, ...], run: Run) -> FeedSource:
    number = spec.partition(":")[2]
    if not number.isdigit() or not int(number):
        raise DataError("random data are written random:N, N the samples", where=spec)
    n = min(int(number), run.samples or int(number))

    def opener() -> loaders.Feeds:
        return loaders.random_feeds(n, inputs, run.batch_size, run.seed)

    sizes = tuple(loaders.random_sizes(n, inputs, run.batch_size))
    return FeedSource(spec, opener, inputs, sizes=sizes, meaningless=True)


def _open_object(
    data: Any, inputs: tuple[TensorInfo, ...], run: Run, description: str = ""
) -> FeedSource:
    """Take Python data; what can be told of a list is told."""
    name = description or f"the {getattr(data, '__name__', type(data).__name__)}"
    source = FeedSource(name, loaders.Passes(data), inputs, run.samples)
    if isinstance(data, Sequence) and all(isinstance(feed, Mapping) for feed in data):
        sizes = tuple(feed_size(feed) for feed in data)
        return replace(source, sizes=sizes, labelled=bool(data) and LABEL in data[0])
    return source

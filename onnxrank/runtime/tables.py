"""Data whose arrays count samples along their first axis: cut into batches, each of one fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxrank.errors import DataError
from onnxrank.runtime import folds
from onnxrank.runtime.batch import Batch
from onnxrank.runtime.check import GROUP, LABEL, check_finite, check_shard
from onnxrank.runtime.session import Run

Arrays = dict[str, NDArray[Any]]


class Table(Protocol):
    """Samples in order, read in pieces."""

    def __len__(self) -> int: ...

    def chunks(self, step: int, used: NDArray[np.bool_]) -> Iterator[tuple[int, Arrays, str]]:
        """Consecutive pieces of at most `step` samples with any used: start, arrays, file."""


@dataclass(frozen=True, eq=False)
class TableSource:
    """Samples of a table, in batches that hold samples of one fold only.

    Attributes
    ----------
    description : str
        What the user named.
    table : Table
        Where samples come from.
    step : int
        Samples a batch.
    fixed : int
        Samples that go together in any case, because the model fixes its batch dimension.
    stacked : frozenset of str
        Inputs whose samples are complete feeds, without an axis of samples.
    units, folds : ndarray
        As in `onnxrank.runtime.folds`; a fold of -1 marks samples that are not used.
    labelled, meaningless : bool
        Labels are there; the numbers are random.
    """

    description: str
    table: Table
    step: int
    fixed: int
    stacked: frozenset[str]
    units: folds.Units
    folds: folds.Folds
    labelled: bool = False
    meaningless: bool = False

    @property
    def samples(self) -> int:
        """Samples used."""
        return int((self.folds >= 0).sum())

    def batches(self) -> Iterator[Batch]:
        """Start a pass over the data."""
        waiting = (_Waiting(0), _Waiting(1))
        for start, arrays, label in self.table.chunks(self.step, self.folds >= 0):
            _check_finite(arrays, start, label)
            for queue in waiting:
                size = len(next(iter(arrays.values())))
                queue.add(start, arrays, self.folds[start : start + size] == queue.fold)
                while queue.size >= self.step:
                    yield self._batch(queue, self.step, label)
        for queue in waiting:
            if queue.size:
                yield self._batch(queue, queue.size, self.description)

    def shard(self, index: int, count: int) -> TableSource:
        """Return the `index`-th (from 1) of `count` disjoint parts; folds stay as they are."""
        check_shard(index, count)
        n = len(self.folds)
        mine = folds.shard(n, index, count, folds.block_length(n, self.fixed))
        kept = np.where(mine, self.folds, np.int8(folds.UNUSED))
        if not (kept >= 0).any():
            raise DataError(
                f"shard {index}/{count} of {self.samples} samples is empty",
                where=self.description,
            )
        return replace(self, folds=kept, description=f"{self.description}, shard {index}/{count}")

    def holdout(self, share: float, most: int) -> tuple[TableSource, TableSource | None]:
        """Part whole units from the rest; None where there is only one sample (or batch)."""
        used = self.folds >= 0
        held = folds.hold(self.units, used, share, most)
        if not held.any():  # a single source: its parts are all there is
            held = folds.hold(folds.block_units(len(used), self.fixed), used, share, most)
        if not held.any():
            return self, None
        rest = replace(self, folds=folds.assign(self.units, used & ~held))
        kept = np.where(held, self.folds, np.int8(folds.UNUSED))
        return rest, replace(self, folds=kept, description=f"{self.description}, held out")

    def _batch(self, queue: _Waiting, size: int, label: str) -> Batch:
        start, arrays = queue.take(size)
        labels = arrays.pop(LABEL, None)
        feeds = {k: v[0] if k in self.stacked else v for k, v in arrays.items()}
        where = f"{label}, batch from sample {start}"
        return Batch(feeds, queue.fold, labels, start, size, where)


def settle(
    description: str,
    table: Table,
    run: Run,
    *,
    fixed: int | None = None,
    stacked: frozenset[str] = frozenset(),
    groups: NDArray[Any] | None = None,
    labelled: bool = False,
) -> TableSource:
    """Choose batches and folds for a table that fits the model."""
    n, together = len(table), fixed or 1
    if not n:
        raise DataError("there are no samples", where=description)
    if n % together:
        raise DataError(
            f"{n} samples do not divide into batches of {together}, which the model fixes: "
            f"{n % together} are left over",
            where=description,
        )
    limit = (
        n if run.samples is None else min(n, max(run.samples - run.samples % together, together))
    )
    used = np.arange(n) < limit
    if groups is None:
        units = np.zeros(n, np.int64)
        units[:limit] = folds.block_units(limit, together)
    else:
        units = folds.group_units(groups, together)
        _check_sources(groups[:limit], units[:limit], together, description)
    step = 1 if stacked else fixed or run.batch_size
    return TableSource(
        description, table, step, together, stacked, units, folds.assign(units, used), labelled
    )


@dataclass
class _Waiting:
    """Samples of one fold that wait for a batch to fill."""

    fold: int
    pieces: list[tuple[NDArray[np.intp], Arrays]] = field(default_factory=list)
    size: int = 0

    def add(self, start: int, arrays: Arrays, mine: NDArray[np.bool_]) -> None:
        """Keep the samples that are `mine`, the first of all having the number `start`."""
        index = np.flatnonzero(mine)
        if index.size:
            if index.size < mine.size:
                arrays = _cut(arrays, index)
            self.pieces.append((start + index, arrays))
            self.size += index.size

    def take(self, size: int) -> tuple[int, Arrays]:
        """Take the oldest `size` samples, with the number of the first one."""
        first, left = int(self.pieces[0][0][0]), size
        taken: list[Arrays] = []
        while left:
            numbers, arrays = self.pieces.pop(0)
            if numbers.size > left:
                self.pieces.insert(0, (numbers[left:], _cut(arrays, slice(left, None))))
                numbers, arrays = numbers[:left], _cut(arrays, slice(left))
            taken.append(arrays)
            left -= numbers.size
        self.size -= size
        if len(taken) == 1:
            return first, dict(taken[0])
        return first, {name: np.concatenate([t[name] for t in taken]) for name in taken[0]}


def _cut(arrays: Arrays, index: NDArray[np.intp] | slice) -> Arrays:
    return {name: array[index] for name, array in arrays.items()}


def _check_sources(groups: NDArray[Any], units: folds.Units, fixed: int, description: str) -> None:
    if fixed > 1 and len(np.unique(groups)) > 1 and len(np.unique(units)) == 1:
        raise DataError(
            f"the model's batches of {fixed} mix all sources, so that no fold is free of another's",
            where=description,
            hint=f"order the samples by {GROUP}",
        )


def _check_finite(arrays: Arrays, start: int, label: str) -> None:
    for name, array in arrays.items():
        try:
            check_finite(array, name, label)
        except DataError as error:
            flat = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
            sample = start + int(np.flatnonzero(~flat)[0])
            raise DataError(error.what, where=f"{label}, sample {sample}") from None

"""Samples in memory, drawn at random: what is neighbours in the data is not in a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxrank.graph.model import Model
from onnxrank.runtime.batch import Batch, DataSource

# Without --memory.
_MEMORY = 1 << 31


@dataclass(frozen=True, eq=False)
class Pool:
    """Batches as the data give them, or all samples in one where they can be mixed.

    Attributes
    ----------
    batches : tuple of Batch
        What steps are drawn from.
    fixed : int or None
        Samples that the model takes at a time; None where it takes any number.
    mixed : bool
        There is one batch, whose samples are drawn one by one.
    """

    batches: tuple[Batch, ...]
    fixed: int | None
    mixed: bool

    @property
    def samples(self) -> int:
        """Samples there are."""
        return sum(batch.size for batch in self.batches)

    def steps(self, size: int, seed: int) -> Iterator[list[Batch]]:
        """Endless steps of about `size` samples, each as batches that the model takes."""
        rng = np.random.default_rng(seed)
        parts = self._samples(rng) if self.mixed else self._whole(rng)
        if self.mixed:
            each = self.fixed or min(size, self.samples)
            count = max(1, size // each)
            while True:
                yield [self._take([next(parts) for _ in range(each)]) for _ in range(count)]
        while True:
            step = [self.batches[next(parts)]]
            while sum(batch.size for batch in step) < size:
                step.append(self.batches[next(parts)])
            yield step

    def _samples(self, rng: np.random.Generator) -> Iterator[int]:
        while True:
            yield from rng.permutation(self.samples).tolist()

    def _whole(self, rng: np.random.Generator) -> Iterator[int]:
        while True:
            yield from rng.permutation(len(self.batches)).tolist()

    def _take(self, numbers: list[int]) -> Batch:
        (every,) = self.batches
        chosen: NDArray[np.intp] = np.array(numbers, np.intp)
        feeds = {name: value[chosen] for name, value in every.feeds.items()}
        labels = None if every.labels is None else every.labels[chosen]
        return Batch(feeds, 0, labels, int(chosen[0]), len(chosen), every.where)


def fill(model: Model, source: DataSource, memory: int) -> Pool:
    """Read as many samples as memory may hold."""
    kept: list[Batch] = []
    left = memory or _MEMORY
    for batch in source.batches():
        left -= sum(getattr(value, "nbytes", 0) for value in batch.feeds.values())
        if left < 0 and kept:
            break
        kept.append(batch)
    fixed = _fixed(model)
    if _mixable(kept):
        return Pool((_joined(kept),), fixed, True)
    return Pool(tuple(kept), fixed, False)


def _fixed(model: Model) -> int | None:
    """The number of samples that the declared shapes leave no choice about."""
    sizes = {info.shape[0] for info in model.inputs if info.shape and not info.optional}
    numbers = [size for size in sizes if isinstance(size, int)]
    return numbers[0] if len(numbers) == 1 else None


def _mixable(batches: list[Batch]) -> bool:
    """Whether every input counts samples along its first axis, in shapes that agree."""

    def shapes(batch: Batch) -> dict[str, tuple[object, ...]]:
        return {name: (value.shape[1:], value.dtype) for name, value in batch.feeds.items()}

    def counted(batch: Batch) -> bool:
        values = batch.feeds.values()
        arrays = all(isinstance(value, np.ndarray) and value.ndim for value in values)
        sizes = arrays and all(len(value) == batch.size for value in values)
        labels = batch.labels is None or np.shape(batch.labels)[:1] == (batch.size,)
        return bool(sizes and labels)

    labelled = {batch.labels is None for batch in batches}
    if len(labelled) != 1 or not all(counted(batch) for batch in batches):
        return False
    return all(shapes(batch) == shapes(batches[0]) for batch in batches)


def _joined(batches: list[Batch]) -> Batch:
    first = batches[0]
    feeds = {name: np.concatenate([b.feeds[name] for b in batches]) for name in first.feeds}
    labels = None
    if first.labels is not None:
        labels = np.concatenate([np.asarray(batch.labels) for batch in batches])
    return Batch(feeds, 0, labels, 0, sum(batch.size for batch in batches), first.where)

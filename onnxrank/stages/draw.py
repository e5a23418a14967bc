"""Draw: some of the batches of a source, evenly spread over all, the same ones every time.

Data often lie sorted, by class or by source: the first samples do not stand for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxrank.graph.model import Model
from onnxrank.runtime.batch import Batch, DataSource

# Batches of the data that one batch of a sample comes from.
_PARTS = 4

Numbered = tuple[int, Batch]


def evenly(
    batches: Iterable[Batch], most: int, take: Callable[[Batch], Batch] = lambda batch: batch
) -> list[Batch]:
    """At most so many batches of each fold, in their order.

    Parameters
    ----------
    batches : iterable of Batch
        Read to the end; no more than twice as many are held.
    most : int
        At least 1.
    take : callable
        What to keep of a batch.
    """
    kept: tuple[list[Numbered], list[Numbered]] = ([], [])
    count, stride = [0, 0], [1, 1]
    for number, batch in enumerate(batches):
        fold = batch.fold
        if count[fold] % stride[fold] == 0:
            kept[fold].append((number, take(batch)))
            if len(kept[fold]) >= 2 * most:
                del kept[fold][1::2]
                stride[fold] *= 2
        count[fold] += 1
    found = sorted(_spread(kept[0], most) + _spread(kept[1], most), key=lambda pair: pair[0])
    return [batch for _, batch in found]


def _spread(items: list[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return items
    return [items[(2 * k + 1) * len(items) // (2 * most)] for k in range(most)]


def sample(model: Model, source: DataSource, fold: int, samples: int) -> list[Batch]:
    """Batches of one fold with about so many samples; of the other if it has none.

    Where the model takes batches of any size, each is put together from several.
    """
    first = next(iter(source.batches()), None)
    if first is None:
        return []
    parts = _PARTS if _any_size(model) else 1
    most, size = math.ceil(samples / first.size), max(first.size // parts, 1)
    drawn = evenly(source.batches(), most * parts, lambda batch: slimmed(batch, size))
    chosen = [batch for batch in drawn if batch.fold == fold] or drawn
    groups = math.ceil(len(chosen) / parts)
    return [batch for k in range(groups) for batch in joined(chosen[k::groups])]


def _any_size(model: Model) -> bool:
    shapes = [info.shape for info in model.inputs if not info.optional]
    return all(shape and not isinstance(shape[0], int) for shape in shapes)


def _by_sample(value: object, size: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == size


def slimmed(batch: Batch, samples: int) -> Batch:
    """Some samples of a batch, evenly spread; all where its inputs do not lie sample by sample."""
    whole = all(_by_sample(value, batch.size) for value in batch.feeds.values())
    if samples >= batch.size or not whole:
        return batch
    taken = (2 * np.arange(samples) + 1) * batch.size // (2 * samples)
    labels = None if batch.labels is None else batch.labels[taken]
    feeds = {name: value[taken] for name, value in batch.feeds.items()}
    return replace(batch, feeds=feeds, labels=labels, size=samples)


def joined(batches: Sequence[Batch]) -> Sequence[Batch]:
    """One batch of them all, without labels; as they are where their inputs differ in shape."""
    first = batches[0]
    kinds = {
        tuple((n, v.dtype.str, v.shape[1:]) for n, v in b.feeds.items())
        if all(_by_sample(v, b.size) for v in b.feeds.values())
        else b.start
        for b in batches
    }
    if len(batches) < 2 or len(kinds) > 1:
        return batches
    feeds = {name: np.concatenate([b.feeds[name] for b in batches]) for name in first.feeds}
    size = sum(batch.size for batch in batches)
    return [replace(first, feeds=feeds, labels=None, size=size)]

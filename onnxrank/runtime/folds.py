"""Which samples go together: folds, held-out samples and shards. Numbers only.

A *unit* is a set of samples that nothing parts: a block of neighbours, or all samples of one
source. Folds and held-out samples are whole units.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Units = NDArray[np.int64]
Folds = NDArray[np.int8]

UNUSED = -1


def block_length(n: int, fixed: int = 1) -> int:
    """Samples in a block: a sixteenth of all, 32 at most, and whole batches of `fixed`."""
    return fixed * max(1, min(max(n // 16, 1), 32) // fixed)


def block_units(n: int, fixed: int = 1) -> Units:
    """Units of neighbours."""
    units: Units = np.arange(n, dtype=np.int64) // block_length(n, fixed)
    return units


def group_units(groups: NDArray[np.generic], fixed: int = 1) -> Units:
    """Units by source, numbered as they appear; sources that share a batch of `fixed` are one."""
    _, first, sources = np.unique(groups, return_index=True, return_inverse=True)
    number: Units = np.argsort(np.argsort(first))[sources.reshape(-1)]
    if fixed == 1:
        return number
    root = list(range(len(first)))

    def find(k: int) -> int:
        while root[k] != k:
            root[k] = k = root[root[k]]
        return k

    for start in range(0, len(number), fixed):
        joined = sorted({find(k) for k in number[start : start + fixed].tolist()})
        for other in joined[1:]:
            root[other] = joined[0]
    roots = np.array([find(k) for k in range(len(root))])
    joined_number: Units = np.unique(roots, return_inverse=True)[1].reshape(-1)[number]
    return joined_number


def assign(units: Units, used: NDArray[np.bool_]) -> Folds:
    """Fold of every sample: each unit, in order, goes to the fold with fewer samples so far."""
    sizes = np.bincount(units[used], minlength=_count(units))
    fold_of = np.zeros(len(sizes), np.int8)
    totals = [0, 0]
    for unit, size in enumerate(sizes.tolist()):
        fold_of[unit] = fold = int(totals[1] < totals[0])
        totals[fold] += size
    return np.where(used, fold_of[units], np.int8(UNUSED)).astype(np.int8)


def hold(units: Units, used: NDArray[np.bool_], share: float, most: int) -> NDArray[np.bool_]:
    """Samples to hold out: evenly spread whole units, about `share` of all and `most` samples.

    Empty if there are fewer than two units.
    """
    present = np.unique(units[used])
    held = np.zeros(len(units), np.bool_)
    if len(present) < 2:
        return held
    per_unit = used.sum() / len(present)
    count = max(1, min(round(len(present) * share), int(most / per_unit)))
    spread = ((np.arange(count) + 0.5) * len(present) / count).astype(np.int64)
    return used & np.isin(units, present[spread])


def shard(n: int, index: int, count: int, block: int) -> NDArray[np.bool_]:
    """Samples of the `index`-th (from 1) of `count` contiguous shards, whole blocks each."""
    blocks = -(-n // block)
    low, high = (block * (blocks * k // count) for k in (index - 1, index))
    place = np.arange(n)
    return (low <= place) & (place < high)


def _count(units: Units) -> int:
    return int(units.max(initial=-1)) + 1

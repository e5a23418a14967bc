"""Second moments of rows: n, sum and Gram matrix, exact to merge (method: section 1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]

# Rows to one product: enough that adding its d² entries to the float64 total costs little beside
# it, few enough that float32 sums within it lose less than 1e-6.
BLOCK = 2048
# Fewer rows than this wait for others: their product would cost more in calls than in arithmetic.
_FEW = 1024

# Largest squares of a block outside this range are computed again in float64.
_FLOAT32_SAFE = (1e-20, 1e36)


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """The moments of the rows of one view (method: section 1).

    Attributes
    ----------
    n : int
        Number of rows seen.
    sum : ndarray of float64, shape (groups, d)
        Sum of the rows.
    gram : ndarray of float64, shape (groups, d, d)
        Sum of the outer products ``x xᵀ``; symmetric.
    """

    n: int
    sum: Array
    gram: Array

    @classmethod
    def zeros(cls, groups: int, d: int) -> SecondMoment:
        """Return the moments of no rows."""
        return cls(0, np.zeros((groups, d)), np.zeros((groups, d, d)))

    @classmethod
    def of(cls, rows: Floats) -> SecondMoment:
        """Moments of rows of shape (groups, n, d)."""
        accumulator = Accumulator(rows.shape[0], rows.shape[2])
        accumulator.add(rows)
        return accumulator.result()

    def __add__(self, other: SecondMoment) -> SecondMoment:
        """Moments of both sets of rows together, which must be disjoint."""
        if self.gram.shape != other.gram.shape:
            raise ValueError(f"moments of shapes {self.gram.shape} and {other.gram.shape}")
        return SecondMoment(self.n + other.n, self.sum + other.sum, self.gram + other.gram)

    @property
    def mean(self) -> Array:
        """Mean row, shape (groups, d); zero when no row was seen."""
        mean: Array = self.sum / max(self.n, 1)
        return mean

    @property
    def covariance(self) -> Array:
        """Centred second moment ``G / n − μ μᵀ``, shape (groups, d, d)."""
        return self.about(self.mean) / max(self.n, 1)

    def about(self, point: Array) -> Array:
        """Sum of ``(x − p)(x − p)ᵀ`` over the rows, p of shape (groups, d)."""
        half = (self.sum - self.n / 2 * point)[:, :, None] * point[:, None, :]
        about: Array = self.gram - half - half.swapaxes(1, 2)
        return about

    @property
    def rows_per_dimension(self) -> float:
        """``n / d``: how well the ranks are known (method: section 1)."""
        return self.n / int(self.sum.shape[1])


@dataclass(frozen=True, eq=False)
class CrossMoment:
    """The moments between two sets of rows taken in step (method: section 6).

    Attributes
    ----------
    n : int
        Number of pairs of rows.
    sum_x : ndarray of float64, shape (groups, d1)
        Sum of the first rows.
    sum_y : ndarray of float64, shape (groups, d2)
        Sum of the second rows.
    cross : ndarray of float64, shape (groups, d1, d2)
        Sum of the outer products ``x yᵀ``.
    """

    n: int
    sum_x: Array
    sum_y: Array
    cross: Array

    @classmethod
    def zeros(cls, groups: int, d1: int, d2: int) -> CrossMoment:
        """Return the moments of no rows."""
        return cls(0, np.zeros((groups, d1)), np.zeros((groups, d2)), np.zeros((groups, d1, d2)))

    @classmethod
    def of(cls, x: Floats, y: Floats) -> CrossMoment:
        """Moments of rows of shapes (groups, n, d1) and (groups, n, d2)."""
        if x.shape[:2] != y.shape[:2]:
            raise ValueError(f"rows of shapes {x.shape} and {y.shape} are not in step")
        cross = np.zeros((x.shape[0], x.shape[2], y.shape[2]))
        for left, right in zip(_blocks(x), _blocks(y), strict=True):
            cross += _product(left, right)
        return cls(x.shape[1], _column_sums(x), _column_sums(y), cross)

    def __add__(self, other: CrossMoment) -> CrossMoment:
        """Moments of both sets of pairs together, which must be disjoint."""
        if self.cross.shape != other.cross.shape:
            raise ValueError(f"moments of shapes {self.cross.shape} and {other.cross.shape}")
        return CrossMoment(
            self.n + other.n,
            self.sum_x + other.sum_x,
            self.sum_y + other.sum_y,
            self.cross + other.cross,
        )

    @property
    def covariance(self) -> Array:
        """Centred ``Σ x yᵀ / n − μ_x μ_yᵀ``, shape (groups, d1, d2)."""
        n = max(self.n, 1)
        return self.cross / n - (self.sum_x / n)[:, :, None] * (self.sum_y / n)[:, None, :]


class Accumulator:
    """Streams rows into a `SecondMoment`, in memory that does not grow.

    Few rows are gathered until there are `_FEW`; more are multiplied in blocks. A block's product
    is taken in float32, which keeps energies down to about 1e-6 of the total, and added up in
    float64. float64 rows, and blocks whose squares would leave float32's range, are multiplied in
    float64.

    Parameters
    ----------
    groups, d : int
        Every `add` takes rows of shape (groups, n, d), for any n.
    """

    def __init__(self, groups: int, d: int) -> None:
        self._n = 0
        self._sum = np.zeros((groups, d))
        self._gram = np.zeros((groups, d, d))
        # Filled now: memory that is first touched later would look like growth.
        self._buffer = np.full((groups, _FEW, d), 0, np.float32)
        self._waiting = 0

    @staticmethod
    def nbytes(groups: int, d: int) -> int:
        """Bytes held at most: the total, one product, and the buffer."""
        return groups * d * (12 * d + 4 * _FEW + 8)

    def add(self, rows: Floats) -> None:
        """Add rows of shape (groups, n, d), float32 or float64.

        Raises
        ------
        ValueError
            The rows are of another shape, or hold NaN or infinity; nothing is added then.
        """
        groups, d = self._sum.shape
        if rows.ndim != 3 or rows.shape[0] != groups or rows.shape[2] != d:
            raise ValueError(f"rows of shape {rows.shape}, expected ({groups}, n, {d})")
        self._sum += _column_sums(rows)
        self._n += rows.shape[1]
        for block in _blocks(rows):
            if rows.dtype != np.float32 or block.shape[1] >= _FEW:
                self._gram += _product(block, block)
            else:
                self._wait(block)

    def result(self) -> SecondMoment:
        """Return the moments of all rows added so far; more may be added afterwards."""
        self._flush()
        gram = (self._gram + self._gram.swapaxes(1, 2)) / 2
        return SecondMoment(self._n, self._sum.copy(), gram)

    def _wait(self, block: Floats) -> None:
        """Buffer a few rows, and multiply them once the buffer is full."""
        now = min(_FEW - self._waiting, block.shape[1])
        self._buffer[:, self._waiting : self._waiting + now] = block[:, :now]
        self._waiting += now
        if self._waiting == _FEW:
            self._flush()
            self._wait(block[:, now:])

    def _flush(self) -> None:
        """Multiply what waits in the buffer."""
        if self._waiting:
            block = self._buffer[:, : self._waiting]
            self._gram += _product(block, block)
            self._waiting = 0


def _blocks(rows: Floats) -> Iterator[Floats]:
    """Cut rows into views of at most `BLOCK` rows each."""
    for start in range(0, rows.shape[1], BLOCK):
        yield rows[:, start : start + BLOCK]


def _column_sums(rows: Floats) -> Array:
    """Sum over the rows, shape (groups, d); raises on NaN and infinity, which no sum can hide."""
    total = np.zeros((rows.shape[0], rows.shape[2]))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _blocks(rows):  # a vector times a matrix: far faster than a sum in float64
            total += np.ones(block.shape[1], block.dtype) @ block
    if not np.isfinite(total).all():
        total = rows.sum(axis=1, dtype=np.float64)
    if not np.isfinite(total).all():
        raise ValueError("non-finite")
    return total


def _product(x: Floats, y: Floats) -> Floats:
    """``xᵀ y`` for each group, again in float64 where float32 cannot hold the squares."""
    # numpy turns the product of an array with its own transpose into BLAS's syrk: half the work.
    with np.errstate(over="ignore", invalid="ignore"):
        product: Floats = x.swapaxes(1, 2) @ y
    top = float(np.abs(product).max(initial=0)) if x is not y else _largest_square(product)
    if product.dtype == np.float32 and not _FLOAT32_SAFE[0] < top < _FLOAT32_SAFE[1]:
        x64 = x.astype(np.float64)
        product = x64.swapaxes(1, 2) @ (x64 if x is y else y.astype(np.float64))
    return product


def _largest_square(gram: Floats) -> float:
    """Largest diagonal entry, which bounds every entry of a Gram matrix."""
    return float(gram.diagonal(axis1=1, axis2=2).max(initial=0))

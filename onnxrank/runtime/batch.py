"""What a pass over data gives: batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's inputs, all of one fold.

    Attributes
    ----------
    feeds : dict of str to array
        A complete feed (values of sequence inputs are lists).
    fold : int
        0 or 1.
    labels : ndarray or None
        Of its samples, where known.
    start : int
        Number of its first sample within the data; unique.
    size : int
        Samples in it.
    where : str
        File and place, for errors.
    """

    feeds: dict[str, Any]
    fold: int
    labels: NDArray[Any] | None
    start: int
    size: int
    where: str


class DataSource(Protocol):
    """Data that fit a model, in batches of one fold each."""

    @property
    def description(self) -> str:
        """What the user named."""

    @property
    def samples(self) -> int | None:
        """Samples of one pass; None if only reading tells."""

    @property
    def labelled(self) -> bool:
        """Whether batches are known to carry labels."""

    @property
    def meaningless(self) -> bool:
        """Whether the numbers are random, so that ranks say nothing."""

    def batches(self) -> Iterator[Batch]:
        """Start a pass over the data."""

    def shard(self, index: int, count: int) -> DataSource:
        """Return the `index`-th (from 1) of `count` disjoint parts."""

    def holdout(self, share: float, most: int) -> tuple[DataSource, DataSource | None]:
        """Return the rest, and about `share` of the samples; None if nothing can be parted."""

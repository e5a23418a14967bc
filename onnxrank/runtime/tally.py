"""One view's moments while they are collected: which rows are taken, and their sums by fold."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxrank.errors import DataError, ModelError
from onnxrank.graph.model import Model
from onnxrank.graph.sites import View
from onnxrank.linalg.gram import Accumulator, SecondMoment
from onnxrank.linalg.layout import Patches, row_shape, rows, width
from onnxrank.moments import Folds
from onnxrank.runtime.batch import Batch
from onnxrank.runtime.mask import rows_kept
from onnxrank.runtime.session import Run

# Patches overlap: as rows they take many times the tensor's memory, so they are cut in pieces.
_PIECE = 1 << 26


class Tally:
    """Sums of one view.

    Parameters
    ----------
    model : Model
        For the names of the nodes that read the view.
    view : View
        What is summed.
    d : int
        Width of one group's rows.
    run : Run
        Mask, rows and seed.
    samples : int or None
        Samples to come, where known: then rows are drawn at random down to ``run.rows * d``.
    """

    def __init__(self, model: Model, view: View, d: int, run: Run, samples: int | None) -> None:
        groups = view.layout.groups
        self.view, self.d = view, d
        self.unmasked = ""
        self._model, self._run, self._samples = model, run, samples
        self._folds = (Accumulator(groups, d), Accumulator(groups, d))
        self._reduced: list[SecondMoment] | None = None
        self._share: float | None = None

    @staticmethod
    def nbytes(view: View, d: int) -> int:
        """Bytes held at most."""
        return 2 * Accumulator.nbytes(view.layout.groups, d)

    def add(self, tensor: NDArray[Any], batch: Batch) -> None:
        """Add the rows of a tensor."""
        grid = self._grid(tensor)
        keep = self._draw(self._masked(batch, grid), prod(grid), batch)
        try:
            for piece in _pieces(tensor, self.view, grid, self.d, keep):
                self._folds[batch.fold].add(piece)
        except ValueError as error:
            raise self._non_finite(batch) from error

    def add_moment(self, n: int, total: NDArray[Any], gram: NDArray[Any], batch: Batch) -> None:
        """Add moments that the graph has summed itself."""
        if not np.isfinite(total).all() or not np.isfinite(gram).all():
            raise self._non_finite(batch)
        if self._reduced is None:
            self._reduced = [SecondMoment.zeros(self.view.layout.groups, self.d)] * 2
        self._reduced[batch.fold] += SecondMoment(n, total, gram)

    def result(self) -> Folds:
        """Moments of both folds so far."""
        if self._reduced is not None:
            return self._reduced[0], self._reduced[1]
        return self._folds[0].result(), self._folds[1].result()

    def _grid(self, tensor: NDArray[Any]) -> tuple[int, ...]:
        try:
            grid, d = (
                row_shape(tensor.shape, self.view.layout),
                width(tensor.shape, self.view.layout),
            )
        except ValueError as error:
            raise ModelError(str(error), where=readers(self._model, self.view)) from error
        if d != self.d:
            raise ModelError(
                f"tensor {self.view.tensor!r} has rows of {d}, its weight takes {self.d}",
                where=readers(self._model, self.view),
            )
        return grid

    def _masked(self, batch: Batch, grid: tuple[int, ...]) -> NDArray[np.intp] | None:
        """Rows that are no padding; None for all."""
        if self._run.mask is None:
            return None
        if self._run.mask not in batch.feeds:
            raise DataError(f"the mask {self._run.mask!r} is missing", where=batch.where)
        kept, self.unmasked = rows_kept(np.asarray(batch.feeds[self._run.mask]), grid)
        return None if kept is None else np.flatnonzero(kept)

    def _draw(
        self, among: NDArray[np.intp] | None, n: int, batch: Batch
    ) -> NDArray[np.intp] | None:
        """Draw rows without repeats, the same ones however views and waves are cut."""
        available = n if among is None else len(among)
        if self._share is None and available:
            self._share = self._wanted(available / batch.size)
        if self._share is None or self._share >= 1:
            return among
        drawn = _drawn(self._run.seed, batch.start, available, self._share)
        return drawn if among is None else among[drawn]

    def _wanted(self, rows_a_sample: float) -> float:
        if self._run.rows is None or self._samples is None:
            return 1.0
        return self._run.rows * self.d / (rows_a_sample * self._samples)

    def _non_finite(self, batch: Batch) -> DataError:
        return DataError(
            f"tensor {self.view.tensor!r} holds NaN or infinity",
            where=f"{batch.where}, {readers(self._model, self.view)}",
            hint="look at the inputs of this batch, or at the weights before this node",
        )


def readers(model: Model, view: View) -> str:
    """Name the nodes that read a view."""
    home = model.index.resolve(view.scope, view.tensor)
    uses = [] if home is None else model.index.uses(home, view.tensor)
    nodes = [use.node for use in uses if use.node is not None and use.scope == view.scope]
    names = dict.fromkeys(node.name or next(iter(node.output), "") for node in nodes)
    return "input of node " + ", ".join(map(repr, names))


def _pieces(
    tensor: NDArray[Any], view: View, grid: tuple[int, ...], d: int, keep: NDArray[np.intp] | None
) -> Iterator[NDArray[Any]]:
    """Rows of a tensor, patches some samples at a time."""
    if not isinstance(view.layout, Patches):
        yield rows(tensor, view.layout, keep)
        return
    each = prod(grid[1:])
    step = max(1, _PIECE // max(4 * view.layout.groups * d * each, 1))
    for start in range(0, grid[0], step):
        part = tensor[start : start + step]
        if keep is None:
            yield rows(part, view.layout)
            continue
        low, high = np.searchsorted(keep, (start * each, (start + len(part)) * each))
        if low < high:
            yield rows(part, view.layout, keep[low:high] - start * each)


@lru_cache(maxsize=32)
def _drawn(seed: int, start: int, n: int, share: float) -> NDArray[np.intp]:
    """A share of n rows in order; views whose rows are as many have the same ones drawn."""
    rng = np.random.default_rng([seed, n, start])
    count = int(share * n + rng.random())
    drawn = np.sort(rng.choice(n, count, replace=False, shuffle=False))
    drawn.flags.writeable = False
    return drawn

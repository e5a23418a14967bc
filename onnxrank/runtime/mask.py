"""Which rows of a view are data and which padding, from a mask over the model's positions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxrank.errors import DataError
from onnxrank.graph.model import TensorInfo
from onnxrank.runtime.check import shown


def check_mask(name: str | None, inputs: Sequence[TensorInfo]) -> None:
    """Raise unless `name` is None or an input of the model."""
    names = [info.name for info in inputs]
    if name is not None and name not in names:
        listed = ", ".join(map(repr, names))
        raise DataError(f"mask {name!r} is no input of the model", hint=f"the inputs are {listed}")


def rows_kept(mask: NDArray[Any], grid: Sequence[int]) -> tuple[NDArray[np.bool_] | None, str]:
    """Rows of a grid that a mask keeps (its zeros mark padding).

    A mask fits if its axes are the grid's first ones, as they are or merged (``[B, T]`` for rows
    along ``[B, T]``, ``[B, T, heads]`` or ``[B * T]``); axes of length one do not count.

    Returns
    -------
    (ndarray of bool or None, str)
        One entry a row in C order; or None, with the reason.
    """
    positions = [size for size in mask.shape if size != 1]
    axes = [size for size in grid if size != 1]
    lead = len(positions)
    merged = any(prod(axes[:k]) == mask.size for k in range(1, lead))
    if axes[:lead] != positions and not (lead and merged):
        return None, f"a mask of shape {shown(mask.shape)} does not fit rows along {shown(grid)}"
    kept = mask.reshape(-1) != 0
    return np.repeat(kept, prod(grid) // mask.size if mask.size else 1), ""

"""How a tensor becomes rows: the layouts, as data, and their numpy interpreter.

Rows are samples (method: sections 1 and 3): a linear map sees one token, or one im2col patch, at
a time. Operators emit a layout; `rows` is its only interpreter in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Keep = NDArray[np.bool_] | NDArray[np.integer[Any]] | None


@dataclass(frozen=True)
class Axis:
    """Rows along all axes but ``axes``; the listed axes, flattened in that order, are the columns.

    Attributes
    ----------
    axes : tuple of int
        Axes that form one row's vector; negative ones count from the end, as in numpy.
    groups : int
        The vector is cut into this many equal, contiguous groups.
    """

    axes: tuple[int, ...] = (-1,)
    groups: int = 1

    def columns(self, rank: int) -> tuple[int, ...]:
        """``axes``, counted from the front, for a tensor of this rank."""
        axes = tuple(axis % rank if -rank <= axis < rank else rank for axis in self.axes)
        if rank in axes or len(set(axes)) < len(axes):
            raise ValueError(f"axes {self.axes} do not fit a tensor of rank {rank}")
        return axes

    def others(self, rank: int) -> tuple[int, ...]:
        """Return the axes the rows run along, for a tensor of this rank."""
        columns = self.columns(rank)
        return tuple(axis for axis in range(rank) if axis not in columns)


@dataclass(frozen=True)
class Patches:
    """One row per output position of a convolution over ``[N, C, *spatial]``: its im2col patch.

    Attributes
    ----------
    kernel, strides, dilations : tuple of int
        One entry a spatial axis.
    pads : tuple of int
        As in ONNX: all beginnings, then all ends; ignored unless `auto_pad` is ``NOTSET``.
    groups : int
        Channel groups; a row's vector has ``C / groups * prod(kernel)`` entries, channel first.
    auto_pad : str
        ``NOTSET``, ``SAME_UPPER``, ``SAME_LOWER`` or ``VALID``.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    auto_pad: str = "NOTSET"

    @property
    def extents(self) -> tuple[int, ...]:
        """Input positions from a dilated kernel's first tap to its last, an entry an axis."""
        sizes = zip(self.kernel, self.dilations, strict=True)
        return tuple((size - 1) * dilation + 1 for size, dilation in sizes)

    def padding(self, spatial: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Zeros before and after each spatial axis of these lengths, `auto_pad` resolved."""
        rank = len(self.kernel)
        if self.auto_pad == "NOTSET":
            return tuple(zip(self.pads[:rank], self.pads[rank:], strict=True))
        if self.auto_pad == "VALID":
            return ((0, 0),) * rank
        if self.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            raise ValueError(f"auto_pad {self.auto_pad!r} is not one of ONNX's")
        pads = []
        for length, extent, stride in zip(spatial, self.extents, self.strides, strict=True):
            total = max((-(-length // stride) - 1) * stride + extent - length, 0)
            begin = total // 2 if self.auto_pad == "SAME_UPPER" else total - total // 2
            pads.append((begin, total - begin))
        return tuple(pads)

    def spatial_out(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Output lengths for these input lengths."""
        pads = self.padding(spatial)
        slack = [n + sum(p) - e for n, p, e in zip(spatial, pads, self.extents, strict=True)]
        if min(slack, default=0) < 0:
            raise ValueError(f"kernel {self.kernel} does not fit the spatial axes {spatial}")
        return tuple(s // stride + 1 for s, stride in zip(slack, self.strides, strict=True))


Layout = Axis | Patches


def row_shape(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """Grid of the rows of a tensor of this shape; its product is the number of rows.

    Returns
    -------
    tuple of int
        The remaining axes for `Axis`, ``(N, *spatial_out)`` for `Patches`.
    """
    if isinstance(layout, Axis):
        return tuple(shape[axis] for axis in layout.others(len(shape)))
    _check(shape, layout)
    return (shape[0], *layout.spatial_out(shape[2:]))


def width(shape: Sequence[int], layout: Layout) -> int:
    """Entries of one row's vector within one group, for a tensor of this shape."""
    if isinstance(layout, Axis):
        size = prod(shape[axis] for axis in layout.columns(len(shape)))
    else:
        _check(shape, layout)
        size = shape[1] * prod(layout.kernel)
    if size % layout.groups:
        raise ValueError(f"{size} entries do not divide into {layout.groups} groups")
    return size // layout.groups


def rows(x: NDArray[Any], layout: Layout, keep: Keep = None) -> Floats:
    """Rows of a tensor, one per sample of the linear map that reads it.

    At most one copy of the result is made, none where strides can say it, and with `keep` only
    the rows asked for are gathered.

    Parameters
    ----------
    x : ndarray
        Any shape the layout fits; types narrower than float32 are cast to float32.
    layout : Layout
        How the tensor becomes rows.
    keep : ndarray of bool or int, optional
        A mask over the rows (flat, or of shape ``row_shape``), or the indices of the rows wanted.

    Returns
    -------
    ndarray of float32 or float64, shape (groups, n, d)
        In C order of `row_shape`; possibly a view, and not always contiguous.
    """
    x = x.astype(np.result_type(x.dtype, np.float32), copy=False)
    grid, d = row_shape(x.shape, layout), width(x.shape, layout)
    if keep is not None:
        return _kept(x, layout, _numbers(keep, prod(grid)), grid, d)
    view = _axis_view(x, layout) if isinstance(layout, Axis) else _patch_view(x, layout)
    if isinstance(layout, Axis):
        return view.reshape(layout.groups, prod(grid), d)
    # Copied with the positions innermost: neighbours there are neighbours in memory, too.
    inner = len(grid) + 1
    turned = view.transpose(0, *range(inner, view.ndim), *range(1, inner))
    taken: Floats = turned.reshape(layout.groups, d, prod(grid)).swapaxes(1, 2)
    return taken


def _check(shape: Sequence[int], layout: Patches) -> None:
    """Raise unless a tensor of this shape has as many spatial axes as the kernel."""
    if len(shape) != len(layout.kernel) + 2:
        raise ValueError(f"kernel {layout.kernel} does not fit a tensor of rank {len(shape)}")
    if shape[1] % layout.groups:
        raise ValueError(f"{shape[1]} channels do not divide into {layout.groups} groups")


def _axis_view(x: Floats, layout: Axis) -> Floats:
    """View of shape (groups, *grid, d), or (groups, *grid, d_1 / groups, d_2, ...)."""
    columns, others = layout.columns(x.ndim), layout.others(x.ndim)
    view: Floats = x.transpose(*others, *columns)
    if layout.groups == 1:
        return view[None]
    grid = view.shape[: len(others)]
    split = view.reshape(*grid, layout.groups, width(x.shape, layout))
    return np.moveaxis(split, len(others), 0)


def _patch_view(x: Floats, layout: Patches) -> Floats:
    """View of shape (groups, N, *spatial_out, C / groups, *kernel)."""
    out = layout.spatial_out(x.shape[2:])
    pads = ((0, 0), (0, 0), *layout.padding(x.shape[2:]))
    padded = np.pad(x, pads) if any(map(sum, pads)) else x
    batch, channels, *steps = padded.strides
    size = x.shape[1] // layout.groups
    moves = [step * stride for step, stride in zip(steps, layout.strides, strict=True)]
    taps = [step * dilation for step, dilation in zip(steps, layout.dilations, strict=True)]
    return as_strided(
        padded,
        shape=(layout.groups, x.shape[0], *out, size, *layout.kernel),
        strides=(size * channels, batch, *moves, channels, *taps),
        writeable=False,
    )


def _numbers(keep: NDArray[Any], n: int) -> NDArray[Any]:
    """Indices of the rows that are wanted."""
    if keep.dtype != np.bool_:
        return keep
    if keep.size != n:
        raise ValueError(f"a mask of {keep.size} entries for {n} rows")
    return np.flatnonzero(keep)


def _kept(x: Floats, layout: Layout, keep: NDArray[Any], grid: tuple[int, ...], d: int) -> Floats:
    """Some rows, each gathered alone."""
    if isinstance(layout, Patches):
        if 2 * keep.size * layout.groups * d < x.size:
            return _few_patches(x, layout, keep, grid)
        view = _patch_view(x, layout)
    elif layout.columns(x.ndim) == tuple(range(len(grid), x.ndim)) and x.flags.c_contiguous:
        flat = x.reshape(prod(grid), layout.groups, d)
        return np.swapaxes(flat[keep], 0, 1)
    else:
        view = _axis_view(x, layout)
    if not grid:  # one row, and no axis to index
        view, grid = view[:, None], (1,)
    index: tuple[Any, ...] = (slice(None), *np.unravel_index(keep, grid))
    picked: Floats = view[index]
    return picked.reshape(layout.groups, picked.shape[1], d)


def _few_patches(x: Floats, layout: Patches, keep: NDArray[Any], grid: tuple[int, ...]) -> Floats:
    """Some patches, entry by entry: no copy of the tensor with its padding is made."""
    n, channels, spatial = len(keep), x.shape[1], x.shape[2:]
    sample, *positions = np.unravel_index(keep, grid)
    index, inside = sample * (channels * prod(spatial)), np.ones(n, np.bool_)
    for axis, at in enumerate(positions):
        taps = np.arange(layout.kernel[axis]) * layout.dilations[axis]
        begin = layout.padding(spatial)[axis][0]
        places = (at * layout.strides[axis] - begin)[:, None] + taps
        places = places.reshape(n, *(1,) * axis, layout.kernel[axis])
        inside = inside[..., None] & (places >= 0) & (places < spatial[axis])
        step = prod(spatial[axis + 1 :])
        index = index[..., None] + places.clip(0, spatial[axis] - 1) * step
    size = prod(layout.kernel)
    planes = np.arange(channels)[:, None] * prod(spatial)
    taken: Floats = x.reshape(-1).take(index.reshape(n, 1, size) + planes)
    taken *= inside.reshape(n, 1, size)
    return np.swapaxes(taken.reshape(n, layout.groups, channels // layout.groups * size), 0, 1)

"""Convolutions and pools: padding as ONNX states it, then torch's own kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = dict[str, Any]


class UnsupportedError(Exception):
    """An operator, or a setting of one, that there is no gradient for here."""


def conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Conv in any number of spatial dimensions."""
    n = x.ndim - 2
    strides, dilations = _each(a, "strides", n), _each(a, "dilations", n)
    x = pad(x, _pads(a, x.shape[2:], w.shape[2:], strides, dilations))
    zeros = [0] * n
    return torch.convolution(x, w, b, strides, zeros, dilations, False, zeros, a.get("group", 1))


def conv_transpose(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """ConvTranspose: everything that is reached, then cut to what is wanted."""
    n = x.ndim - 2
    strides, dilations = _each(a, "strides", n), _each(a, "dilations", n)
    zeros = [0] * n
    full = torch.convolution(x, w, None, strides, zeros, dilations, True, zeros, a.get("group", 1))
    extra = a.get("output_padding") or zeros
    pads = a.get("pads") or [0] * (2 * n)
    wanted = a.get("output_shape")
    same = str(a.get("auto_pad", "")).startswith("SAME")
    if wanted or same:
        wanted = wanted or [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
        reached = [size + e for size, e in zip(full.shape[2:], extra, strict=True)]
        total = [r - size for r, size in zip(reached, wanted[-n:], strict=True)]
        pads = _parted(total, upper=a.get("auto_pad") == "SAME_UPPER")
    ends = [e - p for e, p in zip(extra, pads[n:], strict=True)]
    out = pad(full, [*(-p for p in pads[:n]), *ends])
    return out if b is None else out + b.reshape(-1, *[1] * n)


def pad(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last dimensions by [begins..., ends...]; negative numbers cut."""
    n = len(pads) // 2
    pairs = [p for k in reversed(range(n)) for p in (pads[k], pads[n + k])]
    return F.pad(x, pairs, value=value) if any(pairs) else x


def max_pool(a: Attributes, x: Tensor) -> Tensor:
    """MaxPool; its second output is left out."""
    n, kernel = x.ndim - 2, a["kernel_shape"]
    strides, dilations = _each(a, "strides", n), _each(a, "dilations", n)
    x = pad(x, _pads(a, x.shape[2:], kernel, strides, dilations), float("-inf"))
    return _MAX[n](x, kernel, strides, 0, dilations, bool(a.get("ceil_mode", 0)))


def average_pool(a: Attributes, x: Tensor) -> Tensor:
    """AveragePool: the mean over every window, over that of what counts in it."""
    n, kernel = x.ndim - 2, a["kernel_shape"]
    strides = _each(a, "strides", n)
    if any(d != 1 for d in _each(a, "dilations", n)):
        raise UnsupportedError("AveragePool with dilations has no gradient here")
    pads = _pads(a, x.shape[2:], kernel, strides, [1] * n)
    ceil = bool(a.get("ceil_mode", 0))
    counts = pad(torch.ones_like(x[:1, :1]), pads, float(a.get("count_include_pad", 0)))
    means = _MEAN[n](pad(x, pads), kernel, strides, 0, ceil)
    return means / _MEAN[n](counts, kernel, strides, 0, ceil)


_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _each(a: Attributes, name: str, n: int) -> list[int]:
    return list(a.get(name) or [1] * n)


def _pads(
    a: Attributes,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Begins, then ends."""
    kind = a.get("auto_pad", "NOTSET")
    if not kind.startswith("SAME"):
        given = a.get("pads") if kind == "NOTSET" else None
        return list(given or [0] * (2 * len(sizes)))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    total = [
        max(0, (-(-size // s) - 1) * s + span - size)
        for size, s, span in zip(sizes, strides, spans, strict=True)
    ]
    return _parted(total, upper=kind == "SAME_UPPER")


def _parted(total: Sequence[int], *, upper: bool) -> list[int]:
    """Totals as begins and ends; an odd one goes to the end if `upper`."""
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return [*small, *large] if upper else [*large, *small]

"""Do data fit a model's inputs: names, types, shapes, finite values. Nothing is ever cast."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.errors import DataError
from onnxrank.graph.model import TensorInfo

LABEL = "__label__"
GROUP = "__group__"

Inputs = Sequence[TensorInfo]


def check_names(names: Iterable[str], inputs: Inputs, where: str) -> None:
    """Raise unless there is every input without a default, and nothing unknown."""
    given = set(names) - {LABEL, GROUP}
    known = [info.name for info in inputs]
    missing = [info.name for info in inputs if not info.optional and info.name not in given]
    unknown = sorted(given - set(known))
    if not missing and not unknown:
        return
    if unknown:
        what = f"{_listed(unknown)} is no input of the model"
    else:
        what = f"input {_listed(missing)} is missing"
    close = difflib.get_close_matches(unknown[0], [*known, LABEL, GROUP], 1) if unknown else []
    hint = f"did you mean {close[0]!r}?" if close else f"the inputs are {_listed(known)}"
    raise DataError(what, where=where, hint=hint)


def check_feed(feed: Mapping[str, Any], inputs: Inputs, where: str) -> None:
    """Raise unless a complete feed fits the inputs."""
    check_names(feed, inputs, where)
    for info in inputs:
        if info.name in feed and info.dtype:
            value = feed[info.name]
            check_dtype(value.dtype, info, where)
            check_shape(value.shape, info, where)
            check_finite(value, info.name, where)


def check_dtype(dtype: np.dtype[Any], info: TensorInfo, where: str) -> None:
    """Raise unless elements are of the type the input declares."""
    wanted = numpy_dtype(info)
    if info.dtype == onnx.TensorProto.STRING:
        fits = dtype.kind in "UO"
    else:
        fits = dtype == wanted
    if not fits:
        name = "str" if info.dtype == onnx.TensorProto.STRING else wanted
        raise DataError(f"input {info.name!r} is {name}, but the data are {dtype}", where=where)


def check_shape(shape: Sequence[int], info: TensorInfo, where: str, *, start: int = 0) -> None:
    """Raise unless a shape has the declared rank, and the fixed sizes from axis `start` on."""
    if info.shape is None:
        return
    fits = len(shape) == len(info.shape) and all(
        not isinstance(wanted, int) or wanted == got
        for wanted, got in list(zip(info.shape, shape, strict=True))[start:]
    )
    if not fits:
        raise DataError(
            f"input {info.name!r} has shape {shown(info.shape)}, "
            f"but the data have {shown(tuple(shape))}",
            where=where,
        )


def check_finite(value: NDArray[Any], name: str, where: str) -> None:
    """Raise at NaN or infinity."""
    if value.dtype.kind not in "fc" or np.isfinite(value).all():
        return
    bad = "NaN" if np.isnan(value).any() else "infinity"
    raise DataError(f"input {name!r} holds {bad}", where=where)


def numpy_dtype(info: TensorInfo) -> np.dtype[Any]:
    """Return the numpy type of an input."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(info.dtype))


def check_shard(index: int, count: int) -> None:
    """Raise unless this is one of `count` shards, the first being 1."""
    if not 1 <= index <= count:
        raise DataError(f"there is no shard {index} of {count}", hint="the first is 1")


def feed_size(feed: Mapping[str, Any]) -> int:
    """Samples in a complete feed: the leading size that its arrays share, else 1."""
    shapes = [getattr(v, "shape", ()) for k, v in feed.items() if k not in (GROUP, LABEL)]
    leading = {int(shape[0]) for shape in shapes if shape}
    return max(leading.pop(), 1) if len(leading) == 1 else 1


def shown(shape: Sequence[int | str | None]) -> str:
    """Write a shape as users know it."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)

"""What the operators on the way from a constant to its reader do, in numpy.

Moves say where entries go; they also tell shapes, run on a stand-in of one entry. Conversions say
what type entries get, and how.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Step:
    """One operator of a chain, with what it needs but its first input.

    Attributes
    ----------
    op : str
        A name in `MOVES` or `CONVERSIONS`.
    attributes : dict
        Its attributes by name.
    kinds : tuple of int
        onnx.TensorProto data types of its inputs, 0 where one is not given.
    shapes : tuple of (tuple of int) or None
        Shapes of its inputs.
    extras : tuple of ndarray or None
        Its inputs from the second on, where they are given and needed.
    outputs : int
        How many outputs it has.
    which : int
        The output that the chain goes through.
    """

    op: str
    attributes: dict[str, Any]
    kinds: tuple[int, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    extras: tuple[Array | None, ...]
    outputs: int = 1
    which: int = 0

    def numbers(self, index: int, name: str) -> list[int] | None:
        """Integers from extra input `index` or, in older operator sets, attribute `name`."""
        if index < len(self.extras) and self.extras[index] is not None:
            return [int(v) for v in np.asarray(self.extras[index]).reshape(-1)]
        found = self.attributes.get(name)
        return None if found is None else [int(v) for v in found]


def after(step: Step, shape: tuple[int, ...], dtype: int) -> tuple[tuple[int, ...], int]:
    """Shape and data type behind a step, from those before it.

    Raises
    ------
    ValueError, TypeError, IndexError
        The step does not fit its input.
    """
    if step.op in MOVES:
        stand_in = np.broadcast_to(np.int8(0), shape)
        return MOVES[step.op](step, stand_in).shape, dtype
    if step.op in ("QuantizeLinear", "DequantizeLinear"):
        if len(step.shapes) < 2:
            raise ValueError("no scale is given")
        for parameter in step.shapes[1:3]:
            if parameter is not None:
                _fit(step, parameter, shape)
    return shape, _kind(step)


def apply(step: Step, value: Array) -> Array:
    """The value behind a step; errors as `after`."""
    if step.op in MOVES:
        return MOVES[step.op](step, value)
    return CONVERSIONS[step.op](step, value)


def _transpose(step: Step, x: Array) -> Array:
    turned: Array = x.transpose(step.attributes.get("perm"))
    return turned


def _reshape(step: Step, x: Array) -> Array:
    wanted = step.numbers(0, "shape")
    if wanted is None:
        raise ValueError("no shape is given")
    if not step.attributes.get("allowzero", 0):
        wanted = [x.shape[k] if dim == 0 else dim for k, dim in enumerate(wanted)]
    return x.reshape(wanted)


def _unsqueeze(step: Step, x: Array) -> Array:
    axes = step.numbers(0, "axes")
    if axes is None:
        raise ValueError("no axes are given")
    return np.expand_dims(x, tuple(axes))


def _squeeze(step: Step, x: Array) -> Array:
    axes = step.numbers(0, "axes")
    return x.squeeze(None if axes is None else tuple(axes))


def _flatten(step: Step, x: Array) -> Array:
    axis = int(step.attributes.get("axis", 1))
    if not -x.ndim <= axis <= x.ndim:
        raise ValueError(f"axis {axis} of {x.ndim}")
    axis = axis + x.ndim if axis < 0 else axis
    lead = int(np.prod(x.shape[:axis], dtype=np.int64))
    return x.reshape(lead, x.size // lead if lead else 0)


def _split(step: Step, x: Array) -> Array:
    axis = int(step.attributes.get("axis", 0))
    length, count = x.shape[axis], step.outputs
    sizes = step.numbers(0, "split")
    if sizes is None:
        each = -(-length // count)
        sizes = [each] * (count - 1) + [length - each * (count - 1)]
    if sum(sizes) != length or len(sizes) != count or min(sizes) < 0:
        raise ValueError(f"parts {sizes} of {length}")
    start = sum(sizes[: step.which])
    return _cut(x, axis, slice(start, start + sizes[step.which]))


def _slice(step: Step, x: Array) -> Array:
    starts, ends = step.numbers(0, "starts"), step.numbers(1, "ends")
    if starts is None or ends is None:
        raise ValueError("no starts or ends are given")
    axes = step.numbers(2, "axes") or list(range(len(starts)))
    steps = step.numbers(3, "steps") or [1] * len(starts)
    for axis, start, end, each in zip(axes, starts, ends, steps, strict=True):
        x = _cut(x, axis, _limited(start, end, each, x.shape[axis]))
    return x


def _limited(start: int, end: int, step: int, length: int) -> slice:
    """ONNX keeps a start within the axis, where Python lets it lie before."""
    start, end = (v + length if v < 0 else v for v in (start, end))
    if step < 0:
        start, end = min(max(start, 0), length - 1), min(max(end, -1), length - 1)
        return slice(max(start, 0), None if end < 0 else end, step)
    return slice(max(start, 0), max(end, 0), step)


def _cut(x: Array, axis: int, part: slice) -> Array:
    index: list[slice] = [slice(None)] * x.ndim
    index[axis] = part
    return x[tuple(index)]


MOVES: dict[str, Callable[[Step, Array], Array]] = {
    "Identity": lambda step, x: x,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "Split": _split,
    "Slice": _slice,
}

_NUMBERS = {
    onnx.TensorProto.DataType.Value(name)
    for name in (
        "FLOAT DOUBLE FLOAT16 BFLOAT16 BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64"
    ).split()
}
_LIMITS: dict[int, tuple[int, int]] = {
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT16: (0, 65535),
    onnx.TensorProto.INT16: (-32768, 32767),
    onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT4: (-8, 7),
}


def _kind(step: Step) -> int:
    """Data type behind a conversion."""
    kinds = (*step.kinds, 0, 0, 0)
    asked = int(step.attributes.get("output_dtype", 0))
    if step.op == "Cast":
        to = step.attributes["to"]
        kind = onnx.TensorProto.DataType.Value(to) if isinstance(to, str) else int(to)
    elif step.op == "CastLike":
        kind = kinds[1]
    elif step.op == "DequantizeLinear":
        kind = asked or kinds[1]
    else:
        kind = kinds[2] or asked or onnx.TensorProto.UINT8
    known = _LIMITS if step.op == "QuantizeLinear" else _NUMBERS
    if kind not in known:
        raise ValueError(f"conversions to type {kind} are not known")
    return kind


def _numpy(kind: int) -> np.dtype[Any]:
    return onnx.helper.tensor_dtype_to_np_dtype(kind)


def _cast(step: Step, x: Array) -> Array:
    if x.dtype.kind in "OSUc":
        raise ValueError(f"casts of {x.dtype} are not known")
    with np.errstate(all="ignore"):
        return x.astype(_numpy(_kind(step)))


def _dequantize(step: Step, x: Array) -> Array:
    scale, zero = (*step.extras, None, None)[:2]
    if scale is None:
        raise ValueError("no scale is given")
    integer = step.kinds[0] in _LIMITS or step.kinds[0] == onnx.TensorProto.INT32
    wide: Array = x.astype(np.int32 if integer else np.float32)
    if zero is not None:
        wide = wide - _spread(step, zero, x.shape).astype(wide.dtype)
    working = np.float64 if scale.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):  # as onnxruntime: NaN and infinity are found where they matter
        value = wide.astype(working) * _spread(step, scale, x.shape).astype(working)
        return value.astype(_numpy(_kind(step)))


def _quantize(step: Step, x: Array) -> Array:
    scale, zero = (*step.extras, None, None)[:2]
    if scale is None:
        raise ValueError("no scale is given")
    kind = _kind(step)
    low, high = _LIMITS[kind]
    with np.errstate(all="ignore"):
        value = np.rint(x.astype(np.float32) / _spread(step, scale, x.shape).astype(np.float32))
    if zero is not None:
        value = value + _spread(step, zero, x.shape).astype(np.float32)
    kept: Array = np.nan_to_num(np.clip(value, low, high))
    return kept.astype(np.int32).astype(_numpy(kind))


def _spread(step: Step, parameter: Array, shape: tuple[int, ...]) -> Array:
    """A scale or zero point beside each entry: of all, of an axis, or of blocks along it."""
    how = _fit(step, parameter.shape, shape)
    if how == "all":
        return parameter.reshape(())
    axis = int(step.attributes.get("axis", 1)) % len(shape)
    if how == "axis":
        return parameter.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    repeated = np.repeat(parameter, int(step.attributes["block_size"]), axis)
    return _cut(repeated, axis, slice(0, shape[axis]))


def _fit(step: Step, parameter: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What a scale or zero point belongs to: all entries, an axis, or blocks along it."""
    if math.prod(parameter) == 1:
        return "all"
    axis, block = int(step.attributes.get("axis", 1)), int(step.attributes.get("block_size", 0))
    if -len(shape) <= axis < len(shape):
        axis %= len(shape)
        blocks = [-(-n // block) if k == axis and block > 0 else n for k, n in enumerate(shape)]
        if not block and parameter == (shape[axis],):
            return "axis"
        if block > 0 and parameter == tuple(blocks):
            return "blocks"
    raise ValueError(f"scales of shape {parameter} do not fit {shape}")


CONVERSIONS: dict[str, Callable[[Step, Array], Array]] = {
    "Cast": _cast,
    "CastLike": _cast,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}

CHAIN = {*MOVES, *CONVERSIONS}

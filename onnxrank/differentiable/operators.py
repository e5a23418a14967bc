"""Operators of ONNX in torch: a line each where torch has the same one.

A function takes the node's attributes (with ``opset``, the version of the standard operator set)
and its inputs, None where one is left out, and gives the first output or a tuple of them. What is
missing here runs in onnxruntime where no gradient goes through it; see `network`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxrank.differentiable import windows
from onnxrank.differentiable.windows import UnsupportedError

Attributes = dict[str, Any]
Function = Callable[..., Any]


def torch_type(dtype: int) -> torch.dtype:
    """The type of an ONNX element type; half precision is computed in single."""
    if dtype in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        return torch.float32
    try:
        return torch.from_numpy(np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(dtype))).dtype
    except (TypeError, KeyError):
        name = onnx.TensorProto.DataType.Name(dtype)
        raise UnsupportedError(f"a Cast to {name} has no gradient here") from None


def _ints(a: Attributes, name: str, given: Tensor | None = None) -> list[int] | None:
    """What newer operator sets pass as an input, and older ones as an attribute."""
    if given is None:
        return a.get(name)
    return [int(k) for k in given.reshape(-1).tolist()]


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Function:
    def run(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = _ints(a, "axes", axes)
        if not dims and a.get("noop_with_empty_axes"):
            return x
        every = tuple(range(x.ndim))
        return function(x, tuple(dims or every), bool(a.get("keepdims", 1)))

    return run


def _product(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in sorted((d % x.ndim for d in dims), reverse=True):
        x = x.prod(dim, keepdim=keep)
    return x


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Function:
    def run(a: Attributes, x: Tensor) -> Tensor:
        if a["opset"] >= 13:
            return function(x, a.get("axis", -1))
        flat = x.flatten(a.get("axis", 1) % x.ndim)  # all dimensions from there on are one
        return function(flat, -1).reshape(x.shape)

    return run


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def run(a: Attributes, *x: Tensor) -> Tensor:
        total = x[0]
        for other in x[1:]:
            total = function(total, other)
        return total

    return run


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def run(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
        if a["opset"] < 7 and a.get("broadcast") and "axis" in a:
            y = y.reshape(*y.shape, *[1] * (x.ndim - y.ndim - a["axis"]))
        return function(x, y)

    return run


def _div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _clip(
    a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> Tensor:
    smallest = a.get("min") if low is None else low.reshape(())
    largest = a.get("max") if high is None else high.reshape(())
    if smallest is not None:
        x = torch.maximum(x, torch.as_tensor(smallest, dtype=x.dtype, device=x.device))
    if largest is not None:
        x = torch.minimum(x, torch.as_tensor(largest, dtype=x.dtype, device=x.device))
    return x


def _gemm(a: Attributes, x: Tensor, y: Tensor, c: Tensor | None = None) -> Tensor:
    x, y = x.T if a.get("transA") else x, y.T if a.get("transB") else y
    out = a.get("alpha", 1.0) * (x @ y) if a.get("alpha", 1.0) != 1.0 else x @ y
    return out if c is None else out + (c if a.get("beta", 1.0) == 1.0 else a["beta"] * c)


def _fused_matmul(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    if a.get("transBatchA") or a.get("transBatchB"):
        raise UnsupportedError("FusedMatMul with transposed batches has no gradient here")
    x = x.mT if a.get("transA") and x.ndim > 1 else x
    y = y.mT if a.get("transB") and y.ndim > 1 else y
    return a.get("alpha", 1.0) * (x @ y)


def _activated(function: Function) -> Function:
    """One of onnxruntime's fusions: an operator with its activation."""

    def run(a: Attributes, *x: Tensor) -> Tensor:
        if len(x) > 3:  # FusedConv adds what a residual brings
            out = function(a, *x[:3]) + x[3]
        else:
            out = function(a, *x)
        name = a.get("activation", "")
        if name not in ("", "Relu", "Sigmoid", "Tanh"):
            raise UnsupportedError(f"the fused activation {name} has no gradient here")
        made: Tensor = OPERATORS[name]({}, out) if name else out
        return made

    return run


def _layer_norm(
    a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    axis, epsilon = a.get("axis", -1) % x.ndim, a.get("epsilon", 1e-5)
    out = F.layer_norm(x, x.shape[axis:], eps=epsilon) * scale
    out = out if bias is None else out + bias
    if a["outputs"] == 1:
        return (out,)
    dims = tuple(range(axis, x.ndim))
    return out, x.mean(dims, True), (x.var(dims, correction=0, keepdim=True) + epsilon).rsqrt()


def _rms_norm(a: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    axis = a.get("axis", -1) % x.ndim
    return F.rms_norm(x, x.shape[axis:], eps=a.get("epsilon", 1e-5)) * scale


def _skip_layer_norm(
    a: Attributes,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    (out,) = _layer_norm({**a, "axis": -1, "outputs": 1}, total, scale, shift)
    return out, None, None, total


def _group_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = a["num_groups"]
    if len(scale) == groups != x.shape[1]:  # before opset 21, one a group
        scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
    return F.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))


def _batch_norm(
    a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, eps=a.get("epsilon", 1e-5))


def _selu(a: Attributes, x: Tensor) -> Tensor:
    alpha, gamma = a.get("alpha", 1.6732632), a.get("gamma", 1.0507010)
    return gamma * torch.where(x > 0, x, alpha * x.expm1())


def _prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _gelu(a: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=a.get("approximate", "none"))


def _fast_gelu(a: Attributes, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _multi_head_attention(
    a: Attributes, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *others: Any
) -> Tensor:
    """com.microsoft's MultiHeadAttention of three separate inputs, without masks or caches."""
    if k is None or v is None or k.ndim != 3 or any(other is not None for other in others):
        raise UnsupportedError(
            "MultiHeadAttention with packed inputs or masks has no gradient here"
        )
    heads = a["num_heads"]
    if bias is not None:
        parts = bias.split([q.shape[2], k.shape[2], v.shape[2]])
        q, k, v = q + parts[0], k + parts[1], v + parts[2]
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=a.get("scale") or None)
    return out.transpose(1, 2).flatten(2)


def _reshape(a: Attributes, x: Tensor, shape: Tensor | None = None) -> Tensor:
    dims = _ints(a, "shape", shape) or []
    if not a.get("allowzero"):
        dims = [x.shape[k] if dim == 0 else dim for k, dim in enumerate(dims)]
    return x.reshape(dims)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(a.get("perm") or tuple(reversed(range(x.ndim))))


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = _ints(a, "axes", axes)
    return x.squeeze() if dims is None else x.squeeze(tuple(dims))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = _ints(a, "axes", axes) or []
    total = x.ndim + len(dims)
    for dim in sorted(d % total for d in dims):
        x = x.unsqueeze(dim)
    return x


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis: int = a.get("axis", 0)
    given: Any = _ints(a, "split", sizes)
    if given is None:
        given = -(-x.shape[axis] // a.get("num_outputs", a["outputs"]))
    return tuple(x.split(given, axis))


def _slice(
    a: Attributes,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begin, end = _ints(a, "starts", starts) or [], _ints(a, "ends", ends) or []
    dims = _ints(a, "axes", axes) or range(len(begin))
    pace = _ints(a, "steps", steps) or [1] * len(begin)
    for dim, first, last, step in zip(dims, begin, end, pace, strict=True):
        chosen = range(*slice(first, last, step).indices(x.shape[dim]))
        if chosen.step == 1:
            x = x.narrow(dim, chosen.start if chosen else 0, len(chosen))
        else:
            x = x.index_select(dim, torch.tensor(list(chosen), dtype=torch.long, device=x.device))
    return x


def _gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index).long()
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _gather_elements(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0)
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index).long())


def _expand(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(
        x.shape[a.get("start", 0) : a.get("end")], dtype=torch.long, device=x.device
    )


def _pad(
    a: Attributes,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    given = _ints(a, "pads", pads) or a.get("paddings") or []
    dims = _ints(a, "axes", axes) or list(range(x.ndim))
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for k, dim in enumerate(dims):
        begins[dim], ends[dim] = given[k], given[len(dims) + k]
    mode = a.get("mode", "constant")
    if mode == "constant":
        filling = a.get("value", 0.0) if value is None else value.item()
        return windows.pad(x, [*begins, *ends], filling)
    for dim, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin or end:
            places = torch.arange(-begin, x.shape[dim] + end, device=x.device)
            x = x.index_select(dim, _folded(places, x.shape[dim], mode))
    return x


def _folded(places: Tensor, size: int, mode: str) -> Tensor:
    """Places outside 0..size as the mode of a Pad brings them in."""
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    return (size - 1) - ((places % period) - (size - 1)).abs()


def _resize(a: Attributes, x: Tensor, *inputs: Tensor | None) -> Tensor:
    """Resize of the spatial dimensions, in those settings that torch has too."""
    given = [t for t in inputs if t is not None and t.numel()]
    mode, place = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    wanted = given[-1].tolist()
    if given[-1].is_floating_point():
        wanted = [s * n for s, n in zip(wanted, x.shape, strict=False)]
    sizes = [int(size) for size in wanted]
    odd = any(a.get(name) for name in ("antialias", "exclude_outside", "axes"))
    odd = odd or a.get("cubic_coeff_a", -0.75) != -0.75 or sizes != wanted
    if odd or len(sizes) != x.ndim or sizes[:2] != list(x.shape[:2]) or 1 in sizes[2:]:
        raise UnsupportedError("Resize with these settings has no gradient here")
    if mode == "nearest":
        whole = all(n % m == 0 for n, m in zip(sizes, x.shape, strict=True))
        if not whole or (place, a.get("nearest_mode", "round_prefer_floor")) not in _PLAIN_NEAREST:
            raise UnsupportedError("Resize to the nearest so has no gradient here")
        return F.interpolate(x, sizes[2:], mode="nearest")
    corners = place == "align_corners"
    if not corners and place not in ("half_pixel", "pytorch_half_pixel"):
        raise UnsupportedError(f"Resize with {place} has no gradient here")
    return F.interpolate(x, sizes[2:], mode=_SMOOTH[mode, x.ndim], align_corners=corners)


_SMOOTH = {
    ("linear", 3): "linear",
    ("linear", 4): "bilinear",
    ("linear", 5): "trilinear",
    ("cubic", 4): "bicubic",
}
_PLAIN_NEAREST = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
}


def _upsample(a: Attributes, x: Tensor, scales: Tensor | None = None) -> Tensor:
    factors = torch.tensor(a["scales"]) if scales is None else scales
    fixed = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resize({**a, **fixed}, x, factors)


def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    parts = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(a: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = a["blocksize"]
    parts = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * b**2, h // b, w // b)


def _trilu(a: Attributes, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return x.triu(diagonal) if a.get("upper", 1) else x.tril(diagonal)


def _cumsum(a: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    dim = int(axis.item())
    x = x.flip(dim) if a.get("reverse") else x
    total = x.cumsum(dim) - x if a.get("exclusive") else x.cumsum(dim)
    return total.flip(dim) if a.get("reverse") else total


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


OPERATORS: dict[str, Function] = {
    "Abs": lambda a, x: x.abs(),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "AveragePool": windows.average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda a, x: x.to(torch_type(a["to"])),
    "CastLike": lambda a, x, y: x.to(y.dtype),
    "Celu": lambda a, x: F.celu(x, a.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": lambda a, *x: torch.cat(x, a.get("axis", 1)),
    "Conv": windows.conv,
    "ConvTranspose": windows.conv_transpose,
    "Cos": lambda a, x: x.cos(),
    "CumSum": _cumsum,
    "DepthToSpace": _depth_to_space,
    "Div": _binary(_div),
    "Dropout": lambda a, x, *others: x,
    "Einsum": lambda a, *x: torch.einsum(a["equation"].replace(" ", ""), *x),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": lambda a, x: x.erf(),
    "Exp": lambda a, x: x.exp(),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean(_spatial(x), keepdim=True),
    "GlobalMaxPool": lambda a, x: x.amax(_spatial(x), keepdim=True),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, x: F.hardswish(x),
    "Identity": lambda a, x: x,
    "InstanceNormalization": lambda a, x, s, b: F.instance_norm(
        x, weight=s, bias=b, eps=a.get("epsilon", 1e-5)
    ),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": lambda a, x: x.log(),
    "LogSoftmax": _softmax(lambda x, dim: x.log_softmax(dim)),
    "LpNormalization": lambda a, x: F.normalize(x, a.get("p", 2), a.get("axis", -1)),
    "MatMul": lambda a, x, y: x @ y,
    "Max": _fold(torch.maximum),
    "MaxPool": windows.max_pool,
    "Mean": lambda a, *x: sum(x) / len(x),
    "Min": _fold(torch.minimum),
    "Mish": lambda a, x: F.mish(x),
    "Mul": _binary(torch.mul),
    "Neg": lambda a, x: -x,
    "Not": lambda a, x: x.logical_not(),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": lambda a, x, y: x.pow(y).to(x.dtype),
    "RMSNormalization": _rms_norm,
    "Reciprocal": lambda a, x: x.reciprocal(),
    "ReduceL1": _reduce(lambda x, d, k: x.abs().sum(d, k)),
    "ReduceL2": _reduce(lambda x, d, k: torch.linalg.vector_norm(x, 2, d, k)),
    "ReduceLogSum": _reduce(lambda x, d, k: x.sum(d, k).log()),
    "ReduceLogSumExp": _reduce(lambda x, d, k: x.logsumexp(d, k)),
    "ReduceMax": _reduce(lambda x, d, k: x.amax(d, k)),
    "ReduceMean": _reduce(lambda x, d, k: x.mean(d, k)),
    "ReduceMin": _reduce(lambda x, d, k: x.amin(d, k)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(lambda x, d, k: x.sum(d, k, dtype=x.dtype)),
    "ReduceSumSquare": _reduce(lambda x, d, k: x.square().sum(d, k)),
    "Relu": lambda a, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Selu": _selu,
    "Shape": _shape,
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Sin": lambda a, x: x.sin(),
    "Slice": _slice,
    "Softmax": _softmax(lambda x, dim: x.softmax(dim)),
    "Softplus": lambda a, x: F.softplus(x),
    "Softsign": lambda a, x: F.softsign(x),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _fold(torch.add),
    "Swish": lambda a, x: x * (a.get("alpha", 1.0) * x).sigmoid(),
    "Tanh": lambda a, x: x.tanh(),
    "ThresholdedRelu": lambda a, x: torch.where(x > a.get("alpha", 1.0), x, torch.zeros_like(x)),
    "Tile": lambda a, x, repeats: x.tile(repeats.tolist()),
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Upsample": _upsample,
    "Where": lambda a, c, x, y: torch.where(c, x, y),
    "Xor": _binary(torch.logical_xor),
}
"""By name, of the standard operator set."""

MICROSOFT: dict[str, Function] = {
    "BiasGelu": lambda a, x, b: F.gelu(x + b),
    "FastGelu": _fast_gelu,
    "FusedConv": _activated(windows.conv),
    "FusedGemm": _activated(_gemm),
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "MultiHeadAttention": _multi_head_attention,
    "QuickGelu": lambda a, x: x * (a.get("alpha", 1.702) * x).sigmoid(),
    "SkipLayerNormalization": _skip_layer_norm,
}
"""By name, of com.microsoft: what onnxruntime's optimizer writes, and `compress` itself."""

FLAT = {"ArgMax", "ArgMin", "Ceil", "Floor", "IsInf", "IsNaN", "NonZero", "Round", "Sign", "Size"}
"""Operators whose gradient is zero wherever there is one: onnxruntime runs them."""


def find(node: onnx.NodeProto) -> Function | None:
    """The function of a node, or None."""
    if node.domain in ("", "ai.onnx"):
        return OPERATORS.get(node.op_type)
    return MICROSOFT.get(node.op_type) if node.domain == "com.microsoft" else None

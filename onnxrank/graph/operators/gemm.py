"""Gemm and FusedGemm: ``alpha A' B' + beta C`` with A or B constant."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph.attributes import attributes
from onnxrank.graph.constants import WeightRef
from onnxrank.graph.model import Model
from onnxrank.graph.operators.base import Context, Job, row_count
from onnxrank.graph.sites import Orientation, Site, Skip
from onnxrank.linalg.layout import Axis


def recognise(context: Context) -> Site | Skip | None:
    """A site for either constant operand; columns of B are the rows where A is constant."""
    left, right = context.constant(0), context.constant(1)
    if isinstance(right, WeightRef) and isinstance(left, WeightRef):
        return context.skip("constant_result", "both operands are constant")
    if isinstance(right, WeightRef):
        return _site(context, right, 0, bool(context.attributes.get("transB", 0)))
    if isinstance(left, WeightRef):
        return _site(context, left, 1, not context.attributes.get("transA", 0))
    return context.no_weight(right, left)


def _site(context: Context, weight: WeightRef, data: int, transposed: bool) -> Site | Skip:
    """The weight is d_out x d_in where `transposed`; the data are input `data`."""
    if len(weight.shape) != 2:
        return context.skip("rank", f"its weight has {len(weight.shape)} dimensions, not 2")
    d_in, d_out = weight.shape[::-1] if transposed else weight.shape
    flipped = bool(context.attributes.get("transA" if data == 0 else "transB", 0))
    # From the end, as MatMul has them: both reading one tensor share its moments.
    axis = -2 if flipped == (data == 0) else -1
    tensor = context.node.input[data]
    return context.site(
        weight,
        tensor,
        Axis((axis,)),
        Orientation(weight.shape, (1, 0) if transposed else (0, 1)),
        (1, d_in, d_out),
        rows=row_count(context.shape(tensor), (axis,)),
    )


def split(job: Job) -> list[onnx.NodeProto]:
    """``Gemm(Gemm(x, A), B, C)``; alpha, beta, C and an activation stay with the last one."""
    constant_left = job.site.view.tensor == job.input(1)
    a, b = job.first[0], job.second[0]
    if constant_left:
        flip = {"transB": int(job.attributes.get("transB", 0))}
        inputs = [job.constant("rank_in.weight", a.T), job.input(1)]
        last = [job.constant("rank_out.weight", b.T), job.middle]
    else:
        flip = {"transA": int(job.attributes.get("transA", 0))}
        inputs = [job.input(0), job.constant("rank_in.weight", a)]
        last = [job.middle, job.constant("rank_out.weight", b)]
    if job.opset < 11:  # C was required
        zero = job.constant("rank_in.zero", np.zeros(1))
        inputs.append(zero)
        if job.opset < 7:
            flip["broadcast"] = 1
    job.add("rank_in", "Gemm", inputs, job.middle, extra={k: v for k, v in flip.items() if v})
    bias, scale = _bias(job)
    if bias:
        last.append(bias)
    job.add(
        "rank_out",
        job.node.op_type,
        last,
        job.output,
        domain=job.node.domain,
        extra=scale,
        without=("transA", "transB"),
    )
    return job.nodes


def refit(job: Job) -> list[onnx.NodeProto]:
    """The same node with another weight and bias."""
    node = job.refitted()
    bias, scale = _bias(job)
    if bias != job.input(2):
        node.input.extend([""] * (3 - len(node.input)))
        node.input[2] = bias
    if scale:
        kept = [a for a in node.attribute if a.name not in scale]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in scale.items())
    job.nodes.append(node)
    return job.nodes


def _bias(job: Job) -> tuple[str, dict[str, float]]:
    """The third input, shifted, and the attributes that it changes."""
    shift = job.shift
    if shift is not None and (_beta(job.node) == 0.0 or not job.input(2)):
        value = spread(job.model, job.site, job.node, shift)
        return job.constant("rank_bias", value), {"beta": 1.0}
    if shift is not None:
        shift = into_bias(job.model, job.site, job.node, shift)
    return job.shifted(2, shift), {}


def _beta(node: onnx.NodeProto) -> float:
    return float(attributes(node).get("beta", 1.0))


def into_bias(
    model: Model, site: Site, node: onnx.NodeProto, shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A shift of the map, shape (1, d_out), as it is added to C; as it is where C is ignored."""
    return spread(model, site, node, shift) / (_beta(node) or 1.0)


def spread(
    model: Model, site: Site, node: onnx.NodeProto, shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A shift of the map, shape (1, d_out), as it is added to the node's output."""
    alpha = float(attributes(node).get("alpha", 1.0))
    return np.asarray(
        alpha * (shift[0][:, None] if site.view.tensor == node.input[1] else shift[0]), np.float64
    )

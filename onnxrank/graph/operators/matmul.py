"""MatMul and FusedMatMul with the constant on the right or on the left, any leading dimensions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph.attributes import attributes
from onnxrank.graph.constants import WeightRef, evaluate, resolve
from onnxrank.graph.model import Model
from onnxrank.graph.operators.base import Context, Job, row_count
from onnxrank.graph.scopes import node_key
from onnxrank.graph.sites import Orientation, Site, Skip
from onnxrank.linalg.layout import Axis


def recognise(context: Context) -> Site | Skip | None:
    """A site for either constant operand."""
    left, right = context.constant(0), context.constant(1)
    if isinstance(right, WeightRef) and isinstance(left, WeightRef):
        return context.skip("constant_result", "both operands are constant")
    if isinstance(right, WeightRef):
        return _right(context, right)
    if isinstance(left, WeightRef):
        return _left(context, left)
    return context.no_weight(right, left)


def _refusal(context: Context, weight: WeightRef) -> Skip | None:
    size = math.prod(weight.shape)
    if context.attributes.get("transBatchA") or context.attributes.get("transBatchB"):
        return context.skip("layout", "it transposes batch dimensions", size)
    if len(weight.shape) < 2:
        return context.skip("vector", "its weight is a vector: rank 1 already", size)
    if math.prod(weight.shape[:-2]) != 1:
        return context.skip("batched_weight", "its weight is a batch of matrices", size)
    return None


def _right(context: Context, weight: WeightRef) -> Site | Skip:
    refused = _refusal(context, weight)
    if refused:
        return refused
    transposed = bool(context.attributes.get("transB", 0))
    d_in, d_out = weight.shape[-2:][::-1] if transposed else weight.shape[-2:]
    tensor = context.node.input[0]
    shape = context.shape(tensor)
    axis = -2 if context.attributes.get("transA", 0) and not (shape and len(shape) == 1) else -1
    return context.site(
        weight,
        tensor,
        Axis((axis,)),
        Orientation(weight.shape[-2:], (1, 0) if transposed else (0, 1)),
        (1, d_in, d_out),
        rows=row_count(shape, (axis,)),
    )


def _left(context: Context, weight: WeightRef) -> Site | Skip:
    refused = _refusal(context, weight)
    if refused:
        return refused
    transposed = bool(context.attributes.get("transA", 0))
    d_in, d_out = weight.shape[-2:] if transposed else weight.shape[-2:][::-1]
    tensor = context.node.input[1]
    shape = context.shape(tensor)
    if shape is None:
        return context.skip(
            "unknown_rank", "its data have no known rank, which a left weight needs", d_in * d_out
        )
    axis = -1 if len(shape) == 1 or context.attributes.get("transB", 0) else -2
    return context.site(
        weight,
        tensor,
        Axis((axis,)),
        Orientation(weight.shape[-2:], (0, 1) if transposed else (1, 0)),
        (1, d_in, d_out),
        rows=row_count(shape, (axis,)),
    )


def split(job: Job) -> list[onnx.NodeProto]:
    """Two products; leading ones of the weight's shape, alpha and the operator stay."""
    alpha = float(job.attributes.get("alpha", 1.0))
    lead = (1,) * (len(job.site.weight.shape) - 2)
    a, b = job.first[0], job.second[0]
    left = job.site.view.tensor == job.input(1)
    keep = "transB" if left else "transA"
    flip: dict[str, Any] = {keep: 1} if job.attributes.get(keep) else {}
    shift = None if job.shift is None else spread(job.model, job.site, job.node, job.shift)
    # Only the constant on the outer side has the leading ones: a vector would gain them twice.
    if left:
        a, b = a.T, b.T.reshape(lead + b.T.shape)
    else:
        a = a.reshape(lead + a.shape)
    follower = None if shift is None else following_bias(job.model, job.site)
    inner = None if follower else shift
    first, second = job.constant("rank_in.weight", a), job.constant("rank_out.weight", b)
    op = "FusedMatMul" if flip else "MatMul"
    last, produced = job.node.op_type, job.finish(inner)
    scale = {"alpha": alpha} if alpha != 1.0 else {}
    order = (first, job.input(1)) if left else (job.input(0), first)
    job.add("rank_in", op, order, job.middle, domain=job.node.domain if flip else "", extra=flip)
    order = (second, job.middle) if left else (job.middle, second)
    job.add("rank_out", last, order, produced, domain=job.node.domain, extra=scale)
    if follower:
        assert shift is not None
        _move_bias(job, *follower, shift)
    return job.close(produced, inner)


def refit(job: Job) -> list[onnx.NodeProto]:
    """The same node with another weight; a shift goes where `split` puts it."""
    node = job.refitted()
    shift = None if job.shift is None else spread(job.model, job.site, job.node, job.shift)
    follower = None if shift is None else following_bias(job.model, job.site)
    inner = None if follower else shift
    produced = job.finish(inner)
    node.output[0] = produced
    job.nodes.append(node)
    if follower:
        assert shift is not None
        _move_bias(job, *follower, shift)
    return job.close(produced, inner)


def spread(
    model: Model, site: Site, node: onnx.NodeProto, shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A shift of the map, shape (1, d_out), as it is added to the node's output."""
    alpha = float(attributes(node).get("alpha", 1.0))
    left = site.view.tensor == node.input[1]
    column = left and len(model.shape(site.scope, node.input[1]) or (1, 1)) > 1
    return np.asarray(alpha * (shift[0][:, None] if column else shift[0]), np.float64)


def following_bias(model: Model, site: Site) -> tuple[onnx.NodeProto, int, WeightRef] | None:
    """The one Add that reads the output, its constant operand [.., N] and that one's position."""
    uses = model.index.uses(site.scope, site.output)
    if site.operand != 1 or len(uses) != 1 or uses[0].scope != site.scope:
        return None
    node, position = uses[0].node, 1 - uses[0].index
    if node is None or node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None
    if node.attribute:  # before opset 7, an axis to broadcast along
        return None
    bias = resolve(model, site.scope, node.input[position])
    if not isinstance(bias, WeightRef) or bias.quantized or bias.dtype != site.weight.dtype:
        return None
    d_out = site.d_out
    if not bias.shape or bias.shape[-1] != d_out or math.prod(bias.shape) != d_out:
        return None
    return node, position, bias


def _move_bias(job: Job, add: onnx.NodeProto, position: int, bias: WeightRef, shift: Any) -> None:
    """Replace the constant of the Add that follows."""
    value = evaluate(job.model, bias).astype(np.float64) + shift
    changed = onnx.NodeProto()
    changed.CopyFrom(add)
    changed.input[position] = job.constant("rank_bias", value)
    job.also(node_key(add), changed)

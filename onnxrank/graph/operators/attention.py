"""com.microsoft.Attention, whose projection of Q, K and V is a weight of the node itself."""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph.constants import WeightRef
from onnxrank.graph.model import Model
from onnxrank.graph.operators.base import Context, Job, row_count
from onnxrank.graph.sites import Orientation, Site, Skip
from onnxrank.linalg.layout import Axis


def recognise(context: Context) -> Site | Skip | None:
    """The merged projection; the standard Attention and MultiHeadAttention hold no weight."""
    if context.node.domain != "com.microsoft":
        return None
    weight = context.constant(1)
    if not isinstance(weight, WeightRef):
        return context.no_weight(weight)
    if len(weight.shape) != 2:
        return context.skip("layout", "its weight is no matrix", math.prod(weight.shape))
    d_in, d_out = weight.shape
    tensor = context.node.input[0]
    return context.site(
        weight,
        tensor,
        Axis((-1,)),
        Orientation(weight.shape, (0, 1)),
        (1, d_in, d_out),
        rows=row_count(context.shape(tensor), (-1,)),
    )


def into_bias(
    model: Model, site: Site, node: onnx.NodeProto, shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A shift of the map, shape (1, d_out), as it is added to the bias."""
    return np.asarray(shift[0], np.float64)


def split(job: Job) -> list[onnx.NodeProto]:
    """``x A`` before the node, whose weight becomes the second factor."""
    first = job.constant("rank_in.weight", job.first[0])
    job.add("rank_in", "MatMul", [job.input(0), first], job.middle)
    inputs = list(job.node.input)
    inputs[0], inputs[1] = job.middle, job.constant("rank_out.weight", job.second[0])
    if job.shift is not None:
        inputs += [""] * (3 - len(inputs))
        inputs[2] = job.shifted(2, into_bias(job.model, job.site, job.node, job.shift))
    job.add("rank_out", "Attention", inputs, job.output, domain=job.node.domain, without=())
    return job.nodes

"""LSTM, GRU and RNN: input weights are split exactly, recurrent ones are analyzed."""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph.constants import WeightRef
from onnxrank.graph.model import Model
from onnxrank.graph.operators.base import Context, Job
from onnxrank.graph.sites import Hold, Orientation, Site, Skip
from onnxrank.linalg.layout import Axis

RECURRENT = "/recurrent"


def recognise(context: Context) -> list[Site | Skip]:
    """Two sites: the input weights of all directions, and the recurrent weights."""
    return [s for s in (_input(context), _recurrent(context)) if s is not None]


def _input(context: Context) -> Site | Skip | None:
    weight = context.constant(1)
    if not isinstance(weight, WeightRef):
        return context.no_weight(weight)
    if len(weight.shape) != 3:
        return context.skip("layout", "its weight has not three axes", math.prod(weight.shape))
    directions, gates, d_in = weight.shape
    tensor = context.node.input[0]
    return context.site(
        weight,
        tensor,
        Axis((-1,)),
        Orientation((directions * gates, d_in), (1, 0)),
        (1, d_in, directions * gates),
        rows=_rows(context, tensor),
    )


def _rows(context: Context, tensor: str) -> int | None:
    """Time steps of one sample: the batch is the second axis, or the first with layout 1."""
    shape = context.shape(tensor)
    if shape is None or len(shape) != 3:
        return None
    steps = shape[1 if context.attributes.get("layout", 0) else 0]
    return steps if isinstance(steps, int) else None


def _recurrent(context: Context) -> Site | Skip | None:
    weight = context.constant(2)
    if not isinstance(weight, WeightRef):
        return None
    size = math.prod(weight.shape)
    made = context.node.output[0] if context.node.output else ""
    if not made or len(weight.shape) != 3:
        return context.skip(
            "recurrent",
            "its states are no output of the node, so they cannot be measured",
            size,
            suffix=RECURRENT,
        )
    directions, gates, hidden = weight.shape
    axes = (2, 3) if context.attributes.get("layout", 0) else (1, 3)
    return context.site(
        weight,
        made,
        Axis(axes, directions),
        Orientation((directions, gates, hidden), (0, 2, 1)),
        (directions, hidden, gates),
        rows=_rows(context, context.node.input[0]),
        hold=Hold("recurrent", "recurrent weights have no exact factor pair in this operator"),
        suffix=RECURRENT,
    )


def split(job: Job) -> list[onnx.NodeProto]:
    """``X A`` before the node, whose input weights become the second factor."""
    directions, gates, _ = job.site.weight.shape
    b = job.second[0].T.reshape(directions, gates, job.rank)
    shapes = [job.input(0), job.constant("rank_in.weight", job.first[0])]
    job.add("rank_in", "MatMul", shapes, job.middle)
    inputs = list(job.node.input)
    inputs[0], inputs[1] = job.middle, job.constant("rank_out.weight", b)
    if job.shift is not None:
        inputs += [""] * (4 - len(inputs))
        inputs[3] = job.shifted(3, into_bias(job.model, job.site, job.node, job.shift))
    job.add("rank_out", job.node.op_type, inputs, job.output, domain=job.node.domain, without=())
    return job.nodes


def into_bias(
    model: Model, site: Site, node: onnx.NodeProto, shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A shift of the map, shape (1, d_out): biases of input and recurrence lie side by side."""
    own = shift[0].reshape(site.weight.shape[:2])
    return np.concatenate([own, np.zeros_like(own)], axis=1)

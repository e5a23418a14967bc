"""Conv and FusedConv, any number of spatial axes, grouped too; ConvTranspose."""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph.constants import WeightRef
from onnxrank.graph.model import Model
from onnxrank.graph.operators.base import Context, Job, row_count
from onnxrank.graph.sites import Orientation, Site, Skip
from onnxrank.linalg.layout import Axis, Patches


def recognise(context: Context) -> Site | Skip | None:
    """A convolution by a constant kernel; its rows are im2col patches."""
    weight = context.constant(1)
    if not isinstance(weight, WeightRef):
        return context.no_weight(weight)
    refused = _refusal(context, weight)
    if refused:
        return refused
    group = context.attributes.get("group", 1)
    outputs, channels, *kernel = weight.shape
    d_in, d_out = channels * math.prod(kernel), outputs // group
    if group > 1 and channels == 1:
        return context.skip(
            "depthwise", "each channel is filtered alone: nothing to split", math.prod(weight.shape)
        )
    axes = len(kernel)
    layout = Patches(
        kernel=tuple(kernel),
        strides=tuple(context.attributes.get("strides", [1] * axes)),
        pads=tuple(context.attributes.get("pads", [0] * 2 * axes)),
        dilations=tuple(context.attributes.get("dilations", [1] * axes)),
        groups=group,
        auto_pad=context.attributes.get("auto_pad", "NOTSET"),
    )
    if layout.auto_pad not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        return context.skip(
            "layout", f"auto_pad {layout.auto_pad!r} is unknown", group * d_in * d_out
        )
    return context.site(
        weight,
        context.node.input[0],
        layout,
        Orientation((group, d_out, d_in), (0, 2, 1)),
        (group, d_in, d_out),
        rows=row_count(context.shape(context.node.output[0]), (1,)),
    )


def _refusal(context: Context, weight: WeightRef) -> Skip | None:
    size = math.prod(weight.shape)
    group = context.attributes.get("group", 1)
    axes = len(weight.shape) - 2
    if axes < 1:
        return context.skip("layout", "its kernel has no spatial axis", size)
    kernel = context.attributes.get("kernel_shape", list(weight.shape[2:]))
    lengths = [
        len(context.attributes.get(name, [0] * wanted)) == wanted
        for name, wanted in (("strides", axes), ("dilations", axes), ("pads", 2 * axes))
    ]
    divided = weight.shape[0]
    if group < 1 or divided % group or list(kernel) != list(weight.shape[2:]) or not all(lengths):
        return context.skip("layout", "its attributes do not fit its kernel", size)
    if any(pad < 0 for pad in context.attributes.get("pads", [])):
        return context.skip("layout", "its pads are negative", size)
    steps = [*context.attributes.get("strides", []), *context.attributes.get("dilations", [])]
    if any(step < 1 for step in steps):
        return context.skip("layout", "its strides or dilations are not positive", size)
    return None


def split(job: Job) -> list[onnx.NodeProto]:
    """The k x k convolution first, or second if the first factor is applied to channels alone."""
    return _channel_first(job) if job.first.shape[1] < job.site.d_in else _kernel_first(job)


def _kernel_first(job: Job) -> list[onnx.NodeProto]:
    """The first keeps the geometry; the second is 1x1, with bias and activation."""
    group, kernel = job.site.groups, job.site.view.layout.kernel  # type: ignore[union-attr]
    ones = (1,) * len(kernel)
    a = job.first.transpose(0, 2, 1).reshape(group * job.rank, -1, *kernel)
    b = job.second.transpose(0, 2, 1).reshape(group * job.site.d_out, job.rank, *ones)
    job.add(
        "rank_in",
        "Conv",
        [job.input(0), job.constant("rank_in.weight", a)],
        job.middle,
        without=("activation", "activation_params"),
    )
    return _close(job, b, {"kernel_shape": list(ones)}, _GEOMETRY)


def _channel_first(job: Job) -> list[onnx.NodeProto]:
    """A 1x1 to fewer channels, which zero padding passes; the second keeps everything."""
    kernel = job.site.view.layout.kernel  # type: ignore[union-attr]
    ones = (1,) * len(kernel)
    a = job.first[0].T.reshape(job.rank, -1, *ones)
    b = job.second[0].T.reshape(job.site.d_out, job.rank, *kernel)
    inputs = [job.input(0), job.constant("rank_in.weight", a)]
    job.add("rank_in", "Conv", inputs, job.middle, extra={"kernel_shape": list(ones)})
    return _close(job, b, {}, ())


_GEOMETRY = ("pads", "auto_pad", "strides", "dilations")


def _close(
    job: Job, weight: NDArray[np.float64], extra: dict[str, object], without: tuple[str, ...]
) -> list[onnx.NodeProto]:
    """The last convolution, with bias, activation and whatever else the original reads."""
    bias = job.shifted(2, None if job.shift is None else job.shift.reshape(-1))
    last = [job.middle, job.constant("rank_out.weight", weight), bias, job.input(3)]
    while not last[-1]:
        last.pop()
    job.add(
        "rank_out",
        job.node.op_type,
        last,
        job.output,
        domain=job.node.domain,
        extra=extra,
        without=without,
    )
    return job.nodes


def refit(job: Job) -> list[onnx.NodeProto]:
    """The same node with another kernel and bias."""
    node = job.refitted()
    shift = None
    if job.shift is not None:
        shift = into_bias(job.model, job.site, job.node, job.shift)
    bias = job.shifted(2, shift)
    if bias != job.input(2):
        node.input.extend([""] * (3 - len(node.input)))
        node.input[2] = bias
    job.nodes.append(node)
    return job.nodes


def into_bias(
    model: Model, site: Site, node: onnx.NodeProto, shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A shift of the map, shape (groups, d_out), as it is added to the bias."""
    return shift.reshape(-1)


def recognise_transpose(context: Context) -> Site | Skip | None:
    """ConvTranspose: each position's channels are mapped to a kernel of outputs."""
    weight = context.constant(1)
    if not isinstance(weight, WeightRef):
        return context.no_weight(weight)
    refused = _refusal(context, weight)
    if refused:
        return refused
    group = context.attributes.get("group", 1)
    channels, outputs, *kernel = weight.shape
    d_in, d_out = channels // group, outputs * math.prod(kernel)
    if group > 1 and d_in == 1:
        return context.skip("depthwise", "each channel is spread alone: nothing to split", d_out)
    tensor = context.node.input[0]
    return context.site(
        weight,
        tensor,
        Axis((1,), group),
        Orientation((group, d_in, d_out), (0, 1, 2)),
        (group, d_in, d_out),
        rows=row_count(context.shape(tensor), (1,)),
        # A shift of each position's map overlaps into a pattern that no bias can hold.
        centers=False,
    )


def split_transpose(job: Job) -> list[onnx.NodeProto]:
    """A 1x1 Conv to r channels a group, then the ConvTranspose with all its attributes."""
    group, shape = job.site.groups, job.site.weight.shape
    kernel, ones = shape[2:], (1,) * (len(shape) - 2)
    a = job.first.transpose(0, 2, 1).reshape(group * job.rank, job.site.d_in, *ones)
    b = job.second.reshape(group * job.rank, shape[1], *kernel)
    grouped = {"group": group, "kernel_shape": list(ones)}
    job.add(
        "rank_in",
        "Conv",
        [job.input(0), job.constant("rank_in.weight", a)],
        job.middle,
        extra=grouped,
    )
    last = [job.middle, job.constant("rank_out.weight", b)]
    if job.input(2):
        last.append(job.input(2))
    job.add("rank_out", "ConvTranspose", last, job.output, without=())
    return job.nodes


def spread(
    model: Model, site: Site, node: onnx.NodeProto, shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A shift of the map, shape (groups, d_out), as it is added to the node's output."""
    return shift.reshape(-1, *(1,) * (len(site.weight.shape) - 2))

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
    """Two convolutions, the first over some leading axes of the kernel, the second over the rest.

    Zero padding passes the first, which has no bias, so each has the geometry of its own axes.
    The first may cover all axes (k x k, 1x1), none (1x1, k x k), or some (k x 1, 1 x k).
    """
    kernel: tuple[int, ...] = job.site.view.layout.kernel  # type: ignore[union-attr]
    ahead = _ahead(job, kernel)
    first, rest = kernel[:ahead], kernel[ahead:]
    a = job.first.transpose(0, 2, 1)
    a = a.reshape(job.site.groups * job.rank, -1, *first, *(1,) * len(rest))
    b = job.second.transpose(0, 2, 1)
    b = b.reshape(job.site.groups * job.site.d_out, job.rank, *(1,) * ahead, *rest)
    new, gone = _geometry(job, kernel, range(ahead))
    job.add(
        "rank_in",
        "Conv",
        [job.input(0), job.constant("rank_in.weight", a)],
        job.middle,
        extra=new,
        without=(*gone, "activation", "activation_params"),
    )
    bias = job.shifted(2, None if job.shift is None else job.shift.reshape(-1))
    last = [job.middle, job.constant("rank_out.weight", b), bias, job.input(3)]
    while not last[-1]:
        last.pop()
    new, gone = _geometry(job, kernel, range(ahead, len(kernel)))
    domain = job.node.domain
    job.add("rank_out", job.node.op_type, last, job.output, domain=domain, extra=new, without=gone)
    return job.nodes


def _ahead(job: Job, kernel: tuple[int, ...]) -> int:
    """Axes that the first factor covers: its size tells."""
    entries = job.first.shape[1] * math.prod(kernel) // job.site.d_in
    if entries == math.prod(kernel):
        return len(kernel)
    return next(n for n in range(len(kernel)) if math.prod(kernel[:n]) == entries)


# What has an entry for each axis, or each end of one, and what that is where nothing happens.
_PER_AXIS = {"strides": 1, "dilations": 1, "pads": 0}


def _geometry(
    job: Job, kernel: tuple[int, ...], own: range
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """New attributes of a convolution over its own axes alone, and those of the node that go."""
    if len(own) == len(kernel):
        return {}, ()
    found = {"kernel_shape": [k if axis in own else 1 for axis, k in enumerate(kernel)]}
    if not own:
        return found, (*_PER_AXIS, "auto_pad")
    for name, none in _PER_AXIS.items():
        if name in job.attributes:
            values = enumerate(job.attributes[name])
            found[name] = [v if n % len(kernel) in own else none for n, v in values]
    return found, ()


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

"""Alone: one linear map as a model of its own, so that it can be timed by itself."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxrank.graph.constants import NotConstant, evaluate, resolve
from onnxrank.graph.model import Model
from onnxrank.graph.nodes import make_tensor
from onnxrank.graph.sites import Site


def alone(model: Model, site: Site, shape: Sequence[int]) -> onnx.ModelProto | None:
    """A model that computes one site.

    Parameters
    ----------
    model : Model
        Left untouched.
    site : Site
        In any scope; its weight and bias become initializers.
    shape : sequence of int
        Of the tensor that it reads, which becomes the only input.

    Returns
    -------
    ModelProto or None
        None if the node reads further tensors that are computed at run time.
    """
    node = model.index.producers[site.scope][site.output]
    proto = onnx.ModelProto(ir_version=max(model.proto.ir_version, 4))
    proto.opset_import.extend(model.document.opset_import)
    proto.graph.name = "alone"
    proto.graph.node.append(node)
    tensor = site.view.tensor
    for name in sorted({name for name in node.input if name and name != tensor}):
        found = resolve(model, site.scope, name)
        if isinstance(found, NotConstant):
            return None
        proto.graph.initializer.append(make_tensor(name, evaluate(model, found)))
    info = onnx.helper.make_tensor_value_info(tensor, site.weight.dtype, list(shape))
    proto.graph.input.append(info)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    return proto

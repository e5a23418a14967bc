"""Shapes of the tensors of a document, by onnx's shape inference on a copy without big weights."""

from __future__ import annotations

import math

import onnx
import onnx.shape_inference

from onnxrank.graph.functions import bounded
from onnxrank.graph.model import Shape, declared_shape
from onnxrank.graph.scopes import Scope, walk

# Inference reads the values of small tensors only (the shapes of Reshape, the axes of ReduceSum).
_SMALL = 1024


def infer(proto: onnx.ModelProto) -> dict[tuple[Scope, str], Shape]:
    """Shape of every tensor that the model declares or onnx infers, by scope and name.

    Never fails: where inference refuses the model, what is declared remains.
    """
    light = _light(proto)
    found = _declared(light)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # noqa: BLE001 - inference is a help, its failure is no error of the model
        return found
    return {**found, **_declared(inferred)}


def _light(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large initializers have a shape but no bytes."""
    light = onnx.ModelProto()
    ignored = ["graph", "training_info", *([] if bounded(proto) else ["functions"])]
    for field, value in proto.ListFields():
        if field.name not in ignored:
            _assign(light, field.name, value)
    _copy_graph(proto.graph, light.graph)
    return light


def _assign(message: object, name: str, value: object) -> None:
    target = getattr(message, name)
    if hasattr(target, "CopyFrom"):
        target.CopyFrom(value)
    elif hasattr(target, "extend"):
        target.extend(value)
    else:
        setattr(message, name, value)


def _copy_graph(source: onnx.GraphProto, target: onnx.GraphProto) -> None:
    for field, value in source.ListFields():
        if field.name != "initializer":
            _assign(target, field.name, value)
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            target.initializer.append(tensor)
        else:
            target.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _declared(proto: onnx.ModelProto) -> dict[tuple[Scope, str], Shape]:
    found: dict[tuple[Scope, str], Shape] = {}
    for scope, graph in walk(proto.graph):
        for values in (graph.value_info, graph.output, graph.input):
            for value in values:
                shape = declared_shape(value)
                if shape is not None:
                    found[scope, value.name] = shape
        for tensor in graph.initializer:
            found[scope, tensor.name] = tuple(tensor.dims)
    return found

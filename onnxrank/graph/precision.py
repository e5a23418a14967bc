"""bfloat16 as float32: the same numbers in a type that every provider has kernels for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxrank.graph import external
from onnxrank.graph.scopes import walk

_FROM, _TO = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT

# Integer attributes that name an element type.
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype"}


def has_bfloat16(proto: onnx.ModelProto) -> bool:
    """Whether a model stores, takes or gives bfloat16."""
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    if any(v.type.tensor_type.elem_type == _FROM for v in values):
        return True
    return any(tensor.data_type == _FROM for tensor in external.tensors(proto))


def widened(proto: onnx.ModelProto, folder: Path | None, name: str) -> onnx.ModelProto:
    """A copy in which every bfloat16 is float32; it can hold each of its values exactly.

    Parameters
    ----------
    proto : ModelProto
        Left untouched.
    folder : Path or None
        Where its external data lie.
    name : str
        What to call the model in an error.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in external.tensors(copy):
        if tensor.data_type == _FROM:
            _widen(tensor, folder, name)
    graphs = [graph for _, graph in walk(copy.graph)]
    values = [v for graph in graphs for v in (*graph.input, *graph.output, *graph.value_info)]
    for function in copy.functions:
        values += function.value_info
    for value in values:
        _widen_type(value.type)
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for function in copy.functions for node in function.node]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == _FROM:
                attribute.i = _TO
    return copy


def _widen(tensor: onnx.TensorProto, folder: Path | None, where: str) -> None:
    value = numpy_helper.to_array(external.materialize(tensor, folder, where))
    wide = numpy_helper.from_array(value.astype(np.float32), tensor.name)
    tensor.CopyFrom(wide)


def _widen_type(kind: onnx.TypeProto) -> None:
    """Also within sequences, optionals and maps."""
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type == _FROM:
        kind.tensor_type.elem_type = _TO
    elif kind.HasField("sequence_type"):
        _widen_type(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        _widen_type(kind.optional_type.elem_type)
    elif kind.HasField("map_type"):
        _widen_type(kind.map_type.value_type)

"""The constants that may change: those that onnxrank wrote in the place of weights and biases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxrank.errors import ModelError
from onnxrank.graph.constants import to_array
from onnxrank.graph.model import Model
from onnxrank.graph.weights import FLOATS, to_type

Arrays = dict[str, NDArray[Any]]

# As the operators name them; a number follows where the name was taken.
_NAME = re.compile(
    r"/(rank_in\.weight|rank_out\.weight|rank_bias|rank_shift|refitted\.weight)(_\d+)?$"
)


def factors(model: Model) -> Arrays:
    """The constants that onnxrank wrote, by name, in the model's own types.

    Raises
    ------
    ModelError
        There are none.
    """
    ours = any(entry.key == "onnxrank.source_sha256" for entry in model.proto.metadata_props)
    found = {
        tensor.name: to_array(model, tensor)
        for tensor in model.proto.graph.initializer
        if ours and _NAME.search(tensor.name) and tensor.data_type in FLOATS
    }
    if not found:
        raise ModelError(
            "it holds no factors that onnxrank wrote",
            where=model.name,
            hint="give a model that 'onnxrank compress' has made",
        )
    return found


def rounded(model: Model, values: Mapping[str, NDArray[Any]]) -> Arrays:
    """New values of factors in the types that the model stores.

    Raises
    ------
    ModelError
        One does not fit its type.
    """
    types = {tensor.name: tensor.data_type for tensor in model.proto.graph.initializer}
    return {
        name: to_type(value, types[name], f"{model.name}: constant '{name}'")
        for name, value in values.items()
    }


def exposed(model: Model, names: Iterable[str]) -> onnx.ModelProto:
    """A copy whose factors are inputs as well: one session then runs it with any of them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    copy.ir_version = max(copy.ir_version, 4)  # before, an input's default could not be replaced
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    present = {value.name for value in copy.graph.input}
    for tensor in (tensors[name] for name in names if name not in present):
        copy.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    return copy


def replaced(model: Model, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """A copy with other values of its factors; everything else is the same message."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            for field in _PLACES:
                tensor.ClearField(field)
            tensor.raw_data = numpy_helper.from_array(values[tensor.name]).raw_data
    return copy


_PLACES = ("data_location", "external_data", "float_data", "double_data", "int32_data")

"""Attributes of nodes as Python values."""

from __future__ import annotations

from typing import Any

import onnx

_INT, _INTS = onnx.AttributeProto.INT, onnx.AttributeProto.INTS
_FLOAT, _STRING = onnx.AttributeProto.FLOAT, onnx.AttributeProto.STRING

# Attributes that decide how a node is read or split.
_KINDS: dict[str, int] = {
    **dict.fromkeys(("group", "layout", "transA", "transB", "transBatchA", "transBatchB"), _INT),
    **dict.fromkeys(("axis", "block_size", "allowzero", "output_dtype"), _INT),
    **dict.fromkeys(("strides", "pads", "dilations", "kernel_shape"), _INTS),
    **dict.fromkeys(("perm", "axes", "starts", "ends", "split"), _INTS),
    **dict.fromkeys(("alpha", "beta"), _FLOAT),
    **dict.fromkeys(("auto_pad", "equation"), _STRING),
}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attribute values by name, strings decoded.

    Raises
    ------
    ValueError
        One is of a type that the operators cannot have.
    """
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type != _KINDS.get(attribute.name, attribute.type):
            raise ValueError(f"attribute '{attribute.name}' is of type {attribute.type}")
        value = onnx.helper.get_attribute_value(attribute)
        found[attribute.name] = (
            value.decode("utf8", "replace") if isinstance(value, bytes) else value
        )
    return found

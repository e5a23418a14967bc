"""Shapes of the tensors of a document, by onnx's shape inference on a copy without big weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
import onnx.shape_inference

from onnxrank.errors import ModelError
from onnxrank.graph import external
from onnxrank.graph.functions import bounded, holding
from onnxrank.graph.index import captured
from onnxrank.graph.scopes import Scope, bodies, node_key, walk

if TYPE_CHECKING:
    from onnxrank.graph.model import Model, Shape

# Inference reads the values of small tensors only (the shapes of Reshape, the axes of ReduceSum).
_SMALL = 1024


# Operators that inference may give an axis of less than no entries.
_SHRINKING = {"Conv", "ConvTranspose", "Pad", "Split", "Resize", "Upsample", "Col2Im", "MaxUnpool"}
_SHRINKING |= {"MaxPool", "AveragePool", "LpPool", "QLinearConv", "ConvInteger", "DeformConv"}


def infer(model: Model) -> dict[tuple[Scope, str], Shape]:
    """Shape of every tensor that the model declares or onnx infers, by scope and name.

    Never fails: where inference refuses the model, what is declared remains. It ends the whole
    process, though, at a Slice of an axis of less than no entries, such as a kernel beyond its
    input leaves; so a first round goes without any Slice, and a second one without those that
    the first cannot clear.
    """
    slices = [node for _, node in model.index.nodes() if node.op_type == "Slice"]
    light = _light(model, {node_key(node) for node in slices})
    found = _declared(light)
    try:
        inferred = _inferred(light)
        if slices and not any(_negative(shape) for shape in inferred.values()):
            inferred = _inferred(_light(model, _doubtful(model)))
    except Exception:  # noqa: BLE001 - inference is a help, its failure is no error of the model
        return found
    return {**found, **{k: v for k, v in inferred.items() if not _negative(v)}}


def _inferred(light: onnx.ModelProto) -> dict[tuple[Scope, str], Shape]:
    return _declared(onnx.shape_inference.infer_shapes(light, data_prop=True))


def _negative(shape: Shape) -> bool:
    return any(isinstance(dim, int) and dim < 0 for dim in shape)


def _doubtful(model: Model) -> set[str]:
    """Slices, by their outputs, of what an operator may have shrunk behind another Slice."""
    sliced: set[str] = set()
    shrunk: set[str] = set()
    found: set[str] = set()
    for scope, graph in model.index.graphs.items():
        if scope.path:
            sliced.update(value.name for value in graph.input)
        for node in graph.node:
            read = captured(node)
            holds = any(True for _ in bodies(node))
            if node.op_type == "Slice" and read & shrunk:
                found.add(node_key(node))
            if read & shrunk or ((node.op_type in _SHRINKING or holds) and read & sliced):
                shrunk.update(node.output)
            if node.op_type == "Slice" or holds or read & sliced:
                sliced.update(node.output)
    return found


def _light(model: Model, left_out: set[str]) -> onnx.ModelProto:
    """A copy of what inference looks at; large tensors have a shape but no bytes.

    Parameters
    ----------
    model : Model
        Left as it is.
    left_out : set of str
        First outputs of nodes that are not copied.
    """
    proto = model.document
    # From IR 4 on, constants need not be inputs: those made of nodes here are none.
    light = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    light.opset_import.extend(proto.opset_import)
    if bounded(proto) and not holding(proto, {"Slice"}):
        light.functions.extend(proto.functions)
    stack = [(proto.graph, light.graph)]
    while stack:
        source, target = stack.pop()
        for name in ("input", "output", "value_info", "sparse_initializer"):
            getattr(target, name).extend(getattr(source, name))
        for value in (*target.input, *target.output, *target.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")
        for tensor in source.initializer:
            _add(model, tensor, tensor.name, target)
        for node in source.node:
            value = _value(node)
            if value is not None and not _readable(value):
                _add(model, value, node.output[0], target)
            elif node_key(node) in left_out:
                continue
            elif not any(True for _ in bodies(node)):
                target.node.append(node)
            else:
                stack += _copy_holder(node, target.node.add())
    return light


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node."""
    if node.op_type != "Constant" or not node.output:
        return None
    return next((a.t for a in node.attribute if a.HasField("t")), None)


def _readable(tensor: onnx.TensorProto) -> bool:
    return math.prod(tensor.dims) <= _SMALL and not external.is_external(tensor)


def _add(model: Model, tensor: onnx.TensorProto, name: str, target: onnx.GraphProto) -> None:
    added = target.initializer.add(name=name, data_type=tensor.data_type, dims=tensor.dims)
    if math.prod(tensor.dims) <= _SMALL:
        try:
            added.CopyFrom(external.materialize(tensor, model.folder, model.name))
        except (ModelError, OSError):
            return
        added.name = name


def _copy_holder(
    node: onnx.NodeProto, made: onnx.NodeProto
) -> list[tuple[onnx.GraphProto, onnx.GraphProto]]:
    """Copy a node without what is in its bodies; give those, and where they go."""
    made.op_type, made.domain, made.name = node.op_type, node.domain, node.name
    made.input.extend(node.input)
    made.output.extend(node.output)
    pairs = []
    for attribute in node.attribute:
        if attribute.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            made.attribute.append(attribute)
            continue
        copy = made.attribute.add(name=attribute.name, type=attribute.type)
        if attribute.type == onnx.AttributeProto.GRAPH:
            pairs.append((attribute.g, copy.g))
        else:
            pairs += [(graph, copy.graphs.add()) for graph in attribute.graphs]
    return pairs


def _declared(proto: onnx.ModelProto) -> dict[tuple[Scope, str], Shape]:
    found: dict[tuple[Scope, str], Shape] = {}
    for scope, graph in walk(proto.graph):
        for values in (graph.value_info, graph.output, graph.input):
            for value in values:
                tensor = value.type.tensor_type
                if value.type.HasField("tensor_type") and tensor.HasField("shape"):
                    found[scope, value.name] = tuple(map(_dim, tensor.shape.dim))
        for tensor in graph.initializer:
            found[scope, tensor.name] = tuple(tensor.dims)
    return found


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)

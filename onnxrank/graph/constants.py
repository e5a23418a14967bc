"""Constant tensors: where their root lies and the chain of operators that leads to a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxrank.errors import ModelError
from onnxrank.graph import external
from onnxrank.graph.scopes import Scope

if TYPE_CHECKING:
    from onnxrank.graph.model import Model

# Operators that only move, convert or unpack a constant. Anything else makes a new tensor.
CHAIN = {
    "Identity",
    "Transpose",
    "Cast",
    "CastLike",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Split",
    "Slice",
    "QuantizeLinear",
    "DequantizeLinear",
}


@dataclass(frozen=True)
class WeightRef:
    """A constant tensor, by reference.

    Attributes
    ----------
    scope : Scope
        Graph that holds the root (an initializer or the output of a Constant node).
    name : str
        The root's tensor name.
    chain : tuple of str
        Tensors on the way from the root to what a node reads, in order: the outputs of Identity,
        Transpose, Cast, Reshape, ...; empty if the node reads the root itself.
    scopes : tuple of Scope
        Scope of each tensor of the chain.
    shape : tuple of int
        Shape at the end of the chain.
    dtype : int
        onnx.TensorProto data type at the end of the chain.
    quantized : bool
        The chain passes a DequantizeLinear.
    recipe : str
        What the chain does, so that equal recipes on one root mean equal tensors.
    """

    scope: Scope
    name: str
    chain: tuple[str, ...]
    scopes: tuple[Scope, ...]
    shape: tuple[int, ...]
    dtype: int
    quantized: bool = False
    recipe: str = ""


@dataclass(frozen=True)
class NotConstant:
    """Why a tensor is no constant: a code (`activation`, `overridable`, ...) and a sentence."""

    code: str
    reason: str


def resolve(
    model: Model, scope: Scope, name: str, *, overridable: bool = False
) -> WeightRef | NotConstant:
    """Follow a tensor back to its root.

    Parameters
    ----------
    model : Model
        Its document is searched.
    scope, name : Scope, str
        Where the tensor is read, and its name.
    overridable : bool
        Take an initializer that is also a graph input (IR 4 and later) for a constant.
    """
    steps: list[tuple[Scope, str, onnx.NodeProto]] = []
    index = model.index
    while True:
        home = index.resolve(scope, name)
        if home is None:
            return NotConstant("activation", "it is computed at run time")
        node = index.producers[home].get(name)
        if node is None or node.op_type == "Constant":
            break
        if node.op_type not in CHAIN or node.domain not in ("", "ai.onnx", "com.microsoft"):
            return NotConstant("activation", "it is computed at run time")
        for extra in node.input[1:]:
            if extra and not _is_constant(model, home, extra):
                return NotConstant("activation", "it is computed at run time")
        steps.append((home, name, node))
        if not node.input or not node.input[0]:
            return NotConstant("activation", "it is computed at run time")
        scope, name = home, node.input[0]
    refusal = _refuse_root(model, home, name, node, overridable)
    return refusal or _reference(model, home, name, node, steps[::-1])


def _is_constant(model: Model, scope: Scope, name: str) -> bool:
    return isinstance(resolve(model, scope, name), WeightRef)


def _refuse_root(
    model: Model, home: Scope, name: str, node: onnx.NodeProto | None, overridable: bool
) -> NotConstant | None:
    index = model.index
    if node is not None:
        return None
    if name in index.sparse[home]:
        return NotConstant("sparse", f"its weight '{name}' is a sparse initializer")
    if name not in index.initializers[home]:
        if home.path and name in index.inputs[home]:
            return _refuse_carried(model, home, name)
        return NotConstant("activation", "it is computed at run time")
    if name in index.inputs[home] and model.proto.ir_version >= 4 and not overridable:
        return NotConstant(
            "overridable",
            f"its weight '{name}' is also a graph input, so a caller may override it",
        )
    return None


def _refuse_carried(model: Model, home: Scope, name: str) -> NotConstant:
    """A body input: name the case of a weight that a Loop or Scan carries along."""
    key, attribute = home.path[-1]
    outer = model.index.producers[home.parent].get(key)
    position = model.index.inputs[home][name]
    if outer is not None and attribute == "body" and position < len(outer.input):
        source = outer.input[position]
        if source and _is_constant(model, home.parent, source):
            return NotConstant(
                "loop_carried", f"its weight '{name}' is carried through {outer.op_type}"
            )
    return NotConstant("activation", "it is computed at run time")


def _reference(
    model: Model,
    home: Scope,
    name: str,
    constant: onnx.NodeProto | None,
    steps: list[tuple[Scope, str, onnx.NodeProto]],
) -> WeightRef | NotConstant:
    tensor = _root_tensor(model, home, name, constant)
    if tensor is None:
        return NotConstant("constant_kind", f"its constant '{name}' is no dense numeric tensor")
    shape, dtype = tuple(tensor.dims), tensor.data_type
    names, scopes = tuple(s[1] for s in steps), tuple(s[0] for s in steps)
    quantized = any(node.op_type == "DequantizeLinear" for _, _, node in steps)
    recipe = ";".join(_recipe(model, where, made, node) for where, made, node in steps)
    if steps:
        plain = _plain_chain(shape, dtype, steps)
        if plain is None:
            draft = WeightRef(home, name, names, scopes, shape, dtype, quantized, recipe)
            try:
                value = evaluate(model, draft)
            except ModelError as error:
                return NotConstant("constant_kind", error.what)
            plain = value.shape, onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        shape, dtype = plain
    return WeightRef(home, name, names, scopes, shape, dtype, quantized, recipe)


def _plain_chain(
    shape: tuple[int, ...], dtype: int, steps: list[tuple[Scope, str, onnx.NodeProto]]
) -> tuple[tuple[int, ...], int] | None:
    """Shape and type after Identity, Transpose and Cast, without reading the tensor."""
    for _, _, node in steps:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Transpose":
            perm = attributes.get("perm") or range(len(shape))[::-1]
            if sorted(perm) != list(range(len(shape))):
                return None
            shape = tuple(shape[axis] for axis in perm)
        elif node.op_type == "Cast":
            dtype = int(attributes.get("to", dtype))
        elif node.op_type != "Identity":
            return None
    return shape, dtype


def _recipe(model: Model, scope: Scope, made: str, node: onnx.NodeProto) -> str:
    """A text that is equal for nodes that do the same; Identity does nothing."""
    if node.op_type == "Identity":
        return ""
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    others = [f"{model.index.resolve(scope, name)}:{name}" for name in node.input[1:]]
    which = list(node.output).index(made)
    return f"{node.op_type}#{which}({others},{attributes!r})"


def _root_tensor(
    model: Model, home: Scope, name: str, node: onnx.NodeProto | None
) -> onnx.TensorProto | None:
    if node is None:
        return model.index.initializers[home][name]
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            tensor: onnx.TensorProto = attribute.t
            return tensor
        if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
            value = np.asarray(onnx.helper.get_attribute_value(attribute))
            kind = np.float32 if "float" in attribute.name else np.int64
            return numpy_helper.from_array(value.astype(kind), name)
    return None


def evaluate(model: Model, ref: WeightRef) -> NDArray[Any]:
    """The value of a constant, in its own type.

    Raises
    ------
    ModelError
        Its bytes are damaged or missing, or the chain cannot be computed.
    """
    where = f"{model.name}: tensor '{ref.name}'"
    producer = model.index.producers[ref.scope].get(ref.name)
    tensor = _root_tensor(model, ref.scope, ref.name, producer)
    assert tensor is not None
    root = to_array(model, tensor)
    if not ref.chain:
        return root
    try:
        return _run_chain(model, ref, root)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - the reference evaluator raises of every kind
        raise ModelError(
            f"the operators on the constant cannot be computed ({type(error).__name__})",
            where=where,
        ) from None


def to_array(model: Model, tensor: onnx.TensorProto) -> NDArray[Any]:
    """A tensor of the model as numpy array, external data read on demand.

    Raises
    ------
    ModelError
        The bytes do not fit the shape.
    """
    where = f"{model.name}: tensor '{tensor.name}'"
    loaded = external.materialize(tensor, model.folder, model.name)
    try:
        return numpy_helper.to_array(loaded)
    except Exception as error:  # noqa: BLE001 - numpy_helper raises of every kind on bad tensors
        raise ModelError(f"cannot be read ({error})", where=where, hint="export it again") from None


def _run_chain(model: Model, ref: WeightRef, root: NDArray[Any]) -> NDArray[Any]:
    """Compute the chain with onnx's reference implementation, node by node."""
    from onnx.reference import ReferenceEvaluator

    values: dict[str, NDArray[Any]] = {ref.name: root}
    opsets = [
        onnx.helper.make_opsetid(d, v) for d, v in model.opsets.items() if d != "com.microsoft"
    ]
    previous = ref.name
    for scope, made in zip(ref.scopes, ref.chain, strict=True):
        original = model.index.producers[scope][made]
        node = onnx.NodeProto()
        node.CopyFrom(original)
        node.domain = ""
        feeds = {}
        for position, name in enumerate(original.input):
            if position == 0:
                feeds[name] = values[previous]
            elif name:
                extra = resolve(model, scope, name)
                assert isinstance(extra, WeightRef)
                feeds[name] = evaluate(model, extra)
        if node.op_type == "Identity":
            values[made] = values[previous]
        else:
            graph = onnx.helper.make_graph(
                [node],
                "chain",
                [onnx.helper.make_value_info(n, onnx.TypeProto()) for n in feeds],
                [onnx.helper.make_value_info(o, onnx.TypeProto()) for o in node.output if o],
            )
            single = onnx.helper.make_model(graph, opset_imports=opsets)
            outputs: Any = ReferenceEvaluator(single).run(None, feeds)
            named = [o for o in node.output if o]
            values.update(zip(named, outputs, strict=True))
        previous = made
    return values[previous]


__all__ = ["CHAIN", "NotConstant", "WeightRef", "evaluate", "resolve", "to_array"]

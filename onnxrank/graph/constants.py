"""Constant tensors: where their root lies and the chain of operators that leads to a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxrank.errors import ModelError
from onnxrank.graph import chain, external
from onnxrank.graph.attributes import attributes
from onnxrank.graph.chain import CHAIN, Step
from onnxrank.graph.scopes import Scope

if TYPE_CHECKING:
    from onnxrank.graph.model import Model

# Operators on the longest way to a constant. Real chains have a handful; without a limit a
# damaged model could ask for time and memory without end.
_DEPTH = 64

Place = tuple[Scope, str]


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

    @property
    def end(self) -> Place:
        """Scope and name of the tensor that is read."""
        return (self.scopes[-1], self.chain[-1]) if self.chain else (self.scope, self.name)


@dataclass(frozen=True)
class NotConstant:
    """Why a tensor is no constant: a code (`activation`, `overridable`, ...) and a sentence."""

    code: str
    reason: str


Found = tuple["WeightRef | NotConstant", int]
_ACTIVATION = NotConstant("activation", "it is computed at run time")


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
    home = model.index.resolve(scope, name)
    if home is None:
        return _ACTIVATION
    known: dict[Place, Found] = model.constants[overridable]
    stack = [(home, name)]
    while stack:  # no recursion: a way may be as long as the model
        place = stack[-1]
        if place in known:
            stack.pop()
            continue
        waiting = [p for p in _sources(model, place) if p not in known]
        if waiting:
            stack += waiting
        else:
            known[place] = _settle(model, place, overridable)
    return known[home, name][0]


def _sources(model: Model, place: Place) -> list[Place]:
    """What an operator of a chain reads; nothing for a root."""
    node = model.index.producers[place[0]].get(place[1])
    if node is None or not is_move(node):
        return []
    homes = [(model.index.resolve(place[0], name), name) for name in node.input if name]
    return [(home, name) for home, name in homes if home is not None]


def is_move(node: onnx.NodeProto) -> bool:
    """Whether a node only moves or converts its first input."""
    return node.op_type in CHAIN and node.domain in ("", "ai.onnx", "com.microsoft")


def _settle(model: Model, place: Place, overridable: bool) -> Found:
    """A tensor's reference and its distance from the farthest root; its sources are settled."""
    home, name = place
    node = model.index.producers[home].get(name)
    if node is None or (node.op_type == "Constant" and node.domain in ("", "ai.onnx")):
        refusal = _refuse_root(model, home, name, node, overridable)
        return refusal or _root_ref(model, home, name), 0
    if not is_move(node) or not node.input or not node.input[0]:
        return _ACTIVATION, 0
    known = model.constants[overridable]
    sources = [known[p] for p in _sources(model, place)]
    first, depth = sources[0][0], 1 + max(d for _, d in sources)
    if not isinstance(first, WeightRef):
        return first, 0
    if not all(isinstance(ref, WeightRef) for ref, _ in sources):
        return _ACTIVATION, 0
    if depth > _DEPTH:
        text = f"more than {_DEPTH} operators lie between it and its constant '{first.name}'"
        return NotConstant("constant_kind", text), 0
    return _extend(model, first, place, node), depth


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
        return _ACTIVATION
    if index.overridable(home, name) and not overridable:
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
        if source and isinstance(resolve(model, home.parent, source), WeightRef):
            return NotConstant(
                "loop_carried", f"its weight '{name}' is carried through {outer.op_type}"
            )
    return _ACTIVATION


def _root_ref(model: Model, home: Scope, name: str) -> WeightRef | NotConstant:
    tensor = _root_tensor(model, home, name)
    if tensor is None:
        return NotConstant("constant_kind", f"its constant '{name}' is no dense numeric tensor")
    return WeightRef(home, name, (), (), tuple(tensor.dims), tensor.data_type)


def _root_tensor(model: Model, home: Scope, name: str) -> onnx.TensorProto | None:
    node = model.index.producers[home].get(name)
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


def _extend(
    model: Model, first: WeightRef, place: Place, node: onnx.NodeProto
) -> WeightRef | NotConstant:
    """The reference behind one more operator."""
    try:
        step = _step(model, place, node)
        shape, dtype = chain.after(step, first.shape, first.dtype)
    except (ModelError, ValueError, TypeError, IndexError, KeyError) as error:
        text = f"{node.op_type} on its constant '{first.name}' cannot be followed ({error})"
        return NotConstant("constant_kind", text)
    return WeightRef(
        first.scope,
        first.name,
        (*first.chain, place[1]),
        (*first.scopes, place[0]),
        tuple(int(dim) for dim in shape),
        dtype,
        first.quantized or node.op_type == "DequantizeLinear",
        first.recipe + _recipe(model, place, node),
    )


def _recipe(model: Model, place: Place, node: onnx.NodeProto) -> str:
    """A text that is equal for nodes that do the same; Identity does nothing."""
    if node.op_type == "Identity":
        return ""
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    others = [f"{model.index.resolve(place[0], name)}:{name}" for name in node.input[1:]]
    which = list(node.output).index(place[1])
    return f"{node.op_type}#{which}({others},{attributes!r});"


def _step(
    model: Model, place: Place, node: onnx.NodeProto, values: dict[Place, Any] | None = None
) -> Step:
    """A node of a chain; with the values of its inputs where it needs them.

    Parameters
    ----------
    values : dict, optional
        What has been evaluated already. Without it, only what decides about shapes is read.
    """
    refs = [resolve(model, place[0], n, overridable=True) if n else None for n in node.input]
    known = tuple(ref if isinstance(ref, WeightRef) else None for ref in refs)
    read = node.op_type in chain.MOVES or (values is not None and node.op_type != "CastLike")
    values = {} if values is None else values
    return Step(
        node.op_type,
        attributes(node),
        tuple(ref.dtype if ref else 0 for ref in known),
        tuple(ref.shape if ref else None for ref in known),
        tuple(_value(model, ref, values) if ref and read else None for ref in known[1:]),
        len(node.output),
        list(node.output).index(place[1]),
    )


def evaluate(model: Model, ref: WeightRef) -> NDArray[Any]:
    """The value of a constant, in its own type.

    Raises
    ------
    ModelError
        Its bytes are damaged or missing, or the chain cannot be computed.
    """
    try:
        return _value(model, ref, {})
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise ModelError(
            f"the operators on the constant cannot be computed ({error})",
            where=f"{model.name}: tensor '{ref.name}'",
        ) from None


def _value(model: Model, ref: WeightRef, values: dict[Place, Any]) -> NDArray[Any]:
    """As `evaluate`; `values` are known already. The chain's limit bounds the recursion."""
    if ref.end in values:
        return values[ref.end]  # type: ignore[no-any-return]
    value = to_array(model, root(model, ref))
    for place in zip(ref.scopes, ref.chain, strict=True):
        node = model.index.producers[place[0]][place[1]]
        value = chain.apply(_step(model, place, node, values), value)
    values[ref.end] = value
    return value


def root(model: Model, ref: WeightRef) -> onnx.TensorProto:
    """The tensor that a constant is made from, as the model stores it."""
    tensor = _root_tensor(model, ref.scope, ref.name)
    assert tensor is not None
    return tensor


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


__all__ = ["NotConstant", "WeightRef", "evaluate", "is_move", "resolve", "root", "to_array"]

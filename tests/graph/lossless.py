"""Hold a written model against its original, field by field and in order (a second opinion).

Nothing here is shared with the code that splices: what may go is derived from the two messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx

from onnxrank.graph.scopes import Scope
from onnxrank.graph.sites import Site

MOVING = {
    "Identity", "Transpose", "Cast", "CastLike", "Reshape", "Unsqueeze", "Squeeze", "Flatten",
    "Split", "Slice", "QuantizeLinear", "DequantizeLinear", "Constant",
}  # fmt: skip
Place = tuple[tuple[str, str], ...]


def assert_lossless(
    original: onnx.ModelProto, written: onnx.ModelProto, sites: Iterable[Site]
) -> None:
    """The written model minus what is new is the original minus what was replaced."""
    changes = list(differences(original, written, sites))
    assert not changes, "\n".join(changes)


def differences(
    original: onnx.ModelProto, written: onnx.ModelProto, sites: Iterable[Site]
) -> Iterator[str]:
    """Every field that differs beyond what the split sites explain."""
    split = {(site.scope.path, site.output) for site in sites}
    yield from _fields(original, written, {"graph", "metadata_props"}, "model")
    kept = [e for e in written.metadata_props if not e.key.startswith("onnxrank.")]
    before = [e for e in original.metadata_props if not e.key.startswith("onnxrank.")]
    if [e.SerializeToString() for e in kept] != [e.SerializeToString() for e in before]:
        yield "model: metadata_props differ"
    old, new = _graphs(original.graph), _graphs(written.graph)
    if set(old) != set(new):
        yield f"bodies differ: {set(old) ^ set(new)}"
        return
    for place in old:
        yield from _graph(place, old[place], new[place], split, original, written)
    yield from _unread(written, original)


def _fields(old: Any, new: Any, ignored: set[str], where: str) -> Iterator[str]:
    a = {f.name: v for f, v in old.ListFields() if f.name not in ignored}
    b = {f.name: v for f, v in new.ListFields() if f.name not in ignored}
    for name in sorted(set(a) | set(b)):
        if name not in a or name not in b or _bytes(a[name]) != _bytes(b[name]):
            yield f"{where}: field {name} differs"


def _bytes(value: Any) -> Any:
    if hasattr(value, "SerializeToString"):
        return value.SerializeToString(deterministic=True)
    if hasattr(value, "extend"):
        return [_bytes(v) for v in value]
    return value


def _key(node: onnx.NodeProto) -> str:
    return next((o for o in node.output if o), "")


def _graphs(graph: onnx.GraphProto, place: Place = ()) -> dict[Place, onnx.GraphProto]:
    found = {place: graph}
    for node in graph.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                found.update(_graphs(a.g, (*place, (_key(node), a.name))))
            for k, g in enumerate(a.graphs):
                found.update(_graphs(g, (*place, (_key(node), f"{a.name}[{k}]"))))
    return found


def _shallow(node: onnx.NodeProto) -> bytes:
    """The node without its bodies, which are compared on their own."""
    if not any(a.HasField("g") or a.graphs for a in node.attribute):
        return node.SerializeToString(deterministic=True)
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for a in copy.attribute:
        a.ClearField("g")
        a.ClearField("graphs")
    return copy.SerializeToString(deterministic=True)


def _graph(
    place: Place,
    old: onnx.GraphProto,
    new: onnx.GraphProto,
    split: set[tuple[Place, str]],
    original: onnx.ModelProto,
    written: onnx.ModelProto,
) -> Iterator[str]:
    where = str(Scope(place))
    handled = {"node", "initializer", "value_info", "input"}
    yield from _fields(old, new, handled, where)
    here = {output for path, output in split if path == place}
    yield from _nodes(where, old, new, here, written)
    gone = {n for n in _names(original) if n not in _names(written)}
    old_inputs = [v for v in old.input if v.name not in gone]
    fresh = {t.name for t in new.initializer} - {t.name for t in old.initializer}
    new_inputs = [v for v in new.input if v.name not in fresh or v.name in _inputs(old)]
    if _bytes(old_inputs) != _bytes(new_inputs):
        yield f"{where}: inputs differ"
    if fresh and place:
        yield f"{where}: new initializers in a body: {sorted(fresh)}"
    kept = [t for t in old.initializer if t.name not in gone]
    if _bytes(kept) != _bytes([t for t in new.initializer if t.name not in fresh]):
        yield f"{where}: initializers differ"
    values = [v for v in old.value_info if v.name not in gone]
    if _bytes(values) != _bytes(new.value_info):
        yield f"{where}: value_info differs"


def _inputs(graph: onnx.GraphProto) -> set[str]:
    return {v.name for v in graph.input}


def _names(proto: onnx.ModelProto) -> set[str]:
    """What the graphs of a model define."""
    names: set[str] = set()
    for graph in _graphs(proto.graph).values():
        names |= _inputs(graph) | {t.name for t in graph.initializer}
        names |= {o for n in graph.node for o in n.output}
        names |= {s.values.name for s in graph.sparse_initializer}
    return names


def _nodes(
    where: str,
    old: onnx.GraphProto,
    new: onnx.GraphProto,
    split: set[str],
    written: onnx.ModelProto,
) -> Iterator[str]:
    """Walk both node lists: each old node is there, replaced in its place, or dead and pure."""
    position, fresh = 0, list(new.node)
    known = {_shallow(n) for n in old.node}
    made = {o for n in new.node for o in n.output}
    for node in old.node:
        if position < len(fresh) and _shallow(fresh[position]) == _shallow(node):
            position += 1
        elif _key(node) in split:
            run = position
            while run < len(fresh) and _shallow(fresh[run]) not in known:
                run += 1
                if set(node.output) & set(fresh[run - 1].output):
                    break
            block = fresh[position:run]
            if not block or list(block[-1].output) != list(node.output):
                yield f"{where}: node {_key(node)} is not replaced in its place"
            position = run
        elif node.op_type in MOVING and not set(node.output) & made:
            if set(node.output) & _read(written):
                yield f"{where}: node {_key(node)} is gone but read"
        elif (
            node.op_type == "Add"
            and position < len(fresh)
            and _only_constant(node, fresh[position], split, written)
        ):
            position += 1
        else:
            yield f"{where}: node {_key(node)} ({node.op_type}) changed or moved"
    if position != len(fresh):
        yield f"{where}: more nodes than expected: {[_key(n) for n in fresh[position:]]}"


def _only_constant(
    old: onnx.NodeProto, new: onnx.NodeProto, split: set[str], written: onnx.ModelProto
) -> bool:
    """An Add behind a split node whose other operand is another constant now."""
    copy = onnx.NodeProto()
    copy.CopyFrom(new)
    changed = [k for k, (a, b) in enumerate(zip(old.input, new.input, strict=True)) if a != b]
    if len(changed) != 1 or old.input[1 - changed[0]] not in split:
        return False
    if new.input[changed[0]] not in {t.name for t in written.graph.initializer}:
        return False
    copy.input[changed[0]] = old.input[changed[0]]
    return copy.SerializeToString() == old.SerializeToString()


def _read(proto: onnx.ModelProto) -> set[str]:
    """Every name that anything in the model reads or refers to."""
    graphs: Sequence[onnx.GraphProto] = list(_graphs(proto.graph).values())
    names: set[str] = set()
    for training in proto.training_info:
        graphs = [*graphs, *_graphs(training.initialization).values()]
        graphs = [*graphs, *_graphs(training.algorithm).values()]
        for binding in (*training.initialization_binding, *training.update_binding):
            names |= {binding.key, binding.value}
    for graph in graphs:
        names |= {i for n in graph.node for i in n.input} | {v.name for v in graph.output}
        for annotation in graph.quantization_annotation:
            names.add(annotation.tensor_name)
            names |= {e.value for e in annotation.quant_parameter_tensor_names}
    return names


def _unread(written: onnx.ModelProto, original: onnx.ModelProto) -> Iterator[str]:
    """What was read before and is read no more must be gone; what is read must be there."""
    read, before = _read(written), _read(original)
    names = _names(written)
    for graph in _graphs(written.graph).values():
        inputs = _inputs(graph)
        for tensor in graph.initializer:
            free = written.ir_version < 4 or tensor.name not in inputs
            if tensor.name not in read and tensor.name in before and free:
                yield f"constant {tensor.name} is used no more, but still there"
            if tensor.name not in read and tensor.name not in _names(original):
                yield f"new constant {tensor.name} is not used"
    missing = {n for n in read - before if n and n not in names}
    if missing:
        yield f"nothing makes {sorted(missing)}"
    dropped = (_names(original) - names) & read
    if dropped:
        yield f"dropped, but still read: {sorted(dropped)}"

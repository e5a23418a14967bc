"""Edits and their splicing: the only code that changes a document, and only a copy of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx

from onnxrank.errors import ModelError
from onnxrank.graph.chain import CHAIN
from onnxrank.graph.scopes import MAIN, Scope, node_key, walk


@dataclass(frozen=True)
class Edit:
    """New nodes in the place of one node, with the tensors they need.

    Attributes
    ----------
    scope, node : Scope, str
        The replaced node, by its first output.
    nodes : tuple of NodeProto
        What stands in its place.
    """

    scope: Scope
    node: str
    nodes: tuple[onnx.NodeProto, ...]


def splice(
    proto: onnx.ModelProto,
    edits: Sequence[Edit],
    initializers: Iterable[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A copy of a model with some nodes replaced; everything else is the same message.

    Constants (and the Identity, Transpose, ... nodes that led from them) that only the replaced
    nodes used are dropped, with their value_info. Nothing is dropped that a node of any scope, an
    output, a quantization annotation or the training information still names.

    Parameters
    ----------
    proto : ModelProto
        The original, left untouched.
    edits : sequence of Edit
        At most one a node.
    initializers : iterable of TensorProto
        New constants; they go to the main graph, which every scope can see.

    Raises
    ------
    ModelError
        An edit names a node that the model has not.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    freed: set[str] = set()
    # Inner bodies first: replacing nodes copies the bodies that the others hold.
    for scope, replaced in sorted(_by_scope(edits).items(), key=lambda e: -len(e[0].path)):
        graph = dict(walk(result.graph)).get(scope)
        keys = {node_key(n) for n in graph.node} if graph is not None else set()
        missing = replaced.keys() - keys
        if graph is None or missing:
            raise ModelError(f"no node makes '{min(missing, default='?')}'", where=str(scope))
        freed |= _replace(graph, replaced)
    for tensor in initializers:
        result.graph.initializer.append(tensor)
        if result.ir_version < 4:  # every initializer must be a graph input there
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            result.graph.input.append(info)
    _drop_unused(result, freed)
    return result


def _by_scope(edits: Sequence[Edit]) -> dict[Scope, dict[str, Edit]]:
    grouped: dict[Scope, dict[str, Edit]] = {}
    for edit in edits:
        if edit.node in grouped.setdefault(edit.scope, {}):
            raise ModelError(f"two edits of the node that makes '{edit.node}'", where="splice")
        grouped[edit.scope][edit.node] = edit
    return grouped


def _replace(graph: onnx.GraphProto, replaced: dict[str, Edit]) -> set[str]:
    """Put the new nodes in place; return the input names that the old ones had."""
    nodes: list[onnx.NodeProto] = []
    freed: set[str] = set()
    for node in graph.node:
        edit = replaced.get(node_key(node))
        if edit is None:
            nodes.append(node)
        else:
            freed.update(name for name in node.input if name)
            nodes.extend(edit.nodes)
    kept = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return freed


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _drop_unused(proto: onnx.ModelProto, candidates: set[str]) -> None:
    """Drop what `candidates` name, and what only they used, as long as nothing else uses it."""
    counts = Counter(_names_read(proto))
    graphs = dict(walk(proto.graph))
    makers = {
        output: (scope, node)
        for scope, graph in graphs.items()
        for node in graph.node
        for output in node.output
        if output
    }
    dropped: set[str] = set()
    dead: dict[Scope, set[str]] = {}
    queue = sorted(candidates)
    while queue:
        name = queue.pop()
        if counts[name] or name in dropped:
            continue
        if name in makers:
            scope, node = makers[name]
            if any(counts[output] for output in node.output if output) or not _pure(node):
                continue
            dead.setdefault(scope, set()).add(node_key(node))
            dropped.update(output for output in node.output if output)
            for source in node.input:
                counts[source] -= 1
                queue.append(source)
        else:
            dropped.add(name)
    constants = _droppable(graphs, dropped, proto.ir_version)
    for scope, graph in graphs.items():
        _remove(graph.node, lambda n, s=scope: node_key(n) in dead.get(s, ()))
        _remove(graph.initializer, lambda t: t.name in constants)
        if proto.ir_version < 4 and scope == MAIN:
            _remove(graph.input, lambda v: v.name in constants)
        gone = constants | {o for o in dropped if o in makers and makers[o][0] == scope}
        _remove(graph.value_info, lambda v, g=gone: v.name in g)


def _pure(node: onnx.NodeProto) -> bool:
    return node.op_type in CHAIN or node.op_type == "Constant"


def _droppable(
    graphs: dict[Scope, onnx.GraphProto], dropped: set[str], ir_version: int
) -> set[str]:
    """Initializers among `dropped`; one that a caller may override stays (IR 4 and later)."""
    held = {t.name for graph in graphs.values() for t in graph.initializer}
    inputs = {v.name for graph in graphs.values() for v in graph.input}
    return (dropped & held) - (inputs if ir_version >= 4 else set())


def _remove(field: object, gone: object) -> None:
    """Delete the entries of a repeated field for which `gone` holds, from the back."""
    for position in range(len(field) - 1, -1, -1):  # type: ignore[arg-type]
        if gone(field[position]):  # type: ignore[index,operator]
            del field[position]  # type: ignore[attr-defined]


def _names_read(proto: onnx.ModelProto) -> Iterator[str]:
    graphs = [graph for _, graph in walk(proto.graph)]
    for training in proto.training_info:
        for part in (training.initialization, training.algorithm):
            graphs += [graph for _, graph in walk(part)]
        for binding in (*training.initialization_binding, *training.update_binding):
            yield binding.key
            yield binding.value
    for graph in graphs:
        for node in graph.node:
            yield from node.input
        for output in graph.output:
            yield output.name
        for annotation in graph.quantization_annotation:
            yield annotation.tensor_name
            for entry in annotation.quant_parameter_tensor_names:
                yield entry.value

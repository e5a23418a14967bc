"""Edits and their splicing: the only code that changes a document, and only a copy of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnxrank.errors import ModelError
from onnxrank.graph.chain import CHAIN
from onnxrank.graph.index import Index
from onnxrank.graph.scopes import MAIN, Scope, node_key, walk

Place = tuple[Scope, str]


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
    graphs = dict(walk(result.graph))
    freed: set[Place] = set()
    for scope, replaced in _by_scope(edits).items():
        if scope not in graphs:
            raise ModelError("the model has no such graph", where=str(scope))
        freed |= {(scope, name) for name in _replace(graphs[scope], replaced, scope)}
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


def _replace(graph: onnx.GraphProto, replaced: dict[str, Edit], scope: Scope) -> set[str]:
    """Put the new nodes in place; return the input names that the old ones had."""
    positions = {node_key(node): k for k, node in enumerate(graph.node)}
    missing = replaced.keys() - positions.keys()
    if missing:
        raise ModelError(f"no node makes '{min(missing)}'", where=str(scope))
    freed: set[str] = set()
    for key in sorted(replaced, key=positions.__getitem__, reverse=True):
        position = positions[key]
        freed.update(name for name in graph.node[position].input if name)
        del graph.node[position]
        for offset, node in enumerate(replaced[key].nodes):
            graph.node.insert(position + offset, node)
    return freed


def _drop_unused(proto: onnx.ModelProto, candidates: set[Place]) -> None:
    """Drop what `candidates` read, and what only that used, as long as nothing else uses it."""
    index = Index(proto)
    freed: Counter[Place] = Counter()
    gone: set[Place] = set()
    dead: set[Place] = set()
    queue = sorted(candidates)
    while queue:
        scope, name = queue.pop()
        home = index.resolve(scope, name)
        if home is None or not _unused(index, (home, name), freed):
            continue
        node = index.producers[home].get(name)
        if node is None:
            if name in index.initializers[home] and not index.overridable(home, name):
                gone.add((home, name))
        elif _pure(node) and (home, node_key(node)) not in dead:
            made = [(home, output) for output in node.output if output]
            if all(_unused(index, place, freed) for place in made):
                dead.add((home, node_key(node)))
                gone.update(made)
                for source in filter(None, node.input):
                    freed[index.resolve(home, source) or MAIN, source] += 1
                    queue.append((home, source))
    for scope, graph in index.graphs.items():
        _remove(graph.node, {key for where, key in dead if where == scope}, node_key)
        names = {name for where, name in gone if where == scope}
        _remove(graph.initializer, names, _name)
        _remove(graph.value_info, names, _name)
        if scope == MAIN:
            _remove(graph.input, names, _name)


def _unused(index: Index, place: Place, freed: Counter[Place]) -> bool:
    return len(index.uses(*place)) <= freed[place] and place[1] not in index.named_elsewhere


def _pure(node: onnx.NodeProto) -> bool:
    known = node.op_type in CHAIN or node.op_type == "Constant"
    return known and node.domain in ("", "ai.onnx", "com.microsoft")


def _name(value: Any) -> str:
    return str(value.name)


def _remove(field: Any, names: set[str], name_of: Callable[[Any], str]) -> None:
    """Delete the entries of a repeated field that bear one of `names`."""
    if names:
        for position in range(len(field) - 1, -1, -1):
            if name_of(field[position]) in names:
                del field[position]

"""Who makes and who reads each tensor, in every scope; and what makes a graph unreadable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx

from onnxrank.errors import ModelError
from onnxrank.graph.scopes import Scope, bodies, node_key, walk

_AGAIN = "the graph is damaged; export the model again"


@dataclass(frozen=True)
class Use:
    """One reading of a tensor: by input `index` of `node`, or by a graph output (node None)."""

    scope: Scope
    node: onnx.NodeProto | None
    index: int


class Index:
    """Who makes and who reads each tensor, in every scope of a document."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graphs: dict[Scope, onnx.GraphProto] = dict(walk(proto.graph))
        self.producers: dict[Scope, dict[str, onnx.NodeProto]] = {}
        self.initializers: dict[Scope, dict[str, onnx.TensorProto]] = {}
        self.sparse: dict[Scope, set[str]] = {}
        self.inputs: dict[Scope, dict[str, int]] = {}
        self.missing: list[tuple[Scope, str, onnx.NodeProto | None]] = []
        """What is read and made by nothing: scope, name, reader (None for a graph output)."""
        self.named_elsewhere = named_elsewhere(proto)
        self._ir_version = proto.ir_version
        self._defined: dict[Scope, set[str]] = {}
        self._uses: dict[tuple[Scope, str], list[Use]] = defaultdict(list)
        for scope, graph in self.graphs.items():
            self.producers[scope] = {o: n for n in graph.node for o in n.output if o}
            self.initializers[scope] = {t.name: t for t in graph.initializer}
            self.sparse[scope] = {t.values.name for t in graph.sparse_initializer}
            self.inputs[scope] = {v.name: k for k, v in enumerate(graph.input)}
            self._defined[scope] = {
                *self.producers[scope],
                *self.initializers[scope],
                *self.sparse[scope],
                *self.inputs[scope],
            }
        for scope, graph in self.graphs.items():
            own = self._defined[scope]
            for name, node, index in _readings(graph):
                home = scope if name in own else self.resolve(scope, name)
                if home is None:
                    self.missing.append((scope, name, node))
                else:
                    self._uses[home, name].append(Use(scope, node, index))

    def resolve(self, scope: Scope, name: str) -> Scope | None:
        """The scope that defines the tensor `name` as seen from `scope`, or None."""
        while name not in self._defined[scope]:
            if not scope.path:
                return None
            scope = scope.parent
        return scope

    def uses(self, home: Scope, name: str) -> list[Use]:
        """Every reading of the tensor that `home` defines as `name`."""
        return self._uses.get((home, name), [])

    def nodes(self) -> Iterator[tuple[Scope, onnx.NodeProto]]:
        """Every node of every scope."""
        for scope, graph in self.graphs.items():
            for node in graph.node:
                yield scope, node

    def overridable(self, home: Scope, name: str) -> bool:
        """Whether a caller may feed this constant: an input with a default, from IR 4 on."""
        return name in self.inputs[home] and (self._ir_version >= 4 or bool(home.path))

    @cached_property
    def computed(self) -> set[tuple[Scope, str]]:
        """Tensors that operators compute from constants alone, as far as the nodes are sorted."""
        found: set[tuple[Scope, str]] = set()
        for scope, node in self.nodes():
            if "Random" in node.op_type or any(True for _ in bodies(node)):
                continue
            places = [(self.resolve(scope, name) or scope, name) for name in node.input if name]
            if places and all(p in found or self._fixed(*p) for p in places):
                found.update((scope, output) for output in node.output if output)
        return found

    def _fixed(self, home: Scope, name: str) -> bool:
        node = self.producers[home].get(name)
        if node is not None:
            return node.op_type == "Constant"
        known = name in self.initializers[home] or name in self.sparse[home]
        return known and not self.overridable(home, name)


def named_elsewhere(proto: onnx.ModelProto) -> set[str]:
    """Names that training information and quantization annotations refer to."""
    names: set[str] = set()
    for _, graph in walk(proto.graph):
        for annotation in graph.quantization_annotation:
            names.add(annotation.tensor_name)
            names.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    for training in proto.training_info:
        for part in (training.initialization, training.algorithm):
            for _, graph in walk(part):
                names.update(name for node in graph.node for name in node.input)
                names.update(output.name for output in graph.output)
        for binding in (*training.initialization_binding, *training.update_binding):
            names |= {binding.key, binding.value}
    return names


def _readings(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.NodeProto | None, int]]:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name:
                yield name, node, index
    for index, output in enumerate(graph.output):
        yield output.name, None, index


def check_names(proto: onnx.ModelProto, where: str) -> None:
    """Refuse names that are no text: protobuf hands them out as bytes, and takes none back.

    Raises
    ------
    ModelError
        With the graph that holds one.
    """
    for scope, graph in walk(proto.graph):
        for name in _names(graph):
            if isinstance(name, bytes):
                raise ModelError(
                    f"the name {name!r} is not UTF-8", where=f"{where}: {scope}", hint=_AGAIN
                )


def _names(graph: onnx.GraphProto) -> Iterator[object]:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from (value.name for value in values)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def check_graph(index: Index, where: str) -> None:
    """Refuse tensors that nobody makes, tensors made twice, and cycles.

    Raises
    ------
    ModelError
        With the tensor or node.
    """
    for scope, name, node in index.missing:
        what = (
            f"output '{name}' is made by nothing"
            if node is None
            else f"node '{node.name or node_key(node)}' reads tensor '{name}', which nothing makes"
        )
        raise ModelError(what, where=f"{where}: {scope}", hint=_AGAIN)
    for scope, graph in index.graphs.items():
        twice = _twice(graph, index, scope)
        if twice is not None:
            raise ModelError(
                f"tensor '{twice}' is made twice", where=f"{where}: {scope}", hint=_AGAIN
            )
        stuck = _cycle(graph, index.producers[scope])
        if stuck:
            raise ModelError(
                f"the nodes form a cycle through '{stuck}'", where=f"{where}: {scope}", hint=_AGAIN
            )


def _twice(graph: onnx.GraphProto, index: Index, scope: Scope) -> str | None:
    """A name that two nodes or inputs make, or a node and a constant.

    A constant may be an input's default, and onnxruntime takes the last of two of one name.
    """
    constants = {*index.initializers[scope], *index.sparse[scope]}
    made: set[str] = set()
    for value in graph.input:
        if value.name in made:
            return str(value.name)
        made.add(value.name)
    made |= constants
    for node in graph.node:
        for name in node.output:
            if name in made:
                return str(name)
            if name:
                made.add(name)
    return None


def _cycle(graph: onnx.GraphProto, producers: dict[str, onnx.NodeProto]) -> str | None:
    """A node on a cycle, by its first output; None where there is no cycle."""
    waiting: dict[str, int] = {}
    readers: dict[str, list[str]] = defaultdict(list)
    done: set[str] = set()
    for node in graph.node:
        key = node_key(node)
        if not key:
            continue
        sources = {node_key(producers[n]) for n in captured(node) if n in producers}
        late = sources - done
        if not late:  # models are sorted, as a rule: then this is all
            done.add(key)
            continue
        waiting[key] = len(late)
        for source in late:
            readers[source].append(key)
    ready = [key for key in done if key in readers]
    while ready:
        for reader in readers[ready.pop()]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return next((key for key, count in waiting.items() if count), None)


def captured(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, those that its bodies take from outside included."""
    names = {name for name in node.input if name}
    # A body's own names are its own for the bodies within it, too.
    stack: list[tuple[onnx.GraphProto, Iterable[str]]] = [(body, ()) for _, body in bodies(node)]
    while stack:
        graph, outer = stack.pop()
        own = {*outer, *(o for n in graph.node for o in n.output)}
        own |= {v.name for v in graph.input} | {t.name for t in graph.initializer}
        own |= {t.values.name for t in graph.sparse_initializer}
        names |= {v.name for v in graph.output if v.name not in own}
        for inner in graph.node:
            names |= {name for name in inner.input if name and name not in own}
            stack += [(body, own) for _, body in bodies(inner)]
    return names

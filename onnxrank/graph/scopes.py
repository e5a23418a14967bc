"""Graphs inside a model: the main graph and the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx


@dataclass(frozen=True, order=True)
class Scope:
    """The place of a graph: from the main graph down, (a node's first output, attribute name).

    An output name identifies a node within its graph (ONNX graphs are in single assignment
    form), where node names are optional and may repeat.
    """

    path: tuple[tuple[str, str], ...] = ()

    def __hash__(self) -> int:
        return hash(self.path)

    def child(self, node: onnx.NodeProto, attribute: str) -> Scope:
        """The scope of the graph that `node` holds under `attribute`."""
        return Scope((*self.path, (node_key(node), attribute)))

    @property
    def parent(self) -> Scope:
        """The enclosing scope; the main scope is its own parent."""
        return Scope(self.path[:-1])

    def __str__(self) -> str:
        return "/".join(f"{output}.{attribute}" for output, attribute in self.path) or "main"


MAIN = Scope()


def node_key(node: onnx.NodeProto) -> str:
    """The first named output of a node: its identity within its graph ('' if it has none)."""
    for name in node.output:
        if name:
            return str(name)
    return ""


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Attribute name and graph of every body that a node holds."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            for index, graph in enumerate(attribute.graphs):
                yield f"{attribute.name}[{index}]", graph


def walk(graph: onnx.GraphProto, scope: Scope = MAIN) -> Iterator[tuple[Scope, onnx.GraphProto]]:
    """Every graph with its scope, outer before inner, in node order; without recursion."""
    stack = [(scope, graph)]
    while stack:
        here, current = stack.pop()
        yield here, current
        inner = [
            (here.child(node, name), body) for node in current.node for name, body in bodies(node)
        ]
        stack.extend(reversed(inner))

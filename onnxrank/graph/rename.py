"""Names of bodies made unlike those outside, in a copy that is run and thrown away.

ONNX wants names to differ between a graph and the bodies in it. Some models do not hold to that;
onnxruntime takes them or leaves them by the order in which it happens to visit the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from onnxrank.graph.scopes import MAIN, Scope, bodies


def unshadow(proto: onnx.ModelProto, names: Callable[[str], str]) -> dict[tuple[Scope, str], str]:
    """Rename, in place, what bodies define under a name that an enclosing graph has.

    Parameters
    ----------
    proto : ModelProto
        Changed where it must be.
    names : callable
        Gives an unused name for a wish.

    Returns
    -------
    dict of (Scope, str) to str
        New names, by the scope and name they had.
    """
    renamed: dict[tuple[Scope, str], str] = {}
    stack: list[tuple[Scope, onnx.GraphProto, dict[str, str], frozenset[str]]]
    stack = [(MAIN, proto.graph, {}, frozenset())]
    while stack:
        scope, graph, outer, above = stack.pop()
        own = _defined(graph)
        new = {name: names(name) for name in sorted(own & above)}
        renamed.update({(scope, name): after for name, after in new.items()})
        known = {name: after for name, after in outer.items() if name not in own} | new
        below = [
            (scope.child(node, name), body, known, above | own)
            for node in graph.node
            for name, body in bodies(node)
        ]
        if known:
            _apply(graph, known)
        stack += below
    return renamed


def _defined(graph: onnx.GraphProto) -> frozenset[str]:
    names = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    names |= {t.values.name for t in graph.sparse_initializer}
    names |= {output for node in graph.node for output in node.output if output}
    return frozenset(names)


def _apply(graph: onnx.GraphProto, known: Mapping[str, str]) -> None:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        for value in values:
            value.name = known.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = known.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                if name in known:
                    field[index] = known[name]

"""Cut a graph into segments by the depth of its sites, so that it can be run piece by piece.

The level of a tensor is the largest number of sites on a way to it. Segment k makes the tensors
of level k: it begins with the sites that read tensors of level k - 1, and ends before the next
ones. Every site of one segment can be decided at once, and what lies before need not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxrank.graph.model import captured
from onnxrank.graph.override import Overridden


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of a graph.

    Attributes
    ----------
    nodes : tuple of NodeProto
        In the graph's order.
    reads : tuple of str
        Tensors of lower levels that it needs.
    makes : tuple of str
        Tensors that later segments, or the caller, need.
    sites : tuple of str
        Sites whose weights it reads.
    """

    nodes: tuple[onnx.NodeProto, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    sites: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Cut:
    """The segments of an overridden document, and how long each tensor is needed.

    Attributes
    ----------
    segments : tuple of Segment
        Run in order, they compute the model's outputs.
    last : mapping of str to int
        The last segment that reads a tensor; the number of segments for the model's outputs.
    """

    segments: tuple[Segment, ...]
    last: Mapping[str, int]


def cut(overridden: Overridden) -> Cut:
    """Cut the main graph of an overridden document."""
    graph = overridden.proto.graph
    weights = {name: site for site, name in overridden.weights.items()}
    constants = {t.name for t in graph.initializer}
    constants |= {t.values.name for t in graph.sparse_initializer}
    order = _sorted(graph)
    level: dict[str, int] = {v.name: 0 for v in graph.input if v.name not in constants}
    placed: list[tuple[int, onnx.NodeProto]] = []
    free: list[onnx.NodeProto] = []
    outputs = {v.name for v in graph.output}
    for node in order:
        names = captured(node)
        sources = [level[n] for n in names if n in level]
        weighs = any(n in weights for n in names)
        if not sources and not weighs and not outputs & set(node.output):
            free.append(node)
            continue
        depth = max(sources, default=0) + weighs
        placed.append((depth, node))
        level.update((o, depth) for o in node.output if o)
    return _segments(graph, placed, free, level, weights)


def _segments(
    graph: onnx.GraphProto,
    placed: Sequence[tuple[int, onnx.NodeProto]],
    free: Sequence[onnx.NodeProto],
    level: Mapping[str, int],
    weights: Mapping[str, str],
) -> Cut:
    count = max((depth for depth, _ in placed), default=0) + 1
    outputs = {v.name for v in graph.output}
    last: dict[str, int] = {}
    for depth, node in placed:
        for name in captured(node):
            if name in level:
                last[name] = max(last.get(name, 0), depth)
    last.update((name, count) for name in outputs if name in level)
    segments = []
    for k in range(count):
        nodes = tuple(node for depth, node in placed if depth == k)
        read = {n for node in nodes for n in captured(node)}
        made = [o for node in nodes for o in node.output if o]
        given = {v.name for v in graph.input} if k == 0 else set()
        reads = sorted(n for n in read if n in level and (level[n] < k or n in given))
        makes = [o for o in made if last.get(o, -1) > k]
        sites = tuple(sorted(weights[n] for n in read if n in weights))
        nodes = (*_closure(free, read), *nodes)
        segments.append(Segment(nodes, tuple(reads), tuple(makes), sites))
    return Cut(tuple(segments), last)


def _closure(free: Sequence[onnx.NodeProto], read: set[str]) -> list[onnx.NodeProto]:
    """Nodes made of constants alone that a segment needs: each has its own, as constants."""
    wanted = set(read)
    found = []
    for node in reversed(free):
        if wanted & set(node.output):
            found.append(node)
            wanted |= captured(node)
    return found[::-1]


def _sorted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes in an order in which each comes after what it reads."""
    makers = {o: k for k, node in enumerate(graph.node) for o in node.output if o}
    needs = [{makers[n] for n in captured(node) if n in makers} for node in graph.node]
    readers: list[list[int]] = [[] for _ in needs]
    for k, sources in enumerate(needs):
        for source in sources:
            readers[source].append(k)
    waiting = [len(sources) for sources in needs]
    ready = [k for k, n in enumerate(waiting) if not n][::-1]
    order: list[onnx.NodeProto] = []
    while ready:
        k = ready.pop()
        order.append(graph.node[k])
        for reader in readers[k]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order


def submodel(
    overridden: Overridden, segment: Segment, types: Mapping[str, onnx.TypeProto], *, fed: bool
) -> onnx.ModelProto:
    """A segment as a model of its own; its weights and shifts are inputs only where `fed`."""
    source = overridden.proto
    proto = onnx.ModelProto(ir_version=max(source.ir_version, 4))
    proto.opset_import.extend(source.opset_import)
    proto.functions.extend(source.functions)
    proto.graph.name = "segment"
    proto.graph.node.extend(segment.nodes)
    used = {n for node in segment.nodes for n in captured(node)}
    proto.graph.initializer.extend(t for t in source.graph.initializer if t.name in used)
    proto.graph.sparse_initializer.extend(
        t for t in source.graph.sparse_initializer if t.values.name in used
    )
    for name in segment.reads:
        proto.graph.input.append(onnx.ValueInfoProto(name=name, type=types[name]))
    if fed:
        names = {*overridden.weights.values(), *overridden.shifts.values()} & used
        proto.graph.input.extend(v for v in source.graph.input if v.name in names)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in segment.makes)
    return proto

"""Cut a graph into segments by the depth of its sites, so that it can be run piece by piece.

The level of a tensor is the largest number of sites on a way to it. Segment k makes the tensors
of level k: it begins with the sites that read tensors of level k - 1, and ends before the next
ones. Every site of one segment can be decided at once, and what lies before need not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxrank.graph.model import TensorInfo, captured
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
    takes : frozenset of str
        Names of its weights and shifts, which may be fed.
    """

    nodes: tuple[onnx.NodeProto, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    sites: tuple[str, ...]
    takes: frozenset[str]


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
    order = _sorted(graph)
    level: dict[str, int] = {info.name: 0 for info in inputs_of(overridden)}
    placed: list[tuple[int, onnx.NodeProto]] = []
    free: list[onnx.NodeProto] = []
    outputs = {v.name for v in graph.output}
    waiting = _before_sites(order, overridden)
    for node in order:
        names = captured(node)
        sources = [level[n] for n in names if n in level]
        if node.output and node.output[0] in waiting:
            level[node.output[0]] = max(sources, default=0)
            continue
        weighs = any(n in weights for n in names)
        if not sources and not weighs and not outputs & set(node.output):
            free.append(node)
            continue
        depth = max(sources, default=0) + weighs
        for name in sorted(names & waiting.keys()):
            placed.append((depth, waiting[name]))
            level[name] = depth
        placed.append((depth, node))
        level.update((o, depth) for o in node.output if o)
    return _segments(overridden, placed, free, level, weights)


def _before_sites(
    order: Sequence[onnx.NodeProto], overridden: Overridden
) -> dict[str, onnx.NodeProto]:
    """Nodes that shift what a site takes for its bias, by their output: they go with the site."""
    weights = {name: site for site, name in overridden.weights.items()}
    shifts = {name: site for site, name in overridden.shifts.items()}
    made: dict[str, set[str]] = {}
    for node in order:
        for name in captured(node) & weights.keys():
            made.setdefault(weights[name], set()).update(node.output)
    found = {}
    for node in order:
        for name in set(node.input) & shifts.keys():
            site = shifts[name]
            itself = overridden.weights[site] in node.input
            if not itself and not made[site] & set(node.input):
                found[node.output[0]] = node
    return found


def inputs_of(overridden: Overridden) -> list[TensorInfo]:
    """What a caller of the model may feed, with a default or not."""
    model = overridden.model
    fixed = model.proto.ir_version < 4
    return [info for info in model.inputs if not (info.optional and fixed)]


def _segments(
    overridden: Overridden,
    placed: Sequence[tuple[int, onnx.NodeProto]],
    free: Sequence[onnx.NodeProto],
    level: Mapping[str, int],
    weights: Mapping[str, str],
) -> Cut:
    graph = overridden.proto.graph
    exposed = {*overridden.weights.values(), *overridden.shifts.values()}
    count = max((depth for depth, _ in placed), default=0) + 1
    outputs = {v.name for v in graph.output}
    last: dict[str, int] = {}
    for depth, node in placed:
        for name in captured(node):
            if name in level:
                last[name] = max(last.get(name, 0), depth)
    last.update((name, count) for name in outputs if name in level)
    given = {info.name for info in inputs_of(overridden)}
    segments = []
    for k in range(count):
        nodes = tuple(node for depth, node in placed if depth == k)
        read = {n for node in nodes for n in captured(node)}
        made = [o for node in nodes for o in node.output if o]
        reads = sorted(n for n in read if n in level and (level[n] < k or n in given))
        makes = [o for o in made if last.get(o, -1) > k]
        sites = tuple(sorted(weights[n] for n in read if n in weights))
        nodes = (*_closure(free, read), *nodes)
        takes = frozenset({n for node in nodes for n in captured(node)} & exposed)
        segments.append(Segment(nodes, tuple(reads), tuple(makes), sites, takes))
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
    used -= set(segment.reads)  # an input's default is given from outside
    proto.graph.initializer.extend(t for t in source.graph.initializer if t.name in used)
    proto.graph.sparse_initializer.extend(
        t for t in source.graph.sparse_initializer if t.values.name in used
    )
    for name in segment.reads:
        proto.graph.input.append(onnx.ValueInfoProto(name=name, type=types[name]))
    if fed:
        proto.graph.input.extend(v for v in source.graph.input if v.name in segment.takes)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in segment.makes)
    return proto

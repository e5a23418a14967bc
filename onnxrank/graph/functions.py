"""Model-local functions: inlined where they hold weights, so that their sites can be seen."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnxrank.errors import ModelError
from onnxrank.graph.scopes import bodies, walk

# Operators that may carry a weight inside a function body.
_LINEAR = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"}
_LINEAR |= {"FusedMatMul", "FusedGemm", "FusedConv", "Attention"}

# Nodes that inlining may make. Functions that call each other twice double with each level.
_MOST = 500_000

Key = tuple[str, str, str]


def check(proto: onnx.ModelProto, where: str) -> None:
    """Refuse functions that call themselves, on which onnx and onnxruntime would not return.

    Raises
    ------
    ModelError
        With the function.
    """
    calls = _calls(proto)
    order = _sorted(calls)
    if len(order) < len(calls):
        domain, name, _ = min(calls.keys() - set(order))
        raise ModelError(
            f"function '{domain}.{name}' calls itself",
            where=where,
            hint="the model is damaged; export it again",
        )


def bounded(proto: onnx.ModelProto) -> bool:
    """Whether the calls of functions, all inlined, make a graph of bearable size."""
    calls = _calls(proto)
    sizes: dict[Key, int] = {}
    for key in _sorted(calls):
        sizes[key] = sum(sizes.get(called, 1) for called in calls[key])
    nodes = (node for _, graph in walk(proto.graph) for node in graph.node)
    return sum(sizes.get(_called(node), 1) for node in nodes) <= _MOST


def inline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inline the calls of functions that hold linear operators; the rest stays as it is.

    The functions themselves are kept in the result, so nothing of the document is lost. A model
    that the inliner refuses is returned unchanged; its calls are then reported as skipped.
    """
    wanted = holding(proto, _LINEAR)
    if not wanted or not bounded(proto):
        return proto
    import onnx.inliner

    ids = [(domain, name) for domain, name, _ in wanted]
    try:
        inlined = onnx.inliner.inline_selected_functions(proto, ids)
    except Exception:  # noqa: BLE001 - the C++ inliner raises bare RuntimeErrors of many kinds
        return proto
    del inlined.functions[:]
    inlined.functions.extend(proto.functions)
    return inlined


def _key(function: onnx.FunctionProto) -> Key:
    return function.domain, function.name, function.overload


def _called(node: onnx.NodeProto) -> Key:
    return node.domain, node.op_type, node.overload


def _calls(proto: onnx.ModelProto) -> dict[Key, list[Key]]:
    """What each function's nodes, those of its bodies too, are or call."""
    return {_key(f): [_called(node) for node in _nodes(f)] for f in proto.functions}


def _sorted(calls: dict[Key, list[Key]]) -> list[Key]:
    """Functions after those they call; those that lie on, or call into, a ring are left out."""
    waiting = {key: {k for k in called if k in calls} for key, called in calls.items()}
    callers: dict[Key, list[Key]] = {key: [] for key in calls}
    for key, called in waiting.items():
        for each in called:
            callers[each].append(key)
    ready = [key for key, called in waiting.items() if not called]
    order: list[Key] = []
    while ready:
        key = ready.pop()
        order.append(key)
        for caller in callers[key]:
            waiting[caller].discard(key)
            if not waiting[caller]:
                ready.append(caller)
    return order


def holding(proto: onnx.ModelProto, operators: set[str]) -> list[Key]:
    """Functions that hold one of some operators, or call one that does."""
    calls = _calls(proto)
    found: set[Key] = set()
    for key in _sorted(calls):
        if any(called[1] in operators or called in found for called in calls[key]):
            found.add(key)
    return [key for key in calls if key in found]


def _nodes(function: onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in function.node:
        yield node
        for _, body in bodies(node):
            for _, graph in walk(body):
                yield from graph.node

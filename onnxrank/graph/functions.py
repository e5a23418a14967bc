"""Model-local functions: inlined where they hold weights, so that their sites can be seen."""

from __future__ import annotations

import onnx

# Operators that may carry a weight inside a function body.
_LINEAR = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"}
_LINEAR |= {"FusedMatMul", "FusedGemm", "FusedConv", "Attention"}

Key = tuple[str, str, str]


def inline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inline the calls of functions that hold linear operators; the rest stays as it is.

    The functions themselves are kept in the result, so nothing of the document is lost. A model
    that the inliner refuses is returned unchanged; its calls are then reported as skipped.
    """
    wanted = _holding(proto)
    if not wanted:
        return proto
    import onnx.inliner

    ids = [(f.domain, f.name) for f in proto.functions if _key(f) in wanted]
    try:
        inlined = onnx.inliner.inline_selected_functions(proto, ids)
    except Exception:  # noqa: BLE001 - the C++ inliner raises bare RuntimeErrors of many kinds
        return proto
    del inlined.functions[:]
    inlined.functions.extend(proto.functions)
    return inlined


def _key(function: onnx.FunctionProto) -> Key:
    return function.domain, function.name, function.overload


def _holding(proto: onnx.ModelProto) -> set[Key]:
    """Functions that hold a linear operator, or call one that does."""
    known = {_key(f): f for f in proto.functions}
    calls: dict[Key, set[Key]] = {}
    holding: set[Key] = set()
    for key, function in known.items():
        nodes = list(_nodes(function))
        calls[key] = {k for n in nodes if (k := (n.domain, n.op_type, n.overload)) in known}
        if any(n.op_type in _LINEAR for n in nodes):
            holding.add(key)
    grown = True
    while grown:
        more = {key for key, called in calls.items() if called & holding} - holding
        holding |= more
        grown = bool(more)
    return holding


def _nodes(function: onnx.FunctionProto) -> list[onnx.NodeProto]:
    from onnxrank.graph.scopes import bodies, walk

    found = list(function.node)
    for node in function.node:
        for _, body in bodies(node):
            found += [inner for _, graph in walk(body) for inner in graph.node]
    return found

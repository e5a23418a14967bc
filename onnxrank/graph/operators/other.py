"""Every weight-bearing node that no operator here splits gets its reason."""

from __future__ import annotations

import math

from onnxrank.graph.chain import CHAIN
from onnxrank.graph.constants import NotConstant, WeightRef
from onnxrank.graph.operators.base import Context
from onnxrank.graph.sites import Skip

_QUANTIZED = {
    "QLinearMatMul",
    "QLinearConv",
    "MatMulInteger",
    "ConvInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "MatMulNBits",
    "MatMulBnb4",
    "MatMulFpQ4",
    "QGemm",
    "QAttention",
    "QLinearConvTranspose",
    "QMoE",
    "QOrderedMatMul",
    "QOrderedAttention",
    "GatherBlockQuantized",
}
_SCALING = {
    "BatchNormalization",
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "EmbedLayerNormalization",
    "GroupNorm",
    "PRelu",
    "LpNormalization",
}
_LOOKUP = {"Gather", "GatherND", "GatherElements"}
_HOLDERS = {"Constant", "If", "Loop", "Scan", "SequenceMap"}
_CONTRACTIONS = {"DeformConv", "MoE", "NhwcConv", "CausalConvWithState"}


def reason(context: Context) -> Skip | None:
    """Why this node is left alone; None for a node without weights."""
    node = context.node
    size = _weight_size(context)
    if node.domain == "com.microsoft.nchwc":
        return (
            context.skip(
                "ort_optimized",
                "onnxruntime's blocked layout; give the model as it was before optimization",
                size,
            )
            if size
            else None
        )
    if node.op_type in _QUANTIZED:
        return context.skip("quantized", "its weight is quantized inside the operator", size)
    if node.domain in ("ai.onnx.ml", "ai.onnx.preview.training"):
        held = _attribute_size(context)
        return (
            context.skip(
                "attribute_weights", "its weights are attributes of an ai.onnx.ml operator", held
            )
            if held
            else None
        )
    if node.op_type in _SCALING:
        return context.skip(
            "elementwise", "it scales channels: there is no matrix to factorize", _all(context)
        )
    if not size:
        return None
    if node.op_type in _LOOKUP:
        return context.skip("embedding", "it looks rows up: no product to factorize", size)
    if (node.domain, node.op_type, node.overload) in _functions(context):
        return context.skip("function", "it calls a function that could not be inlined", size)
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        return context.skip("custom_domain", f"operators of '{node.domain}' are not known", size)
    if node.op_type in _CONTRACTIONS or _learned(node.op_type):
        return context.skip("operator", f"{node.op_type} cannot be split", size)
    return context.skip("not_linear", f"{node.op_type} is no linear map of an input", size)


def _learned(op: str) -> bool:
    return any(part in op for part in ("Gemm", "MatMul", "Conv", "Attention", "LSTM", "GRU"))


def _functions(context: Context) -> set[tuple[str, str, str]]:
    return {(f.domain, f.name, f.overload) for f in context.model.document.functions}


def _sizes(context: Context, least: int) -> list[int]:
    """Entries of the constant inputs that have at least `least` axes longer than one."""
    found = []
    for index in range(len(context.node.input)):
        ref: WeightRef | NotConstant = context.constant(index)
        if isinstance(ref, WeightRef) and sum(dim > 1 for dim in ref.shape) >= least:
            found.append(math.prod(ref.shape))
    return found


def _weight_size(context: Context) -> int:
    node = context.node
    if node.op_type in CHAIN or node.op_type in _HOLDERS:
        return 0  # what reads it behind, or in the body, is asked
    return sum(_sizes(context, 2))


def _all(context: Context) -> int:
    return sum(_sizes(context, 1))


def _attribute_size(context: Context) -> int:
    return sum(
        max(len(a.floats), math.prod(a.t.dims) if a.HasField("t") else 0)
        for a in context.node.attribute
    )

"""The operators: one table line says how each is recognised and how it is split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from onnxrank.graph.operators import attention, conv, einsum, gemm, matmul, recurrent
from onnxrank.graph.operators.base import Context, Job
from onnxrank.graph.sites import Site, Skip

Found = Site | Skip | None | list[Site | Skip]


@dataclass(frozen=True)
class Operator:
    """How one operator is recognised and split."""

    recognise: Callable[[Context], Found]
    split: Callable[[Job], list[onnx.NodeProto]]


_MS = "com.microsoft"

OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "Gemm"): Operator(gemm.recognise, gemm.split),
    (_MS, "FusedGemm"): Operator(gemm.recognise, gemm.split),
    ("", "MatMul"): Operator(matmul.recognise, matmul.split),
    (_MS, "FusedMatMul"): Operator(matmul.recognise, matmul.split),
    ("", "Conv"): Operator(conv.recognise, conv.split),
    (_MS, "FusedConv"): Operator(conv.recognise, conv.split),
    ("", "ConvTranspose"): Operator(conv.recognise_transpose, conv.split_transpose),
    ("", "Einsum"): Operator(einsum.recognise, einsum.split),
    ("", "LSTM"): Operator(recurrent.recognise, recurrent.split),
    ("", "GRU"): Operator(recurrent.recognise, recurrent.split),
    ("", "RNN"): Operator(recurrent.recognise, recurrent.split),
    (_MS, "Attention"): Operator(attention.recognise, attention.split),
}


def operator(node: onnx.NodeProto) -> Operator | None:
    """The table line of a node's operator, or None."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return OPERATORS.get((domain, node.op_type))

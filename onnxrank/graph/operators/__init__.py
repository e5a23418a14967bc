"""The operators: one table line says how each is recognised and how it is split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph.model import Model
from onnxrank.graph.operators import attention, conv, einsum, gemm, matmul, recurrent
from onnxrank.graph.operators.base import Context, Job
from onnxrank.graph.sites import Site, Skip

Array = NDArray[np.float64]
Spread = Callable[[Model, Site, onnx.NodeProto, Array], Array]
Found = Site | Skip | None | list[Site | Skip]


@dataclass(frozen=True)
class Operator:
    """How one operator is recognised, split and shifted."""

    recognise: Callable[[Context], Found]
    split: Callable[[Job], list[onnx.NodeProto]]
    # How a shift of the map is added to the node's output; None where it cannot be.
    spread: Spread | None = None
    # Which input is a bias, and how a shift of the map is added to that.
    bias: tuple[int, Spread] | None = None
    # The node with another weight of the same size; None where that is not done.
    refit: Callable[[Job], list[onnx.NodeProto]] | None = None


_MS = "com.microsoft"
_RECURRENT = Operator(recurrent.recognise, recurrent.split, bias=(3, recurrent.into_bias))

OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "Gemm"): Operator(
        gemm.recognise, gemm.split, gemm.spread, (2, gemm.into_bias), gemm.refit
    ),
    (_MS, "FusedGemm"): Operator(gemm.recognise, gemm.split, bias=(2, gemm.into_bias)),
    ("", "MatMul"): Operator(matmul.recognise, matmul.split, matmul.spread, refit=matmul.refit),
    (_MS, "FusedMatMul"): Operator(matmul.recognise, matmul.split, matmul.spread),
    ("", "Conv"): Operator(
        conv.recognise, conv.split, conv.spread, (2, conv.into_bias), conv.refit
    ),
    (_MS, "FusedConv"): Operator(conv.recognise, conv.split, bias=(2, conv.into_bias)),
    ("", "ConvTranspose"): Operator(conv.recognise_transpose, conv.split_transpose),
    ("", "Einsum"): Operator(einsum.recognise, einsum.split, einsum.spread),
    ("", "LSTM"): _RECURRENT,
    ("", "GRU"): _RECURRENT,
    ("", "RNN"): _RECURRENT,
    (_MS, "Attention"): Operator(
        attention.recognise, attention.split, bias=(2, attention.into_bias)
    ),
}


def operator(node: onnx.NodeProto) -> Operator | None:
    """The table line of a node's operator, or None."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return OPERATORS.get((domain, node.op_type))

"""Single nodes in onnxruntime: what torch has no operator for, where no gradient is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from torch import Tensor

from onnxrank.runtime.session import Run, execute, open_session

_RUN = Run(provider="cpu", threads=1)
# Sessions kept: inputs of ever new shapes need ever new ones.
_MOST = 1000


class Alone:
    """Runs nodes of one model, each in a session of its own that is kept.

    Parameters
    ----------
    proto : ModelProto
        The model, for its operator sets.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._opsets, self._ir_version = list(proto.opset_import), proto.ir_version
        self._sessions: dict[tuple[Any, ...], Any] = {}

    def __call__(self, node: onnx.NodeProto, inputs: Sequence[Any], where: str) -> list[Any]:
        """The outputs of a node, None for those without a name."""
        arrays = {
            f"input_{k}": x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
            for k, x in enumerate(inputs)
            if x is not None
        }
        # Shapes are fixed, as some operators are checked for them before they run.
        key = (*node.output, *((a.dtype.name, a.shape) for a in arrays.values()))
        if key not in self._sessions:
            if len(self._sessions) >= _MOST:
                self._sessions.clear()
            proto = self._model(node, arrays)
            self._sessions[key] = open_session(proto, None, _RUN, name=where)
        names = [f"output_{k}" for k, name in enumerate(node.output) if name]
        found = iter(execute(self._sessions[key], names, arrays, where=where))
        return [next(found) if name else None for name in node.output]

    def _model(self, node: onnx.NodeProto, arrays: dict[str, Any]) -> onnx.ModelProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [
            f"input_{k}" if f"input_{k}" in arrays else "" for k in range(len(node.input))
        ]
        copy.output[:] = [f"output_{k}" if name else "" for k, name in enumerate(node.output)]
        graph = onnx.GraphProto(name="node")
        graph.node.append(copy)
        for name, array in arrays.items():
            kind = onnx.TensorProto.STRING if array.dtype.kind in "OSU" else _kind(array.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in copy.output if name)
        proto = onnx.ModelProto(ir_version=max(self._ir_version, 4), graph=graph)
        proto.opset_import.extend(self._opsets)
        return proto


def _kind(dtype: np.dtype[Any]) -> int:
    if dtype == ml_dtypes.bfloat16:
        return int(onnx.TensorProto.BFLOAT16)
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))

"""New nodes and tensors, built with onnx-graphsurgeon and exported to protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


def make_node(
    op: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    name: str,
    *,
    domain: str = "",
    attributes: Mapping[str, Any] | None = None,
    copied: Iterable[onnx.AttributeProto] = (),
) -> onnx.NodeProto:
    """A node; `copied` attributes are taken over byte for byte."""
    import onnx_graphsurgeon as gs
    from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

    node = gs.Node(
        op=op,
        name=name,
        attrs=dict(attributes or {}),
        inputs=[gs.Variable(n) if n else gs.Variable.empty() for n in inputs],
        outputs=[gs.Variable(n) if n else gs.Variable.empty() for n in outputs],
        domain=domain or None,
    )
    made: onnx.NodeProto = OnnxExporter.export_node(node)
    made.attribute.extend(copied)
    return made


def make_tensor(name: str, value: NDArray[Any]) -> onnx.TensorProto:
    """An initializer holding `value`; bfloat16 as ml_dtypes has it."""
    return numpy_helper.from_array(value, name)


@dataclass
class Namer:
    """Names that no tensor or node of a model has yet."""

    taken: set[str] = field(default_factory=set)

    def __call__(self, wish: str) -> str:
        """`wish`, or `wish` with the first free number behind it."""
        name, count = wish, 1
        while name in self.taken:
            count += 1
            name = f"{wish}_{count}"
        self.taken.add(name)
        return name

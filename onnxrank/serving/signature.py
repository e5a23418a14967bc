"""What a served model takes and gives: names, types and shapes as onnxruntime reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxrank.errors import ModelError
from onnxrank.graph.model import MAIN, Model, TensorInfo
from onnxrank.record import Record

if TYPE_CHECKING:
    import onnxruntime as ort

# Element types by onnxruntime's name: as the Open Inference Protocol calls them.
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}

ANY = -1


@dataclass(frozen=True)
class Tensor(Record):
    """One input or output.

    Attributes
    ----------
    name : str
    datatype : str
        As the Open Inference Protocol calls it: FP32, INT64, BYTES.
    shape : tuple of int
        -1 where the size is open.
    axes : tuple of (str or None)
        Names of the open dimensions.
    optional : bool
        The model holds a default for this input.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    optional: bool = False


@dataclass(frozen=True)
class Signature(Record):
    """Inputs and outputs in the order of the graph; optional inputs come last."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def places(self, model: str) -> Iterator[tuple[str, Tensor]]:
        """Each tensor with what an error calls it, inputs first."""
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                yield f"{model}: {kind} '{tensor.name}'", tensor


def read_signature(model: Model, session: ort.InferenceSession) -> Signature:
    """Names, types and shapes as servers will see them, those that onnxruntime infers included.

    Raises
    ------
    ModelError
        A sequence, a map, an optional value, a type that no server carries, or an unknown rank.
    """
    infos = {info.name: info for info in (*model.inputs, *model.outputs)}

    def tensors(nodes: Sequence[ort.NodeArg], kind: str, optional: bool) -> tuple[Tensor, ...]:
        return tuple(_tensor(model, infos, node, kind, optional) for node in nodes)

    return Signature(
        inputs=tensors(session.get_inputs(), "input", False)
        + tensors(session.get_overridable_initializers(), "input", True),
        outputs=tensors(session.get_outputs(), "output", False),
    )


def _tensor(
    model: Model, infos: dict[str, TensorInfo], node: ort.NodeArg, kind: str, optional: bool
) -> Tensor:
    where = f"{model.name}: {kind} '{node.name}'"
    if not node.type.startswith("tensor("):
        raise ModelError(
            f"{_article(node.type)} cannot be served; only tensors can",
            where=where,
            hint="export the model with tensors in its place (zipmap=False in skl2onnx)",
        )
    element = node.type.removeprefix("tensor(").removesuffix(")")
    if element not in DATATYPES:
        raise ModelError(
            f"no server carries tensors of type {element}",
            where=where,
            hint="cast it inside the model, to float for example",
        )
    _check_rank(model, infos.get(node.name), node, where)
    return Tensor(
        name=node.name,
        datatype=DATATYPES[element],
        shape=tuple(size if isinstance(size, int) else ANY for size in node.shape),
        axes=tuple(None if isinstance(size, int) else size for size in node.shape),
        optional=optional,
    )


def _article(kind: str) -> str:
    for start, text in (("seq", "a sequence"), ("map", "a map"), ("optional", "an optional value")):
        if kind.startswith(start):
            return f"{text} ({kind})"
    return kind


def _check_rank(model: Model, info: TensorInfo | None, node: ort.NodeArg, where: str) -> None:
    """Tell a scalar from a tensor of unknown rank: onnxruntime gives no dimensions for both."""
    known = node.shape or (info is not None and info.shape is not None)
    if not known and model.shape(MAIN, node.name) is None:
        raise ModelError(
            "not even its number of dimensions is known",
            where=where,
            hint="declare its shape when exporting; open dimensions are fine",
        )


def check_batch(model: str, signature: Signature) -> None:
    """Refuse to batch a model unless the first axis of every tensor is open.

    Raises
    ------
    ModelError
        Naming the first tensor that stands against it.
    """
    for where, tensor in signature.places(model):
        if tensor.optional:
            raise ModelError(
                "an optional input cannot be batched",
                where=where,
                hint="leave out --max-batch, or remove it from the graph's inputs",
            )
        if not tensor.shape or tensor.shape[0] != ANY:
            what = (
                "a scalar" if not tensor.shape else f"its first axis is fixed to {tensor.shape[0]}"
            )
            raise ModelError(
                f"it cannot be batched: {what}",
                where=where,
                hint="leave out --max-batch, or export with an open first axis",
            )


def check_datatypes(
    model: str, signature: Signature, target: str, refused: Mapping[str, str]
) -> None:
    """Refuse the datatypes that a target cannot hold; `refused` gives a hint for each.

    Raises
    ------
    ModelError
        Naming the first such tensor.
    """
    for where, tensor in signature.places(model):
        if tensor.datatype in refused:
            raise ModelError(
                f"{target} cannot hold {tensor.datatype}",
                where=where,
                hint=refused[tensor.datatype],
            )

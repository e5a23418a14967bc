"""A request to try a served model with: small inputs of ones that the model is seen to take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxrank.errors import ModelError, OnnxRankError
from onnxrank.runtime.session import execute
from onnxrank.serving.signature import ANY, Signature, Tensor

if TYPE_CHECKING:
    import onnxruntime as ort

Feeds = Mapping[str, NDArray[Any]]

# Sizes of open dimensions, and values, in the order tried: text, images, lengths that must be one.
_SIZES = (8, 32, 64, 224, 1)
_VALUES = (1, 0)

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


@dataclass(frozen=True)
class Sample:
    """Inputs of one request, optional ones left out.

    Attributes
    ----------
    feeds : mapping of str to array
    works : bool
        onnxruntime has run the model on them; else they are only of the right type and rank.
    """

    feeds: Feeds
    works: bool


def find_sample(session: ort.InferenceSession, signature: Signature) -> Sample:
    """The first of a few plain requests that the model takes."""
    first: Feeds | None = None
    for feeds in _candidates(signature, batch=1):
        first = feeds if first is None else first
        if _outputs(session, feeds) is not None:
            return Sample(feeds, works=True)
    assert first is not None
    return Sample(first, works=False)


def check_follows_batch(model: str, session: ort.InferenceSession, signature: Signature) -> None:
    """Refuse to batch a model whose outputs do not keep the batch on their first axis.

    Open axes are no proof: a detector's first axis may count boxes. Where no sample runs, nothing
    is known and nothing refused.

    Raises
    ------
    ModelError
        Naming the output.
    """
    batch = 2
    for feeds in _candidates(signature, batch):
        outputs = _outputs(session, feeds)
        if outputs is None:
            continue
        for tensor, value in zip(signature.outputs, outputs, strict=True):
            if len(value) != batch:
                raise ModelError(
                    f"it cannot be batched: {batch} samples in give {len(value)} rows out",
                    where=f"{model}: output '{tensor.name}'",
                    hint="leave out --max-batch",
                )
        return


def _candidates(signature: Signature, batch: int) -> Iterator[Feeds]:
    inputs = [tensor for tensor in signature.inputs if not tensor.optional]
    for size, value in itertools.product(_SIZES, _VALUES):
        yield {tensor.name: _array(tensor, batch, size, value) for tensor in inputs}


def _array(tensor: Tensor, batch: int, size: int, value: int) -> NDArray[Any]:
    """One input: an open first axis is the batch, all other open axes are of one size."""
    shape = [
        known if known != ANY else (batch if axis == 0 else size)
        for axis, known in enumerate(tensor.shape)
    ]
    content: Any = "text" if tensor.datatype == "BYTES" else value
    return np.full(shape, content, dtype=DTYPES[tensor.datatype])


def _outputs(session: ort.InferenceSession, feeds: Feeds) -> list[Any] | None:
    """What the model gives, or None if it refuses."""
    names = [output.name for output in session.get_outputs()]
    try:
        return execute(session, names, feeds, where="sample")
    except OnnxRankError:
        return None

"""Triton's model repository: NAME/config.pbtxt and NAME/VERSION/model.onnx.

The rules of its onnxruntime backend: a batched model leaves the batch out of its dims, and every
tensor's first axis is open; ranks match; output dims equal onnxruntime's, -1 where they are open.
A scalar has dims 1 and needs a model that is not batched; a batched vector is one row a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxrank.errors import ModelError
from onnxrank.serving.order import Layout, Order, readme
from onnxrank.serving.protocol import HALF, Request, binary_request, json_request
from onnxrank.serving.signature import Tensor

# A release whose onnxruntime backend reads the formats of today.
IMAGE = "nvcr.io/nvidia/tritonserver:25.08-py3"
_DELAY = 100


def lay_out(order: Order) -> Layout:
    """The repository with README.md and a request beside the model's folder.

    Raises
    ------
    ModelError
        A dimension is zero.
    """
    ask = request(order)
    start = (
        f"docker run --rm --detach --name triton-{order.name} --publish 127.0.0.1:8000:8000 \\\n"
        f'  --volume "$PWD":/models:ro {IMAGE} \\\n'
        "  tritonserver --model-repository=/models"
    )
    url = f"http://127.0.0.1:8000/v2/models/{order.name}/infer"
    text = readme(
        order,
        "Triton Inference Server",
        start=start,
        ask=f"curl --retry 30 --retry-delay 1 --retry-all-errors {ask.curl} {url}",
        stop=f"docker stop triton-{order.name}",
        notes="A server with a GPU runs the model there. "
        "Several models: put their folders into one repository.",
    )
    return repository(order, {"README.md": text, ask.name: ask.body})


def repository(order: Order, files: Mapping[str, bytes]) -> Layout:
    """The model's folder with its configuration, and other files."""
    for where, tensor in order.signature.places(order.source):
        if 0 in tensor.shape:
            raise ModelError(
                "Triton cannot hold a dimension of size 0",
                where=where,
                hint="export with that dimension open",
            )
    return Layout(
        model=f"{order.name}/{order.version}/model.onnx",
        files={f"{order.name}/config.pbtxt": config(order).encode(), **files},
    )


def config(order: Order) -> str:
    """The text of config.pbtxt."""
    signature, batched = order.signature, order.max_batch > 0
    blocks = [
        f'name: "{order.name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {order.max_batch}",
        *(_tensor("input", tensor, batched) for tensor in signature.inputs),
        *(_tensor("output", tensor, batched) for tensor in signature.outputs),
        f"version_policy {{ specific {{ versions: [ {order.version} ] }} }}",
    ]
    if batched:
        blocks.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY} }}")
    return "\n".join(blocks) + "\n"


def _tensor(kind: str, tensor: Tensor, batched: bool) -> str:
    dims = tensor.shape[1:] if batched else tensor.shape
    lines = [
        f"{kind} {{",
        f"  name: {_quoted(tensor.name)}",
        f"  data_type: TYPE_{'STRING' if tensor.datatype == 'BYTES' else tensor.datatype}",
        f"  dims: [ {', '.join(map(str, dims or (1,)))} ]",
    ]
    if batched and not dims:
        lines.append("  reshape { shape: [ ] }")
    if tensor.optional:
        lines.append("  optional: true")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    """A string of protobuf's text format: everything but plain ASCII as octal bytes."""
    return '"' + "".join(_character(byte) for byte in text.encode()) + '"'


def _character(byte: int) -> str:
    plain = 32 <= byte < 127 and chr(byte) not in '"\\'
    return chr(byte) if plain else f"\\{byte:03o}"


def request(order: Order) -> Request:
    """The sample as the server wants it: shapes as in its configuration, FP16 and BF16 raw."""
    batched = order.max_batch > 0
    feeds = {name: _wire(value, batched) for name, value in order.sample.feeds.items()}
    inputs, outputs = order.signature.inputs, order.signature.outputs
    raw = any(tensor.datatype in HALF for tensor in (*inputs, *outputs))
    return (binary_request if raw else json_request)(inputs, feeds)


def _wire(value: NDArray[Any], batched: bool) -> NDArray[Any]:
    """Scalars have one dimension here, and batched vectors two."""
    if value.ndim == 0 or (batched and value.ndim == 1):
        return value[..., np.newaxis]
    return value

"""Requests of the Open Inference Protocol (V2), as Triton, KServe and MLServer read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxrank.serving.signature import Tensor

HALF = ("FP16", "BF16")


@dataclass(frozen=True)
class Request:
    """A file to post.

    Attributes
    ----------
    name : str
        Of the file.
    body : bytes
    json_length : int or None
        Bytes of JSON before the raw tensors; None if all is JSON.
    """

    name: str
    body: bytes
    json_length: int | None = None

    @property
    def curl(self) -> str:
        """Options of curl that post the file."""
        if self.json_length is None:
            return f"-H 'Content-Type: application/json' --data-binary @{self.name}"
        return (
            "-H 'Content-Type: application/octet-stream' "
            f"-H 'Inference-Header-Content-Length: {self.json_length}' "
            f"--data-binary @{self.name} --output response.bin"
        )


def json_request(inputs: Sequence[Tensor], feeds: Mapping[str, NDArray[Any]]) -> Request:
    """A request in plain JSON."""
    entries = [
        {**_entry(tensor, feeds[tensor.name]), "data": feeds[tensor.name].ravel().tolist()}
        for tensor in inputs
        if tensor.name in feeds
    ]
    return Request("request.json", _dump({"inputs": entries}) + b"\n")


def binary_request(inputs: Sequence[Tensor], feeds: Mapping[str, NDArray[Any]]) -> Request:
    """A request of the binary extension, for types that Triton does not read from JSON."""
    entries, raws = [], []
    for tensor in inputs:
        if tensor.name in feeds:
            raw = _raw(feeds[tensor.name])
            parameters = {"binary_data_size": len(raw)}
            entries.append({**_entry(tensor, feeds[tensor.name]), "parameters": parameters})
            raws.append(raw)
    header = _dump({"parameters": {"binary_data_output": True}, "inputs": entries})
    return Request("request.bin", header + b"".join(raws), len(header))


def _entry(tensor: Tensor, value: NDArray[Any]) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(value.shape), "datatype": tensor.datatype}


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _raw(value: NDArray[Any]) -> bytes:
    """Little-endian elements in C order; strings with their length before them."""
    if value.dtype == np.object_:
        texts = [str(text).encode() for text in value.ravel()]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.ascontiguousarray(value).tobytes()

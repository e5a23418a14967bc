"""MLServer: model-settings.json, settings.json and a runtime of a page beside the model.

One process (workers of its own crash with uvloop 0.23), on loopback; its adaptive batching joins
requests without a look at their other axes, so those must be fixed.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from onnxrank.errors import ModelError
from onnxrank.serving.order import Layout, Order, readme
from onnxrank.serving.protocol import json_request
from onnxrank.serving.signature import ANY, Tensor, check_datatypes

_RUNTIME = "onnx_runtime.py"
_DELAY = 0.0001


def lay_out(order: Order) -> Layout:
    """All files beside the model in one folder.

    Raises
    ------
    ModelError
        A bfloat16 tensor, or batching with a second open axis.
    """
    check_datatypes(
        order.source,
        order.signature,
        "MLServer",
        {"BF16": "bundle it for triton, or cast it to float inside the model"},
    )
    if order.max_batch:
        _check_axes(order)
    ask = json_request(order.signature.inputs, order.sample.feeds)
    url = f"http://127.0.0.1:8080/v2/models/{order.name}/infer"
    text = readme(
        order,
        "MLServer",
        start="python -m pip install -r requirements.txt\nmlserver start . &",
        ask=f"curl --retry 30 --retry-delay 1 --retry-all-errors {ask.curl} {url}",
        stop="kill %1",
        notes="MLServer wants Python 3.9 to 3.12. It listens on loopback; "
        "settings.json holds host and ports.",
    )
    return Layout(
        model="model.onnx",
        files={
            "README.md": text,
            ask.name: ask.body,
            "model-settings.json": _dump(_model_settings(order)),
            "settings.json": _dump(_SETTINGS),
            _RUNTIME: resources.files(__package__).joinpath(f"{_RUNTIME}.txt").read_bytes(),
            "requirements.txt": f"mlserver>=1.7\nonnxruntime>={order.onnxruntime}\n".encode(),
        },
    )


_SETTINGS = {
    "debug": False,
    "host": "127.0.0.1",
    "http_port": 8080,
    "grpc_port": 8081,
    "metrics_port": 8082,
    "parallel_workers": 0,
}


def _model_settings(order: Order) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "name": order.name,
        "implementation": "onnx_runtime.OnnxModel",
        "platform": "onnxruntime_onnx",
        "inputs": [_metadata(tensor) for tensor in order.signature.inputs],
        "outputs": [_metadata(tensor) for tensor in order.signature.outputs],
        "parameters": {"uri": "./model.onnx", "version": str(order.version)},
    }
    if order.max_batch:
        settings |= {"max_batch_size": order.max_batch, "max_batch_time": _DELAY}
    return settings


def _metadata(tensor: Tensor) -> dict[str, Any]:
    known = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    return {**known, "parameters": {"optional": True}} if tensor.optional else known


def _check_axes(order: Order) -> None:
    for where, tensor in order.signature.places(order.source):
        if ANY in tensor.shape[1:]:
            raise ModelError(
                "MLServer cannot batch it: an axis beside the first is open",
                where=where,
                hint="leave out --max-batch, or export with that axis fixed",
            )


def _dump(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

"""MLflow: a model folder of its onnx flavour, written without mlflow.

The signature says which types requests hold: without it the scoring server takes floats for
doubles. Its files carry no clock: the same model gives the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxrank.errors import ModelError
from onnxrank.serving.order import Layout, Order, readme
from onnxrank.serving.sample import DTYPES
from onnxrank.serving.signature import Tensor, check_datatypes

# The version that reads the folder in the tests, and the Python where mlflow may choose one.
VERSION = "3.17.2"
PYTHON = "3.11"


def lay_out(order: Order) -> Layout:
    """All files beside the model in one folder.

    Raises
    ------
    ModelError
        A bfloat16 tensor, an optional input, or batching.
    """
    check_datatypes(
        order.source,
        order.signature,
        "MLflow",
        {"BF16": "bundle it for triton, or cast it to float inside the model"},
    )
    for where, tensor in order.signature.places(order.source):
        if tensor.optional:
            raise ModelError(
                "MLflow cannot hold an optional input",
                where=where,
                hint="remove it from the graph's inputs: its default then always holds",
            )
    if order.max_batch:
        raise ModelError(
            "MLflow does not batch requests", where=order.source, hint="leave out --max-batch"
        )
    requirements = ["mlflow-skinny", "fastapi", "uvicorn", "pandas", "numpy"]
    requirements.append(f"onnxruntime>={order.onnxruntime}")
    return Layout(
        model="model.onnx",
        files={
            "README.md": _readme(order),
            "request.json": _request(order),
            "MLmodel": model_file(order).encode(),
            "requirements.txt": "".join(f"{line}\n" for line in requirements).encode(),
            "python_env.yaml": _yaml(
                {"python": PYTHON, "dependencies": ["-r requirements.txt"]}
            ).encode(),
            "conda.yaml": _conda(requirements).encode(),
        },
    )


def _readme(order: Order) -> bytes:
    return readme(
        order,
        "MLflow",
        start="python -m pip install -r requirements.txt\n"
        "mlflow models serve --model-uri . --env-manager local "
        "--host 127.0.0.1 --port 5000 &",
        ask="curl --retry 30 --retry-delay 1 --retry-all-errors "
        "-H 'Content-Type: application/json' --data-binary @request.json "
        "http://127.0.0.1:5000/invocations",
        stop="kill %1",
        notes="Any tool that reads MLflow models takes this folder: "
        "`mlflow.pyfunc.load_model`, a registry, `mlflow models build-docker`.",
    )


def model_file(order: Order) -> str:
    """The text of MLmodel."""
    return _yaml(
        {
            "flavors": {
                "onnx": {
                    "data": "model.onnx",
                    "providers": ["CPUExecutionProvider"],
                },
                "python_function": {
                    "data": "model.onnx",
                    "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
                    "loader_module": "mlflow.onnx",
                    "python_version": PYTHON,
                },
            },
            "metadata": {"name": order.name, "version": order.version, "sha256": order.sha256},
            "mlflow_version": VERSION,
            "model_uuid": order.sha256[:32],
            "signature": {
                "inputs": json.dumps([_spec(tensor) for tensor in order.signature.inputs]),
                "outputs": json.dumps([_spec(tensor) for tensor in order.signature.outputs]),
            },
            "utc_time_created": "1970-01-01 00:00:00.000000",
        }
    )


def _spec(tensor: Tensor) -> dict[str, Any]:
    dtype = "str" if tensor.datatype == "BYTES" else np.dtype(DTYPES[tensor.datatype]).name
    spec = {"dtype": dtype, "shape": list(tensor.shape)}
    return {"name": tensor.name, "type": "tensor", "tensor-spec": spec}


def _conda(requirements: list[str]) -> str:
    pip: list[Any] = [f"python={PYTHON}", "pip", {"pip": requirements}]
    return _yaml({"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": pip})


def _request(order: Order) -> bytes:
    inputs = {name: value.tolist() for name, value in order.sample.feeds.items()}
    return (json.dumps({"inputs": inputs}, ensure_ascii=False) + "\n").encode()


def _yaml(value: Mapping[str, Any] | list[Any], indent: str = "") -> str:
    """Block YAML of mappings and lists; scalars as JSON, which is YAML too."""
    entries = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
    lines = []
    for key, item in entries:
        head = f"{indent}- " if key is None else f"{indent}{key}: "
        if isinstance(item, Mapping | list):
            inner = _yaml(item, indent + "  ")
            lines.append(head + inner.lstrip() if key is None else f"{head.rstrip()}\n{inner}")
        else:
            lines.append(f"{head}{json.dumps(item, ensure_ascii=False)}\n")
    return "".join(lines)

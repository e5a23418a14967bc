"""KServe: Triton's repository, which its own ONNX runtime is, and an InferenceService."""

from __future__ import annotations

import json
import re

from onnxrank.serving import triton
from onnxrank.serving.order import Layout, Order, readme

SERVICE = "inference-service.yaml"


def lay_out(order: Order) -> Layout:
    """The repository, the service, README.md and a request."""
    ask, service = triton.request(order), service_name(order.name)
    url = f'"$URL/v2/models/{order.name}/infer"'
    text = readme(
        order,
        "KServe",
        start=f"kubectl apply -f {SERVICE}\n"
        f"kubectl wait --for=condition=Ready inferenceservice/{service} --timeout=600s",
        ask=f"URL=$(kubectl get inferenceservice {service} -o jsonpath='{{.status.url}}')\n"
        f"curl --fail {ask.curl} {url}",
        stop=f"kubectl delete -f {SERVICE}",
        notes=f"The service reads this folder from `{storage(order)}`: copy it there first, or "
        f"put the place where you keep it (s3, gs, pvc, hf) into `storageUri` of {SERVICE}.",
    )
    files = {"README.md": text, ask.name: ask.body, SERVICE: manifest(order).encode()}
    return triton.repository(order, files)


def manifest(order: Order) -> str:
    """The InferenceService; protocol v2 is what KServe serves ONNX with."""
    return f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {json.dumps(service_name(order.name))}
spec:
  predictor:
    model:
      modelFormat:
        name: onnx
        version: "1"
      protocolVersion: v2
      runtime: kserve-tritonserver
      storageUri: {json.dumps(storage(order))}
"""


def storage(order: Order) -> str:
    """Where the service looks for the folder, unless told otherwise."""
    return f"pvc://models/{service_name(order.name)}"


def service_name(name: str) -> str:
    """A name that Kubernetes takes: lower case, digits and hyphens, a letter first, 63 at most."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}")[:63].strip("-")

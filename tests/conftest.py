"""Small models and data that many tests use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# A busy machine is no failure: what takes long is not judged by the clock.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


MODELS = Path(__file__).parent.parent / "models"


@dataclass(frozen=True)
class Case:
    """A model with its calibration and evaluation files."""

    model: Path
    data: Path
    evaluation: Path


def two_layers(d: int = 64, hidden: int = 96, classes: int = 48) -> onnx.ModelProto:
    """MatMul, bias, ReLU, Gemm: the same bytes every time."""
    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        value = rng.standard_normal(shape) / np.sqrt(shape[-1])
        return numpy_helper.from_array(value.astype(np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"], name="fc1"),
        helper.make_node("Add", ["h0", "b1"], ["h1"], name="add1"),
        helper.make_node("Relu", ["h1"], ["h2"], name="relu"),
        helper.make_node("Gemm", ["h2", "w2", "b2"], ["y"], name="fc2", transB=1),
    ]
    weights = [
        tensor("w1", d, hidden),
        tensor("b1", hidden),
        tensor("w2", classes, hidden),
        tensor("b2", classes),
    ]
    graph = helper.make_graph(
        nodes,
        "two_layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", d])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def narrow_rows(n: int, d: int = 64, rank: int = 6, seed: int = 1) -> NDArray[np.float32]:
    """Rows that all but lie in `rank` of `d` dimensions."""
    rng, basis = np.random.default_rng(seed), np.random.default_rng(0)
    rows = rng.standard_normal((n, rank)) @ basis.standard_normal((rank, d))
    return (rows + 1e-3 * rng.standard_normal((n, d))).astype(np.float32)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A model with two layers, and rows that use a tenth of the first one's input."""
    paths = Case(tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "eval.npz")
    onnx.save(two_layers(), str(paths.model))
    np.savez(paths.data, x=narrow_rows(2048))
    np.savez(paths.evaluation, x=narrow_rows(256, seed=2))
    return paths

"""The main job on the models that come with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from onnxrank.cli import main

MODELS = Path(__file__).parents[2] / "models"
SAMPLES = {"mlp": "mlp"}
NAMES = sorted(path.stem for path in MODELS.glob("*.onnx"))


def data(name: str, part: str) -> Path:
    return MODELS / f"{SAMPLES.get(name, 'fashion')}_{part}.npz"


def compress(name: str, output: Path, *words: str) -> dict[str, Any]:
    """Compress a model, and give the report."""
    call = [
        "compress", MODELS / f"{name}.onnx", output, "--data", data(name, "calib"),
        "--eval", data(name, "eval"), "--json", "-", *words,
    ]  # fmt: skip
    result = CliRunner().invoke(main, [str(word) for word in call])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def answers(model: Path, name: str) -> np.ndarray[Any, Any]:
    """What onnxruntime itself gives for 64 evaluation images."""
    images = np.load(data(name, "eval"))["image"][:64]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores: np.ndarray[Any, Any] = session.run(None, {"image": images})[0]
    return scores


def test_there_are_models() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_analyze(name: str) -> None:
    words = ["analyze", MODELS / f"{name}.onnx", "--data", data(name, "calib"), "--json", "-"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["data"]["samples"] == 2048
    assert 0 < report["mean_layer_utilization"] < 1
    for site in report["sites"]:
        assert 1 <= site["rank"] == min(site["k_in"], site["k_out"])
        assert site["utilization"] == site["rank"] / min(site["d_in"], site["d_out"])


@pytest.mark.parametrize("name", NAMES)
def test_compress(name: str, tmp_path: Path) -> None:
    """At a high energy the outputs hardly change, and both models really run."""
    report = compress(name, tmp_path / "small.onnx", "--energy", "0.999")
    comparison = report["comparison"]
    assert comparison["data"]["samples"] == 2048
    assert comparison["parameters"]["ratio"] < 1
    assert comparison["bytes"]["ratio"] < 1
    assert comparison["top1_agreement"] > 0.98
    before = answers(MODELS / f"{name}.onnx", name)
    after = answers(tmp_path / "small.onnx", name)
    assert np.linalg.norm(before - after) < 0.05 * np.linalg.norm(before)


FORMS = [(name, "centered") for name in NAMES]
FORMS += [(NAMES[0], method) for method in ("optimal", "projection", "svd")]


@pytest.mark.parametrize(("name", "method"), FORMS)
def test_full_rank_changes_nothing(name: str, method: str, tmp_path: Path) -> None:
    """Every site split at full rank: equal outputs, to float32 rounding."""
    words = ["--energy", "1", "--force", "--method", method, "--samples", "64"]
    report = compress(name, tmp_path / "full.onnx", *words)
    assert all(unit["form"] for unit in report["plan"]["units"] if unit["kept"] is None)
    assert any(unit["form"] for unit in report["plan"]["units"])
    for error in report["comparison"]["outputs"].values():
        assert error["relative_l2"] < 5e-6
    before = answers(MODELS / f"{name}.onnx", name)
    after = answers(tmp_path / "full.onnx", name)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)

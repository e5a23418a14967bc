"""What needs no torch: its absence, and which constants may change."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from onnxrank.cli import main
from onnxrank.differentiable.factors import exposed, factors, replaced, rounded
from onnxrank.differentiable.pool import fill
from onnxrank.errors import ModelError
from onnxrank.graph.model import load
from onnxrank.runtime.data import open_data
from onnxrank.runtime.session import Run, open_session


@pytest.fixture
def small(case, tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    words = ["compress", case.model, path, "--data", case.data, "--params", "0.5"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_a_missing_extra_says_what_to_install(case, small: Path, tmp_path: Path) -> None:
    output = tmp_path / "better.onnx"
    words = ["finetune", case.model, small, output, "--data", case.data]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 2
    assert "pip install 'onnxrank[finetune]'" in result.stderr
    assert not output.exists()


def test_only_what_compress_wrote_may_change(case, small: Path) -> None:
    found = factors(load(small))
    kept = {tensor.name for tensor in onnx.load(case.model).graph.initializer}
    stored = {tensor.name for tensor in onnx.load(small).graph.initializer}
    assert set(found) == stored - kept
    assert any(name.endswith("/rank_in.weight") for name in found)
    with pytest.raises(ModelError, match="holds no factors"):
        factors(load(case.model))


def test_new_values_leave_every_other_byte(small: Path) -> None:
    model = load(small)
    doubled = {name: value * 2 for name, value in factors(model).items()}
    made = replaced(model, rounded(model, doubled))
    for tensor in made.graph.initializer:
        if tensor.name in doubled:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), doubled[tensor.name])
    back = replaced(load(made), factors(model))
    assert back.SerializeToString(deterministic=True) == small.read_bytes()


def test_one_session_runs_the_model_with_any_factors(case, small: Path) -> None:
    model = load(small)
    doubled = {name: value * 2 for name, value in factors(model).items()}
    feeds = {"x": np.load(case.evaluation)["x"]}
    fed = open_session(exposed(model, doubled), None, Run()).run(None, {**feeds, **doubled})
    written = open_session(replaced(model, doubled), None, Run()).run(None, feeds)
    np.testing.assert_allclose(fed[0], written[0], rtol=1e-5, atol=1e-4)


def test_steps_mix_samples_and_use_all_of_them(case) -> None:
    model = load(case.model)
    samples = {"x": np.arange(64 * 10, dtype=np.float32).reshape(10, 64)}
    pool = fill(model, open_data(samples, model.inputs, Run(batch_size=4)), 0)
    steps = pool.steps(5, seed=0)
    seen = [next(steps) for _ in range(4)]
    assert all(len(step) == 1 and step[0].size == 5 for step in seen)
    numbers = [(step[0].feeds["x"][:, 0] / 64).tolist() for step in seen]
    assert sorted(numbers[0] + numbers[1]) == sorted(numbers[2] + numbers[3]) == list(range(10))
    assert numbers[0] != numbers[2] and numbers[0] != sorted(numbers[0])


def test_feeds_of_different_sizes_mix_too(case) -> None:
    model = load(case.model)
    feeds = [{"x": np.ones((n, 64), np.float32)} for n in (3, 4)]
    pool = fill(model, open_data(feeds, model.inputs, Run()), 0)
    assert pool.mixed and pool.samples == 7
    step = next(pool.steps(100, seed=0))
    assert step[0].size == 7


def test_memory_bounds_what_is_kept(case) -> None:
    model = load(case.model)
    samples = {"x": np.zeros((64, 64), np.float32)}
    pool = fill(model, open_data(samples, model.inputs, Run(batch_size=8)), 3 * 8 * 64 * 4)
    assert pool.samples == 24

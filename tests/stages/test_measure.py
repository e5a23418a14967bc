"""What data do not reach, and what onnxruntime loses, leaves the rest of a model measured."""

from __future__ import annotations

import numpy as np
import pytest

import onnxrank as ox
from onnxrank.errors import MomentsError
from onnxrank.stages.analyze import analyze

from ..graph.corpus import FIXTURES


def fixture(name: str):
    path = FIXTURES / name
    return path, dict(np.load(path.with_suffix(".npz")))


@pytest.mark.parametrize(
    ("name", "idle"),
    [
        ("if_captured_else", "in_then"),
        ("if_captured_then", "in_else"),
        ("if_own_weights", "in_else"),
    ],
)
def test_a_branch_that_was_not_taken_is_left_out(name, idle):
    path, data = fixture(f"hand_built/{name}.onnx")
    moments = ox.collect(path, data)
    report = analyze(path, moments, energy=0.99)
    assert [s.name for s in report.skipped if s.code == "no_rows"] == [idle]
    assert report.sites and idle not in [site.name for site in report.sites]
    plan = ox.plan(path, moments, energy=1.0, force=True)
    assert idle not in [entry.name for entry in plan.units]
    small = ox.compress(path, plan, moments)
    result = ox.compare(path, small, data)
    assert all(error.relative_l2 < 1e-5 for error in result.outputs.values())


def test_no_rows_at_all_are_an_error():
    path, data = fixture("jax2onnx/cond.onnx")
    with pytest.raises(MomentsError, match="saw no rows"):
        analyze(path, ox.collect(path, data), energy=0.99)


def test_a_tensor_that_onnxruntime_optimizes_away_is_measured():
    path, data = fixture("jax2onnx/vmap.onnx")
    report = analyze(path, ox.collect(path, data), energy=0.99)
    assert report.sites and all(site.rank for site in report.sites)

"""Budgets hold on what is written; plans come back; a search keeps its word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxrank as ox
from onnxrank.errors import PlanError
from onnxrank.graph.cost import parameters_of
from onnxrank.runtime.session import Run
from onnxrank.stages.budget import Budget
from onnxrank.stages.deliver import deliver
from onnxrank.stages.goal import Goal, Manner

CPU = Run(provider="cpu", threads=1)
LOOSE = Manner(align=1, allow_unstable=True)


def _deliver(case, output: Path, goal: Goal, manner: Manner = LOOSE):
    return deliver(
        case.model, output, data=case.data, evaluation=case.evaluation, goal=goal, manner=manner,
        run=CPU,
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_a_budget_of_parameters_holds_on_what_is_written(case, tmp_path, share: float) -> None:
    output = tmp_path / "small.onnx"
    report = _deliver(case, output, Goal(budget=Budget("params", share)))
    assert report.plan is not None and report.plan.split
    kept = parameters_of(onnx.load(output)) / parameters_of(onnx.load(case.model))
    assert kept <= share + 1e-9
    assert report.plan.bound is not None and report.plan.predicted_error is not None
    assert report.plan.bound <= report.plan.predicted_error


def test_a_budget_of_operations_holds(case, tmp_path) -> None:
    report = _deliver(case, tmp_path / "small.onnx", Goal(budget=Budget("macs", 0.5)))
    assert report.comparison is not None and report.comparison.macs.ratio is not None
    assert report.comparison.macs.ratio <= 0.5


def test_a_budget_out_of_reach_says_what_is_in_reach(case, tmp_path) -> None:
    output = tmp_path / "small.onnx"
    with pytest.raises(PlanError, match=r"out of reach.*reach 0\.\d+"):
        _deliver(case, output, Goal(budget=Budget("params", 0.001)))
    assert list(tmp_path.iterdir()) == [] or not output.exists()


def test_the_same_seed_gives_the_same_bytes(case, tmp_path) -> None:
    for name in ("a.onnx", "b.onnx"):
        _deliver(case, tmp_path / name, Goal(budget=Budget("params", 0.5)))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_saved_plan_gives_what_it_was_made_for(case, tmp_path) -> None:
    first = _deliver(case, tmp_path / "a.onnx", Goal(budget=Budget("params", 0.5)))
    assert first.plan is not None
    first.plan.save(tmp_path / "plan.json")
    again = ox.Plan.load(tmp_path / "plan.json")
    assert again == first.plan
    second = _deliver(case, tmp_path / "b.onnx", Goal(plan=again))
    assert second.comparison is not None and first.comparison is not None
    assert second.comparison.parameters == first.comparison.parameters
    damaged = replace(again, units=(replace(again.units[0], form="no such form", rank=1),))
    with pytest.raises(PlanError, match="no such form"):
        _deliver(case, tmp_path / "c.onnx", Goal(plan=damaged))


def test_a_search_keeps_what_it_promises(case, tmp_path) -> None:
    report = _deliver(case, tmp_path / "small.onnx", Goal(error=0.5, agreement=0.9))
    assert report.frontier is not None and report.frontier.points
    if report.plan is not None and report.plan.split:
        assert sum(point.chosen for point in report.frontier.points) == 1
        assert report.comparison is not None and report.comparison.top1_agreement is not None
        assert report.comparison.top1_agreement > 0.85


def test_a_search_that_finds_nothing_writes_nothing(case, tmp_path) -> None:
    """Inputs that use every dimension: nothing can go without being seen."""
    x = np.random.default_rng(5).standard_normal((512, 64)).astype(np.float32)
    name = onnx.load(case.model).graph.input[0].name
    np.savez(tmp_path / "x.npz", **{name: x})
    output = tmp_path / "small.onnx"
    goal = Goal(agreement=1.0, error=1e-9)
    report = deliver(case.model, output, data=tmp_path / "x.npz", goal=goal, run=CPU)
    assert report.plan is not None and not report.plan.split
    assert not output.exists()


def test_goals_exclude_each_other() -> None:
    with pytest.raises(PlanError, match="more than one goal"):
        Goal(energy=0.9, max_drop=0.1)


def test_without_samples_every_layer_keeps_the_same_share(case) -> None:
    moments = ox.collect(case.model, case.data)
    plan = ox.plan(case.model, moments, params=0.6, align=1, allow_unstable=True)
    small = ox.compress(case.model, plan, moments)
    assert parameters_of(small) <= 0.6 * parameters_of(onnx.load(case.model))


@pytest.mark.parametrize("kind", ["quantized", "overridable"])
def test_a_plan_says_which_weights_were_asked_for(case, tmp_path, kind: str) -> None:
    proto = onnx.load(case.model)
    weight = next(t for t in proto.graph.initializer if t.name == "w1")
    if kind == "overridable":
        proto.graph.input.add().CopyFrom(helper.make_tensor_value_info("w1", 1, weight.dims))
    else:
        value = numpy_helper.to_array(weight)
        scale = np.abs(value).max() / 127
        weight.CopyFrom(numpy_helper.from_array(np.round(value / scale).astype(np.int8), "w1"))
        proto.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
        proto.graph.node.insert(0, helper.make_node("DequantizeLinear", ["w1", "scale"], ["w"]))
        proto.graph.node[1].input[1] = "w"
    selection = ox.Selection(**{kind: True})
    moments = ox.collect(proto, case.data, selection=selection, run=CPU)
    plan = ox.plan(
        proto, moments, energy=0.9, align=1, allow_unstable=True, force=True, selection=selection
    )
    assert {"fc1", "fc2"} == {entry.name for entry in plan.split}
    plan.save(tmp_path / "plan.json")
    small = ox.compress(proto, ox.Plan.load(tmp_path / "plan.json"), moments)
    assert sum(node.op_type in ("MatMul", "Gemm") for node in small.graph.node) == 4

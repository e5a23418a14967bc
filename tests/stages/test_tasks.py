"""Plans as data: edited, damaged, applied."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxrank.errors import OnnxRankError, PlanError
from onnxrank.linalg.factorize import factorize
from onnxrank.results import REFIT, Plan
from onnxrank.stages.blocks import Block, sharing
from onnxrank.stages.budget import Budget
from onnxrank.stages.compress import compress
from onnxrank.stages.measure import unit_moment
from onnxrank.stages.tasks import permitted, refits, settled, tasks

from ..graph.build import differ, run
from .networks import D, data, named


@pytest.fixture(scope="module")
def ready():
    found = named("encoder")
    return found, found.planner().plan(Budget("params", 0.6))


def units(found):
    return {unit.name: unit for unit in found.measured.survey.units}


def edited(plan, name, /, **changes):
    assert name in {entry.name for entry in plan.units}
    entries = [replace(e, **changes) if e.name == name else e for e in plan.units]
    return replace(plan, units=tuple(entries))


def dense(plan):
    entries = [replace(e, form=None, rank=None, shares=(), scale=1.0) for e in plan.units]
    return replace(plan, units=tuple(entries))


def shared(plan, names, rank=7, **changes):
    for name in names:
        plan = edited(plan, name, form="shared", rank=rank, shares=tuple(names), **changes)
    return plan


QKV = ["b0.q", "b0.k", "b0.v"]


def test_every_entry_of_a_plan_is_a_task(ready):
    found, plan = ready
    made = list(tasks(found.model, units(found), plan, found.moments))
    names = [unit.name for task in made for unit in task.block.units]
    assert sorted(names) == sorted(entry.name for entry in plan.split)
    for task in made:
        for name, factors in task.block.split(task.plain).items():
            assert factors.parts[0].shape[2] == task.rank
            assert factors.product.shape[1:] == units(found)[name].sites[0].weight.shape[::-1] or (
                factors.product.shape[1:] == units(found)[name].sites[0].weight.shape
            )


def test_the_order_of_a_plan_does_not_matter(ready):
    found, plan = ready
    turned = replace(plan, units=plan.units[::-1])
    a, b = (
        compress(found.model, p, found.moments).SerializeToString(deterministic=True)
        for p in (plan, turned)
    )
    assert a == b


def test_a_saved_plan_is_the_same(ready, tmp_path):
    found, plan = ready
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    a, b = (
        compress(found.model, p, found.moments).SerializeToString(deterministic=True)
        for p in (plan, again)
    )
    assert a == b


def test_an_edited_plan_is_applied(ready, tmp_path):
    """By hand, in the file: another rank, a unit kept, and one more cut."""
    found, plan = ready
    start = edited(dense(plan), "b0.up", form="centered", rank=9)
    start.save(tmp_path / "plan.json")
    text = json.loads((tmp_path / "plan.json").read_text())
    for entry in text["units"]:
        if entry["name"] == "b0.up":
            entry["rank"] = 5
        if entry["name"] == "b1.down":
            entry.update(form="optimal", rank=3)
    (tmp_path / "plan.json").write_text(json.dumps(text))
    written = compress(found.model, Plan.load(tmp_path / "plan.json"), found.moments)
    shapes = {t.name: tuple(t.dims) for t in written.graph.initializer if "rank_" in t.name}
    assert shapes["b0.up/rank_in.weight"] == (D, 5)
    assert shapes["b1.down/rank_out.weight"] == (3, D)
    assert "b1.down/rank_bias" not in shapes and "b0.up/rank_bias" in shapes
    assert not any(name.startswith("b0.q") for name in shapes)


@pytest.mark.parametrize("form", ["centered", "optimal", "svd", "projection", "pair"])
def test_forms_of_a_pair(ready, form):
    found, plan = ready
    chosen = edited(dense(plan), "b0.up", form=form, rank=D, k_in=None, k_out=None)
    (task,) = tasks(found.model, units(found), chosen, found.moments)
    assert task.fixed == (form in ("svd", "projection"))
    assert task.shifts == (form in ("centered", "pair"))
    written = compress(found.model, chosen, found.moments)
    x = data((6, D), n=3)
    assert differ(run(found.proto, x), run(written, x)) < 1e-4  # of full rank


def test_shared_factors(ready):
    found, plan = ready
    chosen = shared(dense(plan), QKV)
    (task,) = tasks(found.model, units(found), chosen, found.moments)
    assert [unit.name for unit in task.block.units] == QKV
    parts = task.block.split(task.plain)
    firsts = {id(factors.parts[0]) for factors in parts.values()}
    assert len(firsts) == 1
    # Side by side they are the best pair of all three.
    weight = np.concatenate([Block.of(units(found)[n]).weight(found.model) for n in QKV], axis=2)
    moment = unit_moment(found.moments, units(found)["b0.q"])
    best = factorize(weight, moment, 7, "centered")
    got = np.concatenate([parts[n].product for n in QKV], axis=2)
    np.testing.assert_allclose(got, best.product, atol=1e-6)
    bias = np.concatenate([parts[n].bias for n in QKV], axis=1)
    np.testing.assert_allclose(bias, best.bias, atol=1e-6)
    written = compress(found.model, chosen, found.moments)
    onnx.checker.check_model(written)
    assert sum("rank_in.weight" in t.name for t in written.graph.initializer) == 1


def test_scales_favour_a_weight(ready):
    found, plan = ready
    lost = []
    for scale in (1.0, 100.0):
        chosen = edited(shared(dense(plan), QKV, rank=4), "b0.v", scale=scale)
        (task,) = tasks(found.model, units(found), chosen, found.moments)
        unit = units(found)["b0.v"]
        off = task.block.split(task.plain)["b0.v"].product - Block.of(unit).weight(found.model)
        lost.append(np.sum(off * (unit_moment(found.moments, unit).covariance @ off)))
    assert lost[1] < lost[0]


def test_who_could_share(ready):
    found, _ = ready
    groups = sharing(found.measured.survey.units)
    assert [[unit.name for unit in group] for group in groups] == [
        QKV,
        [name.replace("b0", "b1") for name in QKV],
    ]


WRONG = {
    "an unknown form": (lambda p: edited(p, "b0.up", form="banana", rank=3), "form 'banana'"),
    "a form of others": (lambda p: edited(p, "b0.up", form="channel", rank=3), "form 'channel'"),
    "no rank": (lambda p: edited(p, "b0.up", form="centered", rank=None), "rank None"),
    "rank 0": (lambda p: edited(p, "b0.up", form="centered", rank=0), "rank 0"),
    "too high a rank": (lambda p: edited(p, "b0.up", form="centered", rank=99), "in 1 to 24"),
    "an unknown unit": (
        lambda p: edited(p, "b0.up", form="centered", rank=3, name="gone"),
        "no unit 'gone'",
    ),
    "other sites": (
        lambda p: edited(p, "b0.up", form="centered", rank=3, sites=("b0.up", "b0.q")),
        "other sites",
    ),
    "one that shares alone": (
        lambda p: edited(p, "b0.k", form="shared", rank=3, shares=("b0.q", "b0.k")),
        "shares a factor with none",
    ),
    "shares without names": (
        lambda p: edited(p, "b0.k", form="shared", rank=3),
        "shares a factor with none",
    ),
    "ranks that differ": (
        lambda p: edited(shared(p, QKV), "b0.v", rank=5),
        "differ in rank",
    ),
    "another group": (
        lambda p: edited(shared(p, QKV), "b0.v", shares=("b0.q", "b0.v")),
        "differ in rank|with none",
    ),
    "another input": (lambda p: shared(p, ["b0.q", "b0.up"]), "another input"),
    "no scale": (lambda p: shared(p, QKV, scale=0.0), "another input"),
    "a scale that is none": (lambda p: shared(p, QKV, scale=float("nan")), "another input"),
    "a name twice": (lambda p: shared(p, ["b0.q", "b0.q"]), "another input"),
}


@pytest.mark.parametrize("name", WRONG)
def test_damaged_plans_are_refused(ready, name):
    found, plan = ready
    damage, message = WRONG[name]
    with pytest.raises(PlanError, match=message):
        compress(found.model, damage(dense(plan)), found.moments)


def test_a_plan_of_another_model(ready):
    found, plan = ready
    with pytest.raises(PlanError, match="another model"):
        compress(found.model, replace(plan, model_sha256="0" * 64), found.moments)


def test_leave_to_fit_anew(ready):
    found, plan = ready
    plain = dense(plan)
    free = [unit for unit in found.measured.survey.units if unit.name != "b1.up"]
    may = permitted(plain, found.model, free, units(found))
    names = {entry.name for entry in may.units if entry.form == REFIT}
    assert names == {unit.name for unit in free}
    assert not may.split
    assert [t.block.name for t in refits(found.model, units(found), may)] == [u.name for u in free]
    assert settled(may, {"b0.q"}) == edited(plain, "b0.q", form=REFIT)
    assert settled(may, ()) == plain
    # Without data there is nothing to fit to: they stay as they are.
    cut = edited(may, "b1.up", form="centered", rank=4)
    written = compress(found.model, cut, found.moments)
    assert not any("refitted" in t.name for t in written.graph.initializer)


def test_what_cannot_be_fitted_anew_is_refused(ready):
    found, plan = ready
    unit = units(found)["b0.q"]
    tied = {**units(found), "b0.q": replace(unit, tied=True)}
    with pytest.raises(PlanError, match="cannot be fitted anew"):
        refits(found.model, tied, edited(dense(plan), "b0.q", form=REFIT))
    with pytest.raises(PlanError, match="no unit 'gone'"):
        refits(found.model, units(found), edited(dense(plan), "b0.q", form=REFIT, name="gone"))


def test_a_held_unit_is_not_split_by_a_plan():
    """As its node says, whatever a file asks for."""
    from ..graph.variety import VARIETY
    from .networks import setting

    proto, feeds = VARIETY["lstm"]()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "n"
    found = setting(proto, [{"x": feeds["x"]} for _ in range(4)])
    plan = found.planner().plan(Budget("params", 1.0))
    held = next(e for e in plan.units if "recurrent" in e.name)
    assert held.kept
    with pytest.raises(OnnxRankError, match="cannot be split"):
        compress(found.model, edited(plan, held.name, form="optimal", rank=1), found.moments)

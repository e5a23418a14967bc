"""Plans keep what they promise, counted on the model that is written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.errors import PlanError
from onnxrank.graph.cost import model_macs, parameters_of, stored_bytes
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.stages.budget import Budget
from onnxrank.stages.compress import compress
from onnxrank.stages.goal import Goal, Manner, meet
from onnxrank.stages.survey import silent
from onnxrank.stages.uniform import uniform
from onnxrank.stages.work import rows_of_data

from .networks import NETWORKS, RUN, named

KINDS = ["params", "macs", "size"]


@pytest.fixture(scope="module", params=NETWORKS)
def ready(request):
    """A setting, and its planner, which is dear."""
    found = named(request.param)
    return found, found.planner()


def written_cost(found, proto, kind):
    if kind == "params":
        return parameters_of(proto)
    model = load(proto)
    if kind == "size":
        return stored_bytes(model)
    sites, _ = find_sites(model)
    return model_macs(sites, rows_of_data(model, found.source, RUN))


@pytest.mark.parametrize("kind", KINDS)
def test_budgets_are_kept(ready, kind):
    found, planner = ready
    whole = written_cost(found, found.proto, kind)
    reach = planner.reach(kind)
    assert 0 < reach < 0.9
    errors = []
    for part in (0.0, 0.3, 0.7, 0.95, 1.0):
        share = reach + part * (1 - reach)
        plan = planner.plan(Budget(kind, share))
        if plan.split:
            written = compress(found.model, plan, found.moments)
            assert written_cost(found, written, kind) <= share * whole + 1e-6
        assert 0 <= plan.bound <= plan.predicted_error
        errors.append(plan.predicted_error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0 and not plan.split


def test_budgets_are_kept_by_compensated_models(ready):
    found, planner = ready
    refitted = 0
    for kind in KINDS:
        share = (1 + planner.reach(kind)) / 2
        met = meet(
            Goal(budget=Budget(kind, share)),
            Manner(align=1, allow_unstable=True),
            found.measured,
            found.rows,
            found.source,
            None,
            RUN,
            progress=silent,
        )
        written = compress(found.model, met.plan, found.moments, met.factors)
        whole = written_cost(found, found.proto, kind)
        assert written_cost(found, written, kind) <= share * whole
        refitted += sum(entry.form == "refit" for entry in met.plan.units)
    if any(e.form is None for e in planner.plan(Budget("params", 1.0)).units):
        assert refitted


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_out_of_reach_says_what_is_not(ready, kind):
    found, planner = ready
    with pytest.raises(PlanError, match="out of reach") as caught:
        planner.plan(Budget(kind, planner.reach(kind) * 0.9))
    share = float(re.findall(r"reach ([\d.e-]+)", caught.value.hint)[0])
    assert planner.plan(Budget(kind, share)).split


@pytest.mark.parametrize("kind", KINDS)
def test_without_samples_budgets_are_kept_too(ready, kind):
    found, _ = ready
    whole = written_cost(found, found.proto, kind)
    with pytest.raises(PlanError, match="out of reach") as caught:
        uniform(found.measured, Budget(kind, 0.01), found.rows, 1, True)
    reach = float(re.findall(r"reach ([\d.e-]+)", caught.value.hint)[0])
    for share in (reach, (1 + reach) / 2):
        plan = uniform(found.measured, Budget(kind, share), found.rows, 1, True)
        written = compress(found.model, plan, found.moments)
        assert written_cost(found, written, kind) <= share * whole


def test_kinds_give_other_plans(ready):
    _, planner = ready
    plans = {
        kind: planner.plan(Budget(kind, (1 + planner.reach(kind)) / 2)).split for kind in KINDS
    }
    assert all(plans.values())


def test_unknown_kinds(ready):
    with pytest.raises(PlanError, match="unknown budget 'watts'"):
        ready[1].plan(Budget("watts", 0.5))


@settings(deadline=None, max_examples=15)
@given(st.floats(0.01, 1))
def test_any_share_of_an_mlp(share):
    found = cached()
    found_setting, planner = found
    if share < planner.reach("params"):
        return
    written = compress(
        found_setting.model, planner.plan(Budget("params", share)), found_setting.moments
    )
    assert parameters_of(written) <= share * parameters_of(found_setting.proto)


_KEPT: list = []


def cached():
    if not _KEPT:
        found = named("mlp without biases")
        _KEPT.append((found, found.planner()))
    return _KEPT[0]

"""Plans by measured time: single maps as they are in the model, and a search that holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxrank.errors import PlanError
from onnxrank.graph.alone import alone
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.scopes import MAIN
from onnxrank.runtime.session import Run, execute, open_session
from onnxrank.stages.budget import Budget
from onnxrank.stages.forms import FORMS
from onnxrank.stages.latency import LatencyCosts, within
from onnxrank.stages.uniform import uniform

from ..graph.corpus import FIXTURES, manifest, runner
from .networks import NETWORKS, named


def exposed(model, names, feeds):
    """Values of tensors of the main graph when the model runs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.document)
    known = {v.name for v in (*proto.graph.output, *proto.graph.input)}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in sorted(names - known))
    wanted = sorted(names - feeds.keys())
    return {**feeds, **dict(zip(wanted, runner(model)(proto, feeds, wanted), strict=True))}


GRAPHS = [e for e in manifest() if e["runs"] and e["expect"].get("split")][::6]


@pytest.mark.parametrize("entry", GRAPHS, ids=lambda entry: entry["file"])
def test_a_map_alone_gives_what_it_gives_in_the_model(entry):
    model = load(FIXTURES / entry["file"])
    feeds = dict(np.load(FIXTURES / entry["input"]))
    sites = [s for s in find_sites(model)[0] if s.scope == MAIN and not s.hold]
    if not sites:
        return
    seen = exposed(model, {t for s in sites for t in (s.view.tensor, s.output)}, feeds)
    for site in sites:
        read, made = seen[site.view.tensor], seen[site.output]
        proto = alone(model, site, read.shape)
        if proto is None:  # a state, a mask or a bias is computed at run time
            assert len(model.index.producers[MAIN][site.output].input) > 2
            continue
        session = open_session(proto, None, Run(provider="cpu"))
        (got,) = execute(session, [site.output], {site.view.tensor: read}, where="")
        np.testing.assert_allclose(
            np.asarray(got, np.float64), np.asarray(made, np.float64), rtol=1e-2, atol=1e-3
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_times_of_a_network(name):
    found = named(name)
    planner = found.planner()
    costs = planner.costs("latency")
    assert isinstance(costs, LatencyCosts)
    assert costs.whole > 0
    for unit in planner.free:
        dense = costs.dense(unit)
        assert 0 < dense < costs.whole
        for form in FORMS.values():
            most = form.full(unit.sites[0])
            taken = [costs.cut(unit, form, rank) for rank in range(1, most + 1)]
            assert taken == sorted(taken)
    assert sum(map(costs.dense, planner.free)) <= costs.whole


def test_a_latency_needs_samples():
    found = named(next(iter(NETWORKS)))
    with pytest.raises(PlanError, match="running samples"):
        uniform(found.measured, Budget("latency", 0.5), {})


@given(
    fixed=st.floats(0, 0.6),
    bent=st.floats(0.5, 2),
    share=st.floats(0.05, 1),
    reach=st.floats(0.01, 0.5),
)
def test_what_is_found_holds_as_measured(fixed, bent, share, reach):
    """Real time is `fixed` plus what was asked for, bent."""

    def measure(asked: float) -> float:
        return fixed + (1 - fixed) * asked**bent

    asked: list[float] = []

    def plan(value: float) -> float:
        assert reach <= value <= 1
        asked.append(value)
        return value

    if measure(reach) > share:
        with pytest.raises(PlanError, match="out of reach"):
            within(plan, reach, share, measure)
        return
    found = within(plan, reach, share, measure)
    assert measure(found) <= share
    assert len(asked) <= 5
    assert found == max(value for value in asked if measure(value) <= share)


def test_a_noisy_clock_ends():
    clock = iter([0.9, 0.4, 0.7, 0.45, 0.6, 0.3])
    assert within(lambda share: share, 0.1, 0.5, lambda _: next(clock)) > 0.1

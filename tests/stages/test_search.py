"""A search keeps its tolerance on the samples that decide, or says that nothing does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxrank.errors import PlanError
from onnxrank.runtime.data import holdout, open_data
from onnxrank.stages.budget import Budget
from onnxrank.stages.compress import compress
from onnxrank.stages.goal import Goal, Manner, fit, meet, part_trial
from onnxrank.stages.judge import Judge, Loss
from onnxrank.stages.search import search
from onnxrank.stages.survey import silent

from ..graph.build import run
from .networks import CLASSES, RUN, D, data, mlp, named, setting

LOOSE = Manner(align=1, allow_unstable=True)


@pytest.fixture(scope="module")
def ready():
    found = named("mlp")
    return found, found.planner()


def source_of(found, samples):
    return open_data(samples, found.model.inputs, RUN)


def searched(found, planner, tolerance, first, second, labelled=True, **more):
    judges = [Judge(planner.replay, s.batches(), labelled=labelled) for s in (first, second)]
    return search(
        planner,
        lambda plan: fit(planner, LOOSE, plan, found.source, RUN, silent),
        *judges,
        tolerance,
        **more,
    )


def agreement(found, candidate, samples):
    small = compress(found.model, candidate.plan, found.moments, candidate.factors)
    a, b = (run(p, samples)[0].argmax(axis=1) for p in (found.proto, small))
    return float(np.mean(a == b))


@pytest.mark.parametrize("allowed", [0.02, 0.1, 0.3])
def test_the_tolerance_holds_on_the_samples_that_decide(ready, allowed):
    found, planner = ready
    first, second = data((D,), n=160, seed=21), data((D,), n=160, seed=22)
    answer = searched(
        found, planner, lambda _: allowed, source_of(found, first), source_of(found, second)
    )
    assert answer.chosen is not None
    assert 1 - agreement(found, answer.chosen, second) <= allowed + 1e-9
    assert 1 - agreement(found, answer.chosen, first) == pytest.approx(answer.chosen.loss.value)
    points = answer.frontier.points
    assert [p.size for p in points] == sorted(p.size for p in points)
    (chosen,) = [p for p in points if p.chosen]
    assert chosen.size == answer.chosen.share and chosen.measured <= allowed
    assert answer.frontier.limit == allowed


def test_looser_tolerances_give_smaller_models(ready):
    found, planner = ready
    first, second = (source_of(found, data((D,), n=160, seed=k)) for k in (21, 22))
    shares = [
        searched(found, planner, lambda _, a=a: a, first, second).chosen.share
        for a in (0.05, 0.2, 0.5)
    ]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]


def test_what_fails_where_it_counts_is_not_taken(ready):
    """The samples that decide are of another kind, on which every plan fails."""
    found, planner = ready
    first = source_of(found, data((D,), n=96, seed=21))
    other = np.random.default_rng(3).standard_normal((96, D)).astype(np.float32)
    answer = searched(found, planner, lambda _: 0.0, first, source_of(found, {"x": 3 * other}))
    assert answer.chosen is None
    assert answer.frontier.points and not any(p.chosen for p in answer.frontier.points)


def test_progress_shows_the_frontier_as_it_is_found(ready):
    found, planner = ready
    first, second = (source_of(found, data((D,), n=96, seed=k)) for k in (21, 22))
    told = []
    answer = searched(
        found, planner, lambda _: 0.3, first, second, progress=lambda *args: told.append(args)
    )
    lines = [what for _, _, what in told if what != "searching"]
    assert len(lines) == len(answer.frontier.points)
    assert all("% of the params: " in line and "change class" in line for line in lines)
    assert all(done <= total for done, total, _ in told)


def test_every_kind_of_size(ready):
    found, planner = ready
    first, second = (source_of(found, data((D,), n=96, seed=k)) for k in (21, 22))
    answer = searched(found, planner, lambda _: 0.3, first, second, kind="macs")
    assert answer.chosen is not None and "multiply" in answer.frontier.size


def test_random_weights_on_rows_of_full_rank_hold_nothing():
    rng = np.random.default_rng(0)
    found = setting(
        mlp(decay=0.0, depth=3), {"x": rng.standard_normal((1024, D)).astype(np.float32)}
    )
    source, trial = part_trial(found.source, None)
    found = replace(found, source=source)
    met = meet(
        Goal(agreement=0.99, error=0.01),
        LOOSE,
        found.measured,
        found.rows,
        source,
        trial,
        RUN,
        progress=silent,
    )
    assert not met.plan.split and not met.factors
    assert met.note == "nothing to gain at this tolerance"
    assert {entry.kept for entry in met.plan.units} == {met.note}
    assert {entry.form for entry in met.plan.units} == {None}
    assert met.frontier is not None and met.frontier.points


def test_nothing_that_may_be_cut():
    """Every rank is unsettled: there is nothing to look at."""
    found = named("mlp", n=64)
    ranks = {
        name: replace(r, stable=False, rows_wanted=9) for name, r in found.measured.ranks.items()
    }
    measured = replace(found.measured, ranks=ranks)
    source, trial = part_trial(found.source, None)
    met = meet(Goal(), Manner(), measured, found.rows, source, trial, RUN, progress=silent)
    assert not met.plan.split and met.frontier is not None and not met.frontier.points
    with pytest.raises(PlanError, match="out of reach.*reach 1"):
        meet(
            Goal(budget=Budget("params", 0.5)),
            Manner(),
            measured,
            found.rows,
            source,
            None,
            RUN,
            progress=silent,
        )


def test_samples_are_parted_once():
    found = named("mlp")
    x = found.source
    source, (first, second) = part_trial(x, None)
    parts = [
        np.concatenate([b.feeds["x"] for b in part.batches()]) for part in (source, first, second)
    ]
    assert sum(map(len, parts)) == 512
    assert len(np.unique(np.concatenate(parts), axis=0)) == 512
    assert len(parts[0]) > 300 and min(len(p) for p in parts) >= 32
    given = source_of(found, data((D,), n=100, seed=5))
    source, (first, second) = part_trial(x, given)
    assert source is x
    assert first.samples + second.samples == 100
    with pytest.raises(PlanError, match="too few samples"):
        part_trial(source_of(found, data((D,), n=1)), None)


def judged(found, planner, samples, labelled, share=0.5):
    judge = Judge(planner.replay, source_of(found, samples).batches(), labelled=labelled)
    plan = planner.plan(Budget("params", share))
    factors = fit(planner, LOOSE, plan, found.source, RUN, silent)
    from onnxrank.stages.compensate import site_feeds

    units = [unit for unit in planner.free if unit.name in factors]
    small = compress(found.model, plan, found.moments, factors)
    return judge, judge.loss(site_feeds(planner.replay, units, factors)), small


def test_losses_are_those_of_the_written_model(ready):
    found, planner = ready
    samples = data((D,), n=96, seed=31)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 96)
    judge, loss, small = judged(found, planner, {**samples, "__label__": labels}, True)
    before, after = (run(p, samples)[0].argmax(axis=1) for p in (found.proto, small))
    lost = np.mean(before == labels) - np.mean(after == labels)
    assert loss.kind == "accuracy" and loss.value == pytest.approx(lost)
    assert judge.samples == 96
    _, loss, small = judged(found, planner, {**samples, "__label__": labels}, False)
    assert loss == Loss("agreement", pytest.approx(1 - np.mean(before == after)))
    judge, loss, _ = judged(found, planner, samples, True)
    assert loss.kind == "agreement"
    assert judge.loss({}) == Loss("agreement", 0.0)


def test_errors_where_there_are_no_classes():
    """An output of tokens by features is no classifier's."""
    found = named("encoder")
    found.proto.graph.output[0].name = found.proto.graph.node[-3].output[0]
    found.proto.graph.output[0].ClearField("type")
    found = setting(found.proto, data((6, D), n=128))
    planner = found.planner()
    samples = data((6, D), n=32, seed=31)
    _, loss, small = judged(found, planner, samples, True, 0.7)
    before, after = (run(p, samples)[0].astype(np.float64) for p in (found.proto, small))
    assert loss.kind == "error"
    error = np.linalg.norm(before - after) / np.linalg.norm(before)
    assert loss.value == pytest.approx(error, rel=1e-3)


def test_tolerances():
    accuracy, agree, error = (Loss(kind, 0.0) for kind in ("accuracy", "agreement", "error"))
    goal = Goal(agreement=0.98, error=0.05)
    assert goal.searches and goal.tolerance(error) == 0.05
    assert goal.tolerance(agree) == pytest.approx(0.02)
    drop = Goal(max_drop=0.003)
    assert drop.searches
    assert {drop.tolerance(loss) for loss in (accuracy, agree, error)} == {0.003}
    assert not Goal(energy=0.9).searches and not Goal(budget=Budget("macs", 1)).searches


def test_holdout_is_the_same_every_time():
    found = named("mlp")
    first, second = (holdout(found.source)[1] for _ in range(2))
    a, b = (np.concatenate([x.feeds["x"] for x in s.batches()]) for s in (first, second))
    assert np.array_equal(a, b)

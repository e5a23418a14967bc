"""Compensation: deep chains lose less, what must stay as it is does, and folds decide refits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.override import override
from onnxrank.linalg.drift import fitted
from onnxrank.linalg.factorize import Factors
from onnxrank.linalg.gram import SecondMoment
from onnxrank.results import REFIT
from onnxrank.runtime.data import open_data
from onnxrank.runtime.replay import Replay
from onnxrank.runtime.session import Run
from onnxrank.stages.budget import Budget, free_units
from onnxrank.stages.compensate import Stream, _drifts, compensate, site_feeds
from onnxrank.stages.compress import compress
from onnxrank.stages.goal import Goal, Manner, meet
from onnxrank.stages.survey import silent
from onnxrank.stages.tasks import refits, settled, tasks

from ..graph.build import differ, info, make, node, noise, run, tensors
from .networks import NETWORKS, RUN, TOKENS, D, data, encoder, mlp, named, setting

LOOSE = Manner(align=1, allow_unstable=True)


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def met(found, share, **manner):
    return meet(
        Goal(budget=Budget("params", share)),
        replace(LOOSE, **manner),
        found.measured,
        found.rows,
        found.source,
        None,
        RUN,
        progress=silent,
    )


def written(found, answer):
    return compress(found.model, answer.plan, found.moments, answer.factors)


@pytest.mark.parametrize("name", NETWORKS)
def test_compensated_models_lose_less_on_rows_held_out(name):
    found = named(name)
    share = 0.55 if name != "encoder" else 0.7
    held = data(NETWORKS[name][1], n=64, seed=99)
    original = run(found.proto, held)[0]
    plain, fitted_ = (
        run(written(found, met(found, share, compensate=c)), held)[0] for c in (False, True)
    )
    most = 0.97 if name == "encoder" else 0.95
    assert relative(original, fitted_) < most * relative(original, plain)


def test_the_replayed_model_is_the_one_that_is_written():
    """Also where a unit's shift or its refitted weight goes with it."""
    found = named("encoder")
    answer = met(found, 0.6)
    assert any(entry.form == REFIT for entry in answer.plan.units)
    free = free_units(found.measured, True)
    replay = Replay(override(found.model, [s for u in free for s in u.sites]), RUN)
    fed = site_feeds(replay, [u for u in free if u.name in answer.factors], answer.factors)
    x = data((6, D), n=5, seed=4)
    got = replay.finish(1, replay.start(x), fed)["y"]
    assert differ([got], run(written(found, answer), x)) < 1e-5


def chosen_tasks(found, plan):
    units = {unit.name: unit for unit in found.measured.survey.units}
    return [*tasks(found.model, units, plan, found.moments), *refits(found.model, units, plan)]


def replayed(found):
    free = free_units(found.measured, True)
    return Replay(override(found.model, [s for u in free for s in u.sites]), RUN)


def test_it_is_what_least_squares_on_the_rows_would_be():
    """The second layer of a chain, fitted by hand."""
    found = setting(mlp(depth=2), data((D,)))
    plan = found.planner().plan(Budget("params", 0.5))
    by_name = {entry.name: entry for entry in plan.units}
    cut = {"fc0": 4, "fc1": 6}
    plan = replace(
        plan,
        units=tuple(
            replace(entry, form="centered", rank=cut[name], shares=()) if name in cut else
            replace(entry, form=None, rank=None)
            for name, entry in by_name.items()
        ),
    )  # fmt: skip
    batches = list(found.source.batches())
    factors = compensate(found.model, replayed(found), chosen_tasks(found, plan), batches, RUN)
    # By numpy, in float64, from the original's weights.
    weights = {k: v.astype(np.float64) for k, v in tensors(found.proto).items()}
    x = np.concatenate([b.feeds["x"] for b in batches]).astype(np.float64)
    first = factors["fc0"]
    moment = SecondMoment.of(x[None])
    assert np.allclose(
        first.product @ np.ones((D, 1)),
        centred(weights["fc0.w"], moment, 4).product @ np.ones((D, 1)),
        atol=1e-4,
    )
    before = np.tanh(x @ weights["fc0.w"] + weights["fc0.b"])
    after = np.tanh(x @ first.product[0] + first.bias[0] + weights["fc0.b"])
    wanted = before @ weights["fc1.w"]
    second = factors["fc1"]
    mine = np.square(wanted - after @ second.product[0] - second.bias[0]).sum()
    ones = np.column_stack([after, np.ones(len(after))])
    solution = np.linalg.lstsq(ones, wanted, rcond=None)[0]
    singular = np.linalg.svd(ones @ solution - (ones @ solution).mean(axis=0), compute_uv=False)
    best = np.square(wanted - ones @ solution).sum() + np.square(singular[6:]).sum()
    assert best - 1e-3 <= mine < 1.1 * best  # all that is between is the ridge
    kept = centred(weights["fc1.w"], SecondMoment.of(after[None]), 6)
    assert mine < np.square(wanted - after @ kept.product[0] - kept.bias[0]).sum()


def centred(weight, moment, rank):
    from onnxrank.linalg.factorize import factorize

    return factorize(weight[None], moment, rank, "centered")


def test_the_last_map_of_a_block_pulls_its_stream_back():
    """Compensated with the stream, the sum is nearer to the original's than without."""
    found = setting(encoder(1), data((6, D), n=512))
    plan = met(found, 0.65, compensate=True).plan
    tasks_ = chosen_tasks(found, plan)
    batches = list(found.source.batches())
    factors = compensate(found.model, replayed(found), tasks_, batches, RUN)
    down = next(t for t in tasks_ if t.block.name == "b0.down")
    site = down.block.site
    replay = replayed(found)
    streams = [Stream(b, v, v) for b in batches for v in [replay.start(b.feeds)]]
    for k, segment in enumerate(replay.cut.segments[1:], 1):
        if site.name in segment.sites:
            break
        units = [u for t in tasks_ for u in t.block.units if u.name in factors]
        for one in streams:
            before = one.compressed
            one.original = replay.advance(k, one.original)
            one.compressed = replay.advance(k, before, site_feeds(replay, units, factors))
    from onnxrank.graph.residual import output_layout, stream

    added = (stream(found.model, site), output_layout(found.model, site))
    assert added[0] in streams[0].original
    drifts = _drifts(site, added, streams, RUN)
    assert drifts is not None and drifts[0].pull is not None
    assert np.abs(drifts[0].pull.covariance).max() > 0


def test_what_is_kept_for_a_reason_stays_byte_for_byte():
    """Unsettled, held or tied units are neither cut nor fitted anew."""
    found = named("mlp")
    ranks = dict(found.measured.ranks)
    ranks["fc2"] = replace(ranks["fc2"], stable=False, rows_wanted=1000)
    found = replace(found, measured=replace(found.measured, ranks=ranks))
    planner = found.planner(allow_unstable=False)
    assert "fc2" not in {unit.name for unit in planner.free}
    answer = met(found, (1 + planner.reach("params")) / 2, allow_unstable=False)
    assert "fc2" not in answer.factors
    entry = next(e for e in answer.plan.units if e.name == "fc2")
    assert entry.form is None and "more rows" in entry.kept
    small = written(found, answer)
    for name in ("fc2.w", "fc2.b"):
        one, two = (
            next(t for t in p.graph.initializer if t.name == name) for p in (found.proto, small)
        )
        assert one.SerializeToString() == two.SerializeToString()
    nodes = {n.name: n.SerializeToString() for n in small.graph.node}
    assert (
        nodes["fc2"]
        == next(n for n in found.proto.graph.node if n.name == "fc2").SerializeToString()
    )


def test_weights_of_several_nodes_are_cut_but_not_fitted():
    proto = make(
        [
            node("MatMul", ["x", "w"], ["h"], name="first"),
            node("Tanh", ["h"], ["t"]),
            node("MatMul", ["t", "w"], ["s"], name="second"),
            node("MatMul", ["s", "v"], ["y"], name="last"),
        ],
        {"x": ("n", D)},
        ["y"],
        {"w": noise(D, D) / 5, "v": noise(D, D, seed=2) / 5},
    )
    found = setting(proto, data((D,)))
    plan = found.planner().plan(Budget("params", 1.0))
    entries = tuple(
        replace(e, form="centered", rank=5) if e.name == "first" else e for e in plan.units
    )
    plan = replace(plan, units=entries)
    tasks_ = chosen_tasks(found, plan)
    assert [(t.block.name, t.dense, t.follows) for t in tasks_] == [
        ("first", False, False),
        ("last", True, True),
    ]
    factors = compensate(found.model, replayed(found), tasks_, list(found.source.batches()), RUN)
    assert factors["first"] is not None
    assert np.array_equal(factors["first"].product, tasks_[0].plain.product)
    # The last has no bias to take a shift, so that it gets none.
    assert factors["last"].bias is None and len(factors["last"].parts) == 1
    small = compress(found.model, settled(plan, factors), found.moments, factors)
    held = data((D,), n=64, seed=9)
    plain = compress(found.model, settled(plan, ()), found.moments)
    original = run(proto, held)[0]
    assert relative(original, run(small, held)[0]) < relative(original, run(plain, held)[0])
    assert len(small.graph.initializer) == len(plain.graph.initializer)


def test_few_noisy_rows_leave_dense_weights_alone():
    found = setting(mlp(), data((D,), n=32, rank=D, noise=1.0))
    answer = met(found, 0.8)
    assert answer.plan.split
    assert not any(entry.form == REFIT for entry in answer.plan.units)


def test_without_a_split_nothing_is_fitted():
    found = named("mlp")
    answer = met(found, 1.0)
    assert not answer.plan.split and not answer.factors


def test_rows_that_a_mask_leaves_out_do_not_count():
    """Padding is filled with what would ruin a fit."""
    proto = encoder(1)
    proto.graph.input.extend(make([], {"mask": ("n", 6)}, []).graph.input)
    samples = data((6, D), n=256)
    mask = np.ones((256, 6), np.float32)
    mask[:, 4:] = 0
    padded = {"x": np.where(mask[..., None] > 0, samples["x"], 1e3).astype(np.float32)}
    how = Run(provider="cpu", threads=1, batch_size=16, mask="mask")
    found = setting(proto, {**padded, "mask": mask}, how)
    first = next(s for s in find_sites(found.model)[0] if s.name == "b0.q")
    replay = replayed(found)
    streams = [Stream(b, v, v) for b in found.source.batches() for v in [replay.start(b.feeds)]]
    drifts = _drifts(first, None, streams, how)
    assert drifts is not None
    assert sum(fold.moved.n for fold in drifts) == 256 * 4


def test_many_rows_are_drawn_from(monkeypatch):
    """Each fold gives its share, the same rows every time."""
    monkeypatch.setattr("onnxrank.stages.compensate._ENOUGH", 4)
    monkeypatch.setattr("onnxrank.stages.compensate._PLENTY", 4)
    found = named("mlp")
    site = found.measured.survey.sites[1]
    replay = replayed(found)
    streams = [Stream(b, v, v) for b in found.source.batches() for v in [replay.start(b.feeds)]]
    for one in streams:
        one.original = one.compressed = replay.advance(1, one.original)
    twice = [_drifts(site, None, streams, RUN) for _ in range(2)]
    assert twice[0] is not None and twice[1] is not None
    total = sum(fold.moved.n for fold in twice[0])
    assert 4 * D <= total < 2 * 4 * D
    assert np.array_equal(twice[0][0].moved.gram, twice[1][0].moved.gram)


def test_padding_does_not_count_for_enough(monkeypatch):
    """Rows are drawn from those that are data, and as many as are wanted of them."""
    monkeypatch.setattr("onnxrank.stages.compensate._ENOUGH", 8)
    monkeypatch.setattr("onnxrank.stages.compensate._PLENTY", 8)
    rng = np.random.default_rng(0)
    mask = np.zeros((64, TOKENS), np.int64)
    mask[:, :2] = 1
    graph = make(
        [
            node("Mul", ["x", "scale"], ["h"]),
            node("MatMul", ["h", "w"], ["y"], name="map"),
            node("Cast", ["mask"], ["m"], to=onnx.TensorProto.FLOAT),
        ],
        {"x": ("n", TOKENS, D), "mask": info("mask", ("n", TOKENS), onnx.TensorProto.INT64)},
        ["y", "m"],
        {"w": rng.standard_normal((D, D)).astype(np.float32), "scale": np.ones(1, np.float32)},
    )
    model, run = load(graph), replace(RUN, mask="mask")
    samples = {"x": rng.standard_normal((64, TOKENS, D)).astype(np.float32), "mask": mask}
    site = find_sites(model)[0][0]
    replay = Replay(override(model, [site]), run)
    batches = open_data(samples, model.inputs, run).batches()
    streams = [Stream(b, v, v) for b in batches for v in [replay.start(b.feeds)]]
    drifts = _drifts(site, None, streams, run)
    assert drifts is not None
    assert sum(fold.moved.n for fold in drifts) == mask.sum()  # 8 rows a dimension are more


def test_a_drift_needs_two_folds():
    found = setting(mlp(), data((D,), n=16))
    one_fold = [b for b in open_data(data((D,), n=512), found.model.inputs, RUN).batches()]
    one_fold = [b for b in one_fold if b.fold == 0]
    replay = replayed(found)
    streams = [Stream(b, v, v) for b in one_fold for v in [replay.start(b.feeds)]]
    assert _drifts(found.measured.survey.sites[0], None, streams, RUN) is None


def test_patches_in_pieces_are_the_same_moments(monkeypatch):
    found = named("convnet")
    replay = replayed(found)
    streams = [
        Stream(b, v, v) for b in list(found.source.batches())[:4] for v in [replay.start(b.feeds)]
    ]
    site = next(s for s in found.measured.survey.sites if s.name == "stem")
    whole = _drifts(site, None, streams, RUN)
    monkeypatch.setattr("onnxrank.stages.compensate._PIECE", 4 * site.d_in * 50)
    pieces = _drifts(site, None, streams, RUN)
    assert whole is not None and pieces is not None
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a.cross.cross, b.cross.cross, rtol=1e-4, atol=1e-2)
        assert a.moved.n == b.moved.n
    same = fitted(np.eye(site.d_in)[None], whole[0], site.d_in, None, lambda w, g, r: Factors((w,)))
    assert np.abs(same.bias).max() < 1e-5

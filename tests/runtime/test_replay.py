"""Segments run one after the other against the whole model in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper

from onnxrank.errors import ModelError
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.override import override
from onnxrank.runtime.replay import Replay, size
from onnxrank.runtime.session import Run

from ..graph.build import const, differ, info, make, node, noise, random_pair, run
from ..graph.networks import feed, networks
from ..graph.variety import VARIETY
from .test_precision import bfloat16_model, samples

CPU = Run(provider="cpu", threads=1)
ROUGH = {"float16": 2e-2}


def opened(proto, folder=None):
    model = load(proto, folder)
    sites = [s for s in find_sites(model)[0] if not s.hold]
    return model, sites, Replay(override(model, sites), CPU)


def outputs(proto):
    return [o.name for o in proto.graph.output]


def check(proto, feeds, tolerance=1e-5):
    """Plain, piece by piece with nothing kept too long, and with other weights."""
    model, sites, replay = opened(proto)
    values = start = replay.start(feeds)
    got = replay.finish(1, values)
    expected = dict(zip(outputs(proto), run(proto, feeds), strict=True))
    assert list(got) == outputs(proto)
    assert differ(expected, got) < tolerance
    for k in range(1, len(replay)):
        before = dict(values)
        after = replay.advance(k, values)
        assert values.keys() == before.keys() and all(values[n] is before[n] for n in values)
        assert all(replay.cut.last[name] > k for name in after)
        values = after
    assert set(values) == set(outputs(proto))
    chosen = {}
    for site in sites:
        pair = random_pair(site, shift=site.centers)
        chosen.update(replay.overridden.feeds(site.name, pair.product, pair.bias))
    fed = replay.finish(1, start, chosen)
    expected = run(replay.overridden.proto, {**feeds, **chosen}, outputs(proto))
    assert differ(dict(zip(outputs(proto), expected, strict=True)), fed) < tolerance
    assert differ(got, replay.finish(1, start)) == 0


@pytest.mark.parametrize("name", VARIETY)
def test_every_kind_of_site(name):
    check(*VARIETY[name](), ROUGH.get(name, 1e-5))


@settings(deadline=None, max_examples=25)
@given(networks())
def test_any_network(proto):
    feeds = feed(proto)
    check(proto, feeds)


def test_scalars_integers_and_booleans_between_layers():
    model = make(
        [
            node("MatMul", ["x", "a"], ["h"], name="first"),
            node("ReduceSum", ["h"], ["s"], keepdims=0),
            node("Cast", ["h"], ["i"], to=TensorProto.INT64),
            node("Greater", ["h", "s"], ["g"]),
            node("MatMul", ["h", "b"], ["t"], name="second"),
            node("Where", ["g", "t", "s"], ["w"]),
            node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            node("Add", ["w", "f"], ["u"]),
            node("MatMul", ["u", "c"], ["y"], name="third"),
        ],
        {"x": ("n", 4)},
        ["y", "g", "s", "i"],
        {name: noise(4, 4, seed=k) for k, name in enumerate("abc")},
    )
    check(model, {"x": noise(3, 4)})
    _, _, replay = opened(model)
    after = replay.advance(1, replay.start({"x": noise(3, 4)}))
    kinds = {name: (value.dtype.kind, value.ndim) for name, value in after.items()}
    expected = {"h": ("f", 2), "s": ("f", 0), "i": ("i", 2), "g": ("b", 2), "f": ("f", 2)}
    assert kinds == expected


def test_a_frontier_in_half_precision():
    model = make(
        [
            node("Cast", ["x"], ["c"], to=TensorProto.FLOAT16),
            node("MatMul", ["c", "a"], ["h"], name="first"),
            node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
            node("MatMul", ["f", "b"], ["t"], name="second"),
            node("Cast", ["t"], ["u"], to=TensorProto.FLOAT16),
            node("Add", ["u", "h"], ["y"]),
        ],
        {"x": ("n", 4)},
        ["y"],
        {"a": noise(4, 4, dtype=np.float16), "b": noise(4, 4, seed=2)},
    )
    check(model, {"x": noise(3, 4)}, 2e-2)


def test_bfloat16():
    proto, x = bfloat16_model(), samples()[:5]
    _, sites, replay = opened(proto)
    found = replay.finish(1, replay.start({"x": x}))["y"].astype(np.float32)
    w1, b1, w2 = (onnx.numpy_helper.to_array(t).astype(np.float32) for t in proto.graph.initializer)
    expected = (x.astype(np.float32) @ w1 + b1) @ w2
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    shift = {"fc1": np.ones((1, 64)), "fc2": np.zeros((1, 8))}
    chosen = {}
    for site in sites:
        weight = w1[None] if site.name == "fc1" else w2[None]
        chosen.update(replay.overridden.feeds(site.name, weight.astype(float), shift[site.name]))
    fed = replay.finish(1, replay.start({"x": x}), chosen)["y"].astype(np.float32)
    expected = expected + w2.sum(axis=0)
    assert np.abs(fed - expected).max() < 0.03 * np.abs(expected).max()


def test_sequences_between_layers_and_as_outputs():
    model = make(
        [
            node("MatMul", ["x", "a"], ["h"], name="first"),
            node("SplitToSequence", ["h"], ["q"], axis=1),
            node("MatMul", ["h", "b"], ["t"], name="second"),
            node("SequenceInsert", ["q", "t"], ["r"]),
            node("ConcatFromSequence", ["q"], ["z"], axis=1),
            node("Add", ["z", "t"], ["y"]),
        ],
        {"x": (3, 4)},
        ["y", "r"],
        {"a": noise(4, 4), "b": noise(4, 4, seed=2)},
    )
    feeds = {"x": noise(3, 4, seed=5)}
    _, _, replay = opened(model)
    found = replay.finish(1, replay.start(feeds))
    assert differ(run(model, feeds), list(found.values())) < 1e-5


def test_maps_as_outputs():
    """As classifiers exported from scikit-learn have them."""
    zipped = node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    model = make(
        [node("MatMul", ["x", "w"], ["h"], name="n"), node("Softmax", ["h"], ["p"]), zipped],
        {"x": (2, 4)},
        ["y"],
        {"w": noise(4, 3)},
        domains={"ai.onnx.ml": 1},
    )
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    model.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(kind))
    feeds = {"x": noise(2, 4)}
    _, _, replay = opened(model)
    assert differ(run(model, feeds), list(replay.finish(1, replay.start(feeds)).values())) < 1e-6


def test_inputs_with_defaults():
    model = make(
        [node("Add", ["x", "d"], ["h"]), node("MatMul", ["h", "w"], ["y"], name="n")],
        {"x": (2, 4), "d": info("d", (4,))},
        ["y"],
        [const("w", noise(4, 4)), const("d", noise(4))],
    )
    check(model, {"x": noise(2, 4)})
    check(model, {"x": noise(2, 4), "d": np.zeros(4, np.float32)})


def test_outputs_that_are_constants_are_left_out():
    model = make(
        [node("MatMul", ["x", "w"], ["y"], name="n")], {"x": (2, 4)}, ["y"], {"w": noise(4, 4)}
    )
    model.graph.initializer.append(const("c", noise(3)))
    model.graph.output.append(info("c", (3,)))
    _, _, replay = opened(model)
    assert list(replay.finish(1, replay.start({"x": noise(2, 4)}))) == ["y"]


def test_an_input_that_is_an_output():
    model = make(
        [node("MatMul", ["x", "w"], ["y"], name="n")], {"x": (2, 4)}, ["y"], {"w": noise(4, 4)}
    )
    model.graph.output.append(info("x", (2, 4)))
    feeds = {"x": noise(2, 4)}
    _, _, replay = opened(model)
    found = replay.finish(1, replay.start(feeds))
    assert np.array_equal(found["x"], feeds["x"]) and list(found) == ["y", "x"]


def deep(layers=6):
    nodes, name = [], "x"
    for k in range(layers):
        nodes.append(node("MatMul", [name, f"w{k}"], [f"h{k}"], name=f"n{k}"))
        nodes.append(node("Tanh", [f"h{k}"], [f"t{k}"]))
        name = f"t{k}"
    weights = {f"w{k}": noise(8, 8, seed=k) for k in range(layers)}
    return make(nodes, {"x": ("n", 8)}, [name], weights)


def test_memory_does_not_grow_with_the_depth():
    _, _, replay = opened(deep())
    values, sizes = replay.start({"x": noise(16, 8)}), []
    for k in range(1, len(replay)):
        values = replay.advance(k, values)
        sizes.append(size([values]))
    assert set(sizes) == {16 * 8 * 4}


def test_sessions_are_opened_once_and_fed_ones_only_where_something_is_fed(monkeypatch):
    opened_sessions = []

    def count(proto, *args, **more):
        opened_sessions.append(len(proto.graph.input))
        return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])

    monkeypatch.setattr("onnxrank.runtime.replay.open_session", count)
    _, sites, replay = opened(deep())
    start = replay.start({"x": noise(2, 8)})
    weight, shift = np.eye(8)[None], np.zeros((1, 8))
    for _ in range(2):
        replay.finish(1, start)
        replay.finish(1, start, replay.overridden.feeds("n2", weight, shift))
    assert len(opened_sessions) == 7
    assert sorted(opened_sessions) == [1] * 6 + [3]


def test_feeds_of_other_segments_are_left_aside():
    _, _, replay = opened(deep())
    start = replay.start({"x": noise(2, 8)})
    feeds = replay.overridden.feeds("n0", np.zeros((1, 8, 8)), np.zeros((1, 8)))
    after = replay.advance(1, start)
    assert differ(replay.finish(2, after, feeds), replay.finish(2, after)) == 0


def test_what_onnxruntime_refuses_names_the_model():
    model = make(
        [node("MatMul", ["x", "w"], ["h"], name="n"), node("Nonsense", ["h"], ["y"], domain="no")],
        {"x": (2, 4)},
        ["y"],
        {"w": noise(4, 4)},
    )
    _, _, replay = opened(model)
    with pytest.raises(ModelError, match="graph"):
        replay.finish(1, replay.start({"x": noise(2, 4)}))

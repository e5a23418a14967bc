"""Some of the samples, from all over the data, and no more in memory than asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.graph.model import load
from onnxrank.graph.override import override
from onnxrank.runtime.batch import Batch
from onnxrank.runtime.data import open_data
from onnxrank.runtime.replay import Replay
from onnxrank.runtime.session import Run
from onnxrank.stages.compensate import affordable
from onnxrank.stages.draw import evenly, joined, sample, slimmed

from ..graph.build import make, node, noise
from .networks import RUN, D, named


def batch(start, fold=0, size=4, width=2, **more):
    x = np.arange(start, start + size, dtype=np.float32)[:, None].repeat(width, axis=1)
    return Batch({"x": x, **more}, fold, None, start, size, f"batch {start}")


def linear(size):
    """A model of batches of this size."""
    matmul = node("MatMul", ["x", "w"], ["y"])
    return load(make([matmul], {"x": (size, 2)}, ["y"], {"w": noise(2, 2)}))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 1), max_size=70), st.integers(1, 9))
def test_evenly(folds, most):

    def read():
        for k, fold in enumerate(folds):
            yield batch(k, fold)

    taken = []
    got = evenly(read(), most, lambda b: taken.append(b.start) or b)
    starts = [b.start for b in got]
    assert starts == sorted(starts)
    for fold in (0, 1):
        mine = [k for k, f in enumerate(folds) if f == fold]
        chosen = [b.start for b in got if b.fold == fold]
        assert len(chosen) == min(most, len(mine)) and set(chosen) <= set(mine)
        if len(mine) >= 2 * most:  # neither end is left out by far
            places = [mine.index(k) for k in chosen]
            assert places[0] <= 2 * len(mine) / most
            assert places[-1] >= len(mine) - 1 - 2 * len(mine) / most


def test_no_more_than_twice_as_many_are_held():
    alive = []

    class Watched(Batch):
        def __del__(self):
            alive.remove(self.start)

    def read():
        for k in range(100):
            alive.append(k)
            yield Watched({}, 0, None, k, 1, "")
            assert len(alive) <= 2 * 8 + 2

    assert len(evenly(read(), 8)) == 8


def test_slimmed():
    whole = batch(0, size=8)
    few = slimmed(whole, 2)
    assert few.feeds["x"][:, 0].tolist() == [2.0, 6.0] and few.size == 2
    assert slimmed(whole, 8) is whole
    odd = batch(0, size=8, table=np.zeros((3, 2)))
    assert slimmed(odd, 2) is odd
    labelled = Batch(whole.feeds, 0, np.arange(8), 0, 8, "")
    assert slimmed(labelled, 2).labels.tolist() == [2, 6]


def test_joined():
    (one,) = joined([batch(0), batch(8, size=2)])
    assert one.size == 6 and one.feeds["x"][:, 0].tolist() == [0, 1, 2, 3, 8, 9]
    other = [batch(0), batch(8, width=3)]
    assert list(joined(other)) == other
    assert joined([batch(3)])[0].start == 3
    sequences = [batch(0, s=[1, 2]), batch(4, s=[1, 2])]
    assert list(joined(sequences)) == sequences


def test_a_sample_of_sorted_data_has_all_kinds():
    """A sixteenth of the samples, of a fold, from data that lie sorted."""
    model = load(
        make([node("MatMul", ["x", "w"], ["y"])], {"x": ("n", 2)}, ["y"], {"w": noise(2, 2)})
    )
    x = np.arange(512, dtype=np.float32)[:, None].repeat(2, axis=1)
    source = open_data({"x": x}, model.inputs, RUN)
    got = sample(model, source, 1, 32)
    assert [b.size for b in got] == [16, 16] and {b.fold for b in got} == {1}
    kinds = np.unique(np.concatenate([b.feeds["x"][:, 0] for b in got]) // 64)
    assert len(kinds) >= 6
    again = sample(model, source, 1, 32)
    assert all(np.array_equal(a.feeds["x"], b.feeds["x"]) for a, b in zip(got, again, strict=True))


def test_a_sample_of_a_fixed_batch_stays_whole():
    model = load(
        make([node("MatMul", ["x", "w"], ["y"])], {"x": (4, 2)}, ["y"], {"w": noise(2, 2)})
    )
    source = open_data({"x": noise(64, 2)}, model.inputs, RUN)
    got = sample(model, source, 1, 10)
    assert [b.size for b in got] == [4, 4, 4]


def test_a_fold_that_is_not_there():
    model = load(
        make([node("MatMul", ["x", "w"], ["y"])], {"x": ("n", 2)}, ["y"], {"w": noise(2, 2)})
    )
    source = open_data([{"x": noise(4, 2)}], model.inputs, RUN)
    assert [b.fold for b in sample(model, source, 1, 10)] == [0]


@pytest.mark.parametrize("memory", [0, 60_000, 1])
def test_what_is_kept_alive_is_bounded(memory):
    found = named("mlp")
    replay = Replay(override(found.model, found.measured.survey.sites), RUN)
    got = affordable(replay, found.source, Run(provider="cpu", memory=memory))
    if not memory:
        assert len(got) == 32
    elif memory == 1:
        assert [b.fold for b in got] == [0, 1]
    else:
        assert 4 <= len(got) < 32
        assert len(got) * 3 * 16 * D * 4 <= memory
        assert {b.fold for b in got} == {0, 1}

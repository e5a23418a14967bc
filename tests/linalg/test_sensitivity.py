"""From the error of a unit to that of the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.linalg.sensitivity import SHARES, predicted, probe_ranks

QUICK = settings(deadline=None, max_examples=100)
SIZE = st.floats(1e-8, 1e8)


@st.composite
def probes(draw):
    """Points as probes give them: some in odd order, some with no error at all."""
    count = draw(st.integers(1, 4))
    tails = draw(st.lists(SIZE, min_size=count, max_size=count))
    errors = draw(st.lists(st.one_of(SIZE, st.just(0.0)), min_size=count, max_size=count))
    return list(zip(tails, errors, strict=True))


@QUICK
@given(st.lists(SIZE, min_size=1, max_size=4, unique=True), st.lists(SIZE, min_size=4, max_size=4))
def test_passes_through_probes_that_rise(tails, errors):
    tails, errors = sorted(tails), sorted(errors)[: len(tails)]
    got = predicted(list(zip(tails, errors, strict=True)), np.array(tails))
    np.testing.assert_allclose(got, errors, rtol=1e-6)


@QUICK
@given(probes(), st.lists(st.one_of(SIZE, st.just(0.0)), min_size=2, max_size=20))
def test_never_falls_and_ends_at_the_severest_probe(points, tails):
    severest = max(tail for tail, _ in points)
    tails = np.sort(np.array([*tails, severest, severest * 1.01]))
    got = predicted(points, tails)
    assert (np.diff(got[np.isfinite(got)]) >= -1e-12 * got[np.isfinite(got)][1:]).all()
    assert np.array_equal(np.isfinite(got), tails <= severest)
    assert (got >= 0).all()
    assert (got[tails == 0] == 0).all()


@QUICK
@given(probes(), st.floats(1e-6, 1))
def test_proportional_below_the_mildest_probe(points, share):
    mildest = min(tail for tail, _ in points)
    at, there = predicted(points, np.array([share * mildest, mildest]))
    assert at == pytest.approx(share * there, rel=1e-6)


def test_a_straight_line_between_in_the_logarithms():
    got = predicted([(1.0, 1.0), (100.0, 1e4)], np.array([10.0, 0.1]))
    np.testing.assert_allclose(got, [100.0, 0.1])


def test_a_probe_that_says_less_than_a_milder_one_counts_as_much():
    got = predicted([(1.0, 5.0), (10.0, 2.0), (100.0, 50.0)], np.array([1.0, 10.0, 100.0]))
    np.testing.assert_allclose(got, [5.0, 5.0, 50.0])


def test_without_probes_nothing_is_known():
    assert predicted([], np.array([0.0, 1.0])).tolist() == [0.0, np.inf]
    assert predicted([(0.0, 1.0)], np.array([0.0, 1.0])).tolist() == [0.0, np.inf]


def test_ranks_lose_about_these_shares():
    tail = np.append(np.cumsum(1.0 / np.arange(1, 101)[::-1])[::-1], 0.0)
    ranks = probe_ranks(tail, 99)
    assert ranks == sorted(set(ranks))
    for rank, share in zip(ranks, SHARES, strict=True):
        assert tail[rank] <= share * tail[0] < tail[rank - 1]


@pytest.mark.parametrize("most", [0, 1, 3, 50])
def test_ranks_stay_below_what_pays(most):
    tail = np.linspace(1, 0, 101)
    ranks = probe_ranks(tail, most)
    assert all(1 <= rank <= most for rank in ranks)
    assert bool(ranks) == (most > 0)


def test_a_unit_without_energy_is_not_probed():
    assert probe_ranks(np.zeros(5), 3) == []


def test_energy_in_one_direction():
    assert probe_ranks(np.array([1.0, 0.0, 0.0, 0.0]), 2) == [1]

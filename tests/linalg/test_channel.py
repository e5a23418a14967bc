"""Channel-first pairs: 1x1 to fewer channels, then the kernel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.linalg.channel import channel_directions, channel_errors, channel_pair, spread
from onnxrank.linalg.factorize import layer_error
from onnxrank.linalg.layout import Patches, rows

from .cases import moments

QUICK = settings(deadline=None, max_examples=40)


@st.composite
def convolutions(draw):
    """A kernel as a matrix, an image, and how the image becomes patches."""
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    channels, d_out = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = rng.standard_normal((3, channels, *(6 + k for k in kernel)))
    if draw(st.booleans()):  # channels that follow each other, and one that is dead
        image = np.einsum("ij,nj...->ni...", rng.standard_normal((channels, channels)), image)
        image[:, -1] = 0
    axes = len(kernel)
    layout = Patches(
        kernel,
        tuple(draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes))),
        tuple(draw(st.lists(st.integers(0, 1), min_size=2 * axes, max_size=2 * axes))),
        tuple(draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes))),
    )
    weight = rng.standard_normal((channels * int(np.prod(kernel)), d_out))
    return weight, image, layout, int(np.prod(kernel))


def second_moment(image, layout):
    return moments(rows(image, layout))


@QUICK
@given(convolutions())
def test_full_rank_is_exact(case):
    weight, image, layout, positions = case
    pair = channel_pair(weight, second_moment(image, layout).gram[0], image.shape[1], positions)
    np.testing.assert_allclose(pair.product[0], weight, atol=1e-12 * (1 + np.abs(weight).max()))


@QUICK
@given(convolutions())
def test_shapes_and_product(case):
    weight, image, layout, positions = case
    channels = image.shape[1]
    gram = second_moment(image, layout).gram[0]
    for rank in range(1, channels + 1):
        pair = channel_pair(weight, gram, rank, positions)
        first, second = pair.parts
        assert first.shape == (1, channels, rank)
        assert second.shape == (1, rank * positions, weight.shape[1])
        explicit = np.kron(first[0], np.eye(positions)) @ second[0]
        np.testing.assert_allclose(pair.product[0], explicit, atol=1e-10)
        np.testing.assert_allclose(first[0].T @ first[0], np.eye(rank), atol=1e-10)


@QUICK
@given(convolutions())
def test_error_falls_with_the_rank_and_the_kernel_is_the_best_there_is(case):
    weight, image, layout, positions = case
    moment = second_moment(image, layout)
    patches = rows(image, layout)[0]
    scale = 1 + np.square(patches @ weight).sum()
    errors = []
    for rank in range(1, image.shape[1] + 1):
        pair = channel_pair(weight, moment.gram[0], rank, positions)
        errors.append(layer_error(weight[None], pair, moment))
        narrowed = patches @ np.kron(pair.parts[0][0], np.eye(positions))
        best = np.linalg.lstsq(narrowed, patches @ weight, rcond=None)[0]
        least = np.square(patches @ weight - narrowed @ best).sum()
        assert errors[-1] == pytest.approx(least, abs=1e-6 * scale)
    assert all(b <= a + 1e-6 * scale for a, b in itertools.pairwise(errors))
    assert errors[-1] <= 1e-6 * scale


@QUICK
@given(convolutions(), st.integers(1, 6))
def test_it_is_a_1x1_and_then_the_kernel(case, rank):
    weight, image, layout, positions = case
    channels = image.shape[1]
    rank = min(rank, channels)
    pair = channel_pair(weight, second_moment(image, layout).gram[0], rank, positions)
    first, second = (part[0] for part in pair.parts)
    narrowed = np.einsum("cr,nc...->nr...", first, image)
    got = rows(narrowed, layout)[0] @ second
    expected = rows(image, layout)[0] @ pair.product[0]
    np.testing.assert_allclose(got, expected, atol=1e-9 * (1 + np.abs(expected).max()))


@QUICK
@given(convolutions(), st.integers(0, 99))
def test_errors_of_many_ranks_at_once(case, seed):
    """Fitted to one image's patches, on another's."""
    weight, image, layout, positions = case
    other = np.random.default_rng(seed).standard_normal(image.shape)
    fit, judge = (second_moment(one, layout) for one in (image, other))
    ranks = list(range(1, image.shape[1] + 1))
    got = channel_errors(weight, fit.gram[0], judge.gram[0], ranks, positions)
    expected = [
        layer_error(weight[None], channel_pair(weight, fit.gram[0], rank, positions), judge)
        for rank in ranks
    ]
    scale = 1 + np.sum(weight * (judge.gram[0] @ weight))
    if np.linalg.cond(fit.gram[0] + np.eye(len(weight))) < 1e6 and image[:, -1].any():
        np.testing.assert_allclose(got, expected, atol=1e-6 * scale)
    assert (got >= 0).all() and got[-1] == 0


def test_channels_that_nobody_needs_are_dropped_first():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((8, 5, 9, 9))
    used, positions = rng.standard_normal((5, 2)), 9
    # The kernel sees two mixtures of the five channels.
    weight = np.kron(used, np.eye(positions)) @ rng.standard_normal((2 * positions, 6))
    layout = Patches((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    moment = second_moment(image, layout)
    pair = channel_pair(weight, moment.gram[0], 2, positions)
    assert layer_error(weight[None], pair, moment) <= 1e-9 * layer_error(
        weight[None], channel_pair(0 * weight, moment.gram[0], 2, positions), moment
    )


def test_no_rows():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4 * 9, 5))
    pair = channel_pair(weight, np.zeros((36, 36)), 2, 9)
    assert np.isfinite(pair.product).all()
    assert channel_directions(weight, np.zeros((36, 36)), 9).shape == (4, 4)


def test_spread_is_a_product():
    rng = np.random.default_rng(0)
    matrix, used = rng.standard_normal((7, 4 * 3)), rng.standard_normal((4, 2))
    np.testing.assert_allclose(
        spread(matrix, used, 3), matrix @ np.kron(used, np.eye(3)), atol=1e-12
    )

"""Sliding pairs: 1x1 to fewer channels, then the kernel; or one axis of it, then the others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.linalg.factorize import layer_error
from onnxrank.linalg.gram import SecondMoment
from onnxrank.linalg.layout import Patches, rows
from onnxrank.linalg.sliding import directions, sliding_pair, sliding_tails, spread

from .cases import moments

QUICK = settings(deadline=None, max_examples=40)


@st.composite
def convolutions(draw):
    """A kernel as a matrix, an image, how it becomes patches, and axes that the first covers."""
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    ahead = draw(st.integers(0, len(kernel) - 1))
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
    return weight, image, layout, ahead


def sizes(image, layout, ahead):
    """Entries of a piece of a patch, and how many there are."""
    first, rest = layout.kernel[:ahead], layout.kernel[ahead:]
    return image.shape[1] * int(np.prod(first)), int(np.prod(rest))


def saving(weight, size, positions):
    """The largest rank that saves parameters, but cuts something."""
    return min(weight.size // (size + positions * weight.shape[1]), size - 1)


def over(layout, axes):
    """The geometry of some axes alone."""
    one = lambda values, none: tuple(  # noqa: E731
        v if k % len(layout.kernel) in axes else none for k, v in enumerate(values)
    )
    ones = [one(v, 1) for v in (layout.kernel, layout.strides, layout.dilations)]
    return Patches(ones[0], ones[1], one(layout.pads, 0), ones[2])


def second_moment(image, layout):
    return moments(rows(image, layout))


@QUICK
@given(convolutions())
def test_full_rank_is_exact(case):
    weight, image, layout, ahead = case
    size, positions = sizes(image, layout, ahead)
    pair = sliding_pair(weight, second_moment(image, layout).gram[0], size, positions)
    np.testing.assert_allclose(pair.product[0], weight, atol=1e-12 * (1 + np.abs(weight).max()))


@QUICK
@given(convolutions())
def test_shapes_and_product(case):
    weight, image, layout, ahead = case
    size, positions = sizes(image, layout, ahead)
    gram = second_moment(image, layout).gram[0]
    for rank in range(1, size + 1):
        pair = sliding_pair(weight, gram, rank, positions)
        first, second = pair.parts
        assert first.shape == (1, size, rank)
        assert second.shape == (1, rank * positions, weight.shape[1])
        explicit = np.kron(first[0], np.eye(positions)) @ second[0]
        np.testing.assert_allclose(pair.product[0], explicit, atol=1e-10)
        np.testing.assert_allclose(first[0].T @ first[0], np.eye(rank), atol=1e-10)


@QUICK
@given(convolutions(), st.integers(1, 6))
def test_improved_directions_serve_no_worse(case, rank):
    weight, image, layout, ahead = case
    size, positions = sizes(image, layout, ahead)
    rank = min(rank, size)
    moment = second_moment(image, layout)
    patches = rows(image, layout)[0]
    start = np.kron(directions(weight, moment.gram[0], positions)[0][:, :rank], np.eye(positions))
    best = np.linalg.lstsq(patches @ start, patches @ weight, rcond=None)[0]
    before = np.square(patches @ (weight - start @ best)).sum()
    pair = sliding_pair(weight, moment.gram[0], rank, positions)
    scale = 1 + np.square(patches @ weight).sum()
    assert layer_error(weight[None], pair, moment) <= before + 1e-6 * scale


@QUICK
@given(convolutions())
def test_error_falls_with_the_rank_and_the_kernel_is_the_best_there_is(case):
    weight, image, layout, ahead = case
    size, positions = sizes(image, layout, ahead)
    moment = second_moment(image, layout)
    patches = rows(image, layout)[0]
    scale = 1 + np.square(patches @ weight).sum()
    errors = []
    for rank in range(1, size + 1):
        pair = sliding_pair(weight, moment.gram[0], rank, positions)
        errors.append(layer_error(weight[None], pair, moment))
        narrowed = patches @ np.kron(pair.parts[0][0], np.eye(positions))
        best = np.linalg.lstsq(narrowed, patches @ weight, rcond=None)[0]
        least = np.square(patches @ weight - narrowed @ best).sum()
        assert errors[-1] == pytest.approx(least, abs=1e-6 * scale)
    assert all(b <= a + 1e-6 * scale for a, b in itertools.pairwise(errors))
    assert errors[-1] <= 1e-6 * scale


@QUICK
@given(convolutions(), st.integers(1, 6))
def test_it_is_two_convolutions(case, rank):
    weight, image, layout, ahead = case
    size, positions = sizes(image, layout, ahead)
    rank = min(rank, size)
    pair = sliding_pair(weight, second_moment(image, layout).gram[0], rank, positions)
    first, second = (part[0] for part in pair.parts)
    ahead_layout, rest = over(layout, range(ahead)), over(layout, range(ahead, len(layout.kernel)))
    grid = ahead_layout.spatial_out(image.shape[2:])
    narrowed = (rows(image, ahead_layout)[0] @ first).reshape(len(image), *grid, rank)
    got = rows(np.moveaxis(narrowed, -1, 1), rest)[0] @ second
    expected = rows(image, layout)[0] @ pair.product[0]
    np.testing.assert_allclose(got, expected, atol=1e-9 * (1 + np.abs(expected).max()))


@QUICK
@given(convolutions(), st.integers(0, 99))
def test_the_errors_of_all_ranks(case, seed):
    """Fitted to one image's patches, on another's."""
    weight, image, layout, ahead = case
    size, positions = sizes(image, layout, ahead)
    other = np.random.default_rng(seed).standard_normal(image.shape)
    fit, judge = (second_moment(one, layout) for one in (image, other))
    got = sliding_tails(weight, fit.gram[0], judge.gram[0], positions)
    whole = np.sum(weight * (judge.gram[0] @ weight))
    assert len(got) == size + 1
    assert (np.diff(got) <= 0).all() and got[-1] == 0 and got[0] == pytest.approx(whole)
    if np.linalg.cond(fit.gram[0] + np.eye(len(weight))) < 1e6 and image[:, -1].any():
        errors = [
            layer_error(weight[None], sliding_pair(weight, fit.gram[0], r, positions), judge)
            for r in range(1, 1 + saving(weight, size, positions))
        ]
        least = np.minimum.accumulate(np.minimum(errors, whole))
        near = 0.2 if len(errors) > 6 else 0  # some are interpolated
        kept = got[1 : 1 + len(least)]
        np.testing.assert_allclose(kept, least, rtol=near, atol=1e-6 * (1 + whole))


@pytest.mark.parametrize("wide", [0, 1000])
def test_errors_between_the_ranks_that_are_computed(monkeypatch, wide):
    """Many more ranks than these; neighbours of an image are alike."""
    monkeypatch.setattr("onnxrank.linalg.sliding._WIDE", wide)
    rng = np.random.default_rng(4)
    image = rng.standard_normal((4, 24, 12, 12)) * np.exp(-np.arange(24) / 6)[:, None, None]
    image += np.roll(image, 1, 2) + np.roll(image, 1, 3)
    image = np.einsum("ij,njhw->nihw", np.linalg.qr(rng.standard_normal((24, 24)))[0], image)
    x = rows(image, Patches((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)))
    moment = SecondMoment(x.shape[1], x.sum(axis=1), x.swapaxes(1, 2) @ x)
    weight = rng.standard_normal((24 * 9, 16))
    for positions in (9, 3):
        size = len(weight) // positions
        got = sliding_tails(weight, moment.gram[0], moment.gram[0], positions)
        for rank in range(1, saving(weight, size, positions), 4):
            pair = sliding_pair(weight, moment.gram[0], rank, positions)
            error = layer_error(weight[None], pair, moment)
            assert got[rank] == pytest.approx(error, rel=0.3 - 0.15 * (wide > 0), abs=1e-8 * got[0])


def test_channels_that_nobody_needs_are_dropped_first():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((8, 5, 9, 9))
    used, positions = rng.standard_normal((5, 2)), 9
    # The kernel sees two mixtures of the five channels.
    weight = np.kron(used, np.eye(positions)) @ rng.standard_normal((2 * positions, 6))
    layout = Patches((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    moment = second_moment(image, layout)
    pair = sliding_pair(weight, moment.gram[0], 2, positions)
    assert layer_error(weight[None], pair, moment) <= 1e-9 * layer_error(
        weight[None], sliding_pair(0 * weight, moment.gram[0], 2, positions), moment
    )


def test_no_rows():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4 * 9, 5))
    pair = sliding_pair(weight, np.zeros((36, 36)), 2, 9)
    assert np.isfinite(pair.product).all()
    assert directions(weight, np.zeros((36, 36)), 9)[0].shape == (4, 4)
    assert np.isfinite(sliding_tails(weight, np.zeros((36, 36)), np.zeros((36, 36)), 9)).all()


def test_spread_is_a_product():
    rng = np.random.default_rng(0)
    matrix, used = rng.standard_normal((7, 4 * 3)), rng.standard_normal((4, 2))
    np.testing.assert_allclose(
        spread(matrix, used, 3), matrix @ np.kron(used, np.eye(3)), atol=1e-12
    )

"""Rows against plain loops."""

from __future__ import annotations

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.linalg.layout import Axis, Patches, row_shape, rows, width

QUICK = settings(deadline=None, max_examples=60)


def naive_conv(x, weight, layout):
    """ONNX Conv in loops: x (N, C, *spatial), weight (O, C / groups, *kernel)."""
    spatial, rank = x.shape[2:], len(layout.kernel)
    if layout.auto_pad == "NOTSET":
        begins, ends = layout.pads[:rank], layout.pads[rank:]
    else:
        begins, ends = [], []
        for size, k, s, dil in zip(
            spatial, layout.kernel, layout.strides, layout.dilations, strict=True
        ):
            out = int(np.ceil(size / s))
            total = max((out - 1) * s + (k - 1) * dil + 1 - size, 0)
            small, large = total // 2, total - total // 2
            valid, upper = layout.auto_pad == "VALID", layout.auto_pad == "SAME_UPPER"
            begins.append(0 if valid else small if upper else large)
            ends.append(0 if valid else large if upper else small)
    outs = [
        (n + b + e - (k - 1) * dil - 1) // s + 1
        for n, b, e, k, s, dil in zip(
            spatial, begins, ends, layout.kernel, layout.strides, layout.dilations, strict=True
        )
    ]
    y = np.zeros((x.shape[0], weight.shape[0], *outs))
    per_in, per_out = weight.shape[1], weight.shape[0] // layout.groups
    for n, o in product(range(x.shape[0]), range(weight.shape[0])):
        first = o // per_out * per_in
        for at in product(*map(range, outs)):
            for c, *tap in product(range(per_in), *map(range, layout.kernel)):
                where = [
                    a * s + t * dil - b
                    for a, s, t, dil, b in zip(
                        at, layout.strides, tap, layout.dilations, begins, strict=True
                    )
                ]
                if all(0 <= w < size for w, size in zip(where, spatial, strict=True)):
                    y[(n, o, *at)] += weight[(o, c, *tap)] * x[(n, first + c, *where)]
    return y


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    some = {1: 9, 2: 6, 3: 4}[rank]

    def each(low, high):
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    kernel, dilations = each(1, 3 if rank < 3 else 2), each(1, 2)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spatial = tuple(e + draw(st.integers(0, some - 2)) for e in extents)
    groups = draw(st.integers(1, 2))
    channels = groups * draw(st.integers(1, 2))
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    layout = Patches(kernel, each(1, 3), each(0, 2) + each(0, 2), dilations, groups, auto)
    return layout, (draw(st.integers(1, 2)), channels, *spatial)


@QUICK
@given(convolutions(), st.integers(0, 2**32 - 1))
def test_patches_times_weight_is_the_convolution(case, seed):
    layout, shape = case
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    weight = rng.standard_normal((2 * layout.groups, shape[1] // layout.groups, *layout.kernel))
    taken = rows(x, layout)
    grid = row_shape(shape, layout)
    assert taken.shape == (layout.groups, np.prod(grid), width(shape, layout))
    out = taken @ weight.reshape(layout.groups, 2, -1).swapaxes(1, 2)
    expected = naive_conv(x, weight, layout)
    assert expected.shape[2:] == grid[1:]
    got = np.moveaxis(out.swapaxes(0, 1).reshape(*grid, -1), -1, 1)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@QUICK
@given(convolutions(), st.integers(0, 2**32 - 1), st.booleans())
def test_keep_is_a_slice_of_all_rows(case, seed, axis):
    layout, shape = case
    if axis:
        layout = Axis((1, -1), groups=layout.groups)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    everything = rows(x, layout)
    n = everything.shape[1]
    mask = rng.random(n) < 0.4
    index = rng.integers(0, n, 5)
    grid = row_shape(shape, layout)
    np.testing.assert_array_equal(rows(x, layout, mask), everything[:, mask])
    np.testing.assert_array_equal(rows(x, layout, mask.reshape(grid)), everything[:, mask])
    np.testing.assert_array_equal(rows(x, layout, index), everything[:, index])
    np.testing.assert_array_equal(rows(x, layout, index[:1]), everything[:, index[:1]])
    np.testing.assert_array_equal(rows(x, layout, index[:0]), everything[:, :0])


@pytest.mark.parametrize(
    ("axes", "groups", "einsum"),
    [
        ((-1,), 1, "abcd->abcd"),
        ((1,), 2, "abcd->acdb"),
        ((3, 1), 1, "abcd->acdb"),
        ((0,), 1, "abcd->bcda"),
        ((0, 1, 2, 3), 2, "abcd->abcd"),
    ],
)
def test_axis(axes, groups, einsum):
    x = np.arange(2 * 4 * 3 * 6, dtype=np.float32).reshape(2, 4, 3, 6)
    layout = Axis(axes, groups)
    flat = np.einsum(einsum, x).reshape(-1, np.prod([x.shape[a] for a in axes]))
    expected = np.stack(np.split(flat, groups, axis=1))
    np.testing.assert_array_equal(rows(x, layout), expected)
    np.testing.assert_array_equal(rows(x, layout, np.array([0])), expected[:, :1])
    assert np.prod(row_shape(x.shape, layout)) == expected.shape[1]
    assert width(x.shape, layout) == expected.shape[2]


def test_one_vector_is_one_row():
    assert rows(np.ones(3), Axis()).shape == (1, 1, 3)
    assert rows(np.ones(3), Axis(), np.array([True])).shape == (1, 1, 3)


def test_last_axis_and_pointwise_patches_are_views():
    x = np.ones((2, 3, 4), np.float32)
    assert np.shares_memory(x, rows(x, Axis((-1,), groups=2)))
    image = np.ones((1, 4, 5, 5), np.float32)
    assert np.shares_memory(image, rows(image, Patches((1, 1), (1, 1), (0,) * 4, (1, 1))))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (np.int8, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
    ],
)
def test_types(dtype, expected):
    x = np.arange(6).reshape(2, 3).astype(dtype)
    assert rows(x, Axis()).dtype == expected
    np.testing.assert_array_equal(rows(x, Axis())[0], np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3), Axis((2,))),
        ((2, 3), Axis((1, -1))),
        ((2, 3), Axis((1,), groups=2)),
        ((1, 2, 5), Patches((3, 3), (1, 1), (0,) * 4, (1, 1))),
        ((1, 2, 2, 2), Patches((3, 3), (1, 1), (0,) * 4, (1, 1))),
        ((1, 3, 4, 4), Patches((3, 3), (1, 1), (0,) * 4, (1, 1), groups=2)),
        ((1, 3, 4, 4), Patches((3, 3), (1, 1), (0,) * 4, (1, 1), auto_pad="SAME")),
    ],
)
def test_what_does_not_fit_is_refused(shape, layout):
    with pytest.raises(ValueError):
        rows(np.zeros(shape), layout)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="mask"):
        rows(np.zeros((2, 3)), Axis(), np.array([True]))

"""Maps and rows to try everything on."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from onnxrank.linalg.gram import SecondMoment


@st.composite
def maps(draw, max_width=9):
    """Draw a weight, and rows of its input: (groups, d_in, d_out) and (groups, n, d_in), float64.

    Means may be large, directions may be dead or unseen, rows may be few, the weight of low rank.
    """
    groups, d_in, d_out = (draw(st.integers(1, top)) for top in (3, max_width, max_width))
    n = draw(st.sampled_from([1, 3, 20, 60]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scales = 10.0 ** -rng.uniform(0, draw(st.sampled_from([0, 2])), (groups, 1, d_in))
    turn = np.linalg.qr(rng.standard_normal((groups, d_in, d_in)))[0]
    rows = rng.standard_normal((groups, n, d_in)) * scales @ turn
    rows += draw(st.sampled_from([0.0, 3.0])) * rng.standard_normal((groups, 1, d_in))
    if draw(st.booleans()):
        rows[:, :, d_in // 2 :] = 0
    if draw(st.integers(0, 9)) == 0:
        rows[:] = 0
    weight = rng.standard_normal((groups, d_in, d_out))
    if draw(st.booleans()):
        low = draw(st.integers(1, min(d_in, d_out)))
        weight = weight[:, :, :low] @ rng.standard_normal((groups, low, d_out))
    return weight, rows


def moments(rows):
    """Moments in float64, by plain numpy."""
    return SecondMoment(rows.shape[1], rows.sum(axis=1), np.einsum("gni,gnj->gij", rows, rows))

"""From the error of one unit to the error of the whole model (method: section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxrank.linalg.gram import Array

# Shares of a unit's output energy that probes lose, from severe to mild.
SHARES = (0.5, 0.15, 0.04)


def probe_ranks(tail: Array, most: int) -> list[int]:
    """Ranks to probe: where about these shares of the energy are lost; ascending, distinct.

    Parameters
    ----------
    tail : ndarray of float64, shape (ranks + 1,)
        Squared error at every rank; entry 0 is the whole energy.
    most : int
        The largest rank of interest; none is below 1.
    """
    if tail[0] <= 0 or most < 1:
        return []
    found = {int(np.argmax(tail <= share * tail[0])) for share in SHARES}
    return sorted({min(max(rank, 1), most) for rank in found})


def predicted(points: Sequence[tuple[float, float]], tails: Array) -> Array:
    """Error of the model for errors of one unit, from a few probes.

    Interpolated in the logarithms of both errors; towards milder cuts than the mildest probe in
    proportion to the unit's error, and never beyond the severest probe, where nothing is known.

    Parameters
    ----------
    points : sequence of (float, float)
        The unit's own squared error, on rows it was not fitted to, and the squared error it
        makes at the model's outputs when it alone is cut so.
    tails : ndarray of float64, any shape
        Squared errors of the unit to predict for.

    Returns
    -------
    ndarray of float64, shape of `tails`
        Infinite beyond the severest probe; never falling as the unit's error rises.
    """
    worst: dict[float, float] = {}
    for tail, error in points:
        if tail > 0:
            worst[tail] = max(error, worst.get(tail, 0.0))
    known = sorted(worst.items())
    found = np.full(tails.shape, np.inf)
    found[tails <= 0] = 0.0
    if not known:
        return found
    inside = (tails > 0) & (tails <= known[-1][0])
    x = np.log([tail for tail, _ in known])
    y = np.maximum.accumulate(np.log([max(error, 1e-30) for _, error in known]))
    at = np.log(tails[inside])
    found[inside] = np.exp(np.where(at < x[0], y[0] + at - x[0], np.interp(at, x, y)))
    return found

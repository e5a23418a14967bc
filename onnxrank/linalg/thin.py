"""Thin a spectrum to the few points that draw the same curve."""

from __future__ import annotations

import heapq

import numpy as np

from onnxrank.linalg.gram import Array
from onnxrank.linalg.spectrum import pooled

# Height of the picture, and how far the thinned curve may be from the full one, in pixels.
_HEIGHT, _TOLERANCE = 260.0, 0.4

# Shares below this part of the largest one lie on the floor of the picture.
FLOOR = 1e-9

Points = tuple[tuple[float, ...], ...]


def thinned(eigenvalues: Array, limit: int = 80) -> Points:
    """Points of a spectrum whose straight connections draw it on a logarithmic axis.

    Ramer, Douglas and Peucker's choice with the vertical distance in pixels, the worst place
    first: stopped by the tolerance or by `limit`, whichever comes before.

    Parameters
    ----------
    eigenvalues : ndarray of float64, shape (d,) or (groups, d)
        Descending, not negative.
    limit : int
        Largest number of points, at least 2.

    Returns
    -------
    tuple of (int, float)
        Number of the direction, from 1, and its share of the energy. Empty if there is none.
    """
    values = pooled(eigenvalues)
    total = float(values.sum())
    if total <= 0:
        return ()
    shares = values / total
    kept = _corners(_heights(shares), limit)
    return tuple((k + 1, float(f"{shares[k]:.4g}")) for k in kept)


def _heights(shares: Array) -> Array:
    """Where the points lie, in pixels from the lowest one."""
    logs = np.log10(np.maximum(shares, shares[0] * FLOOR))
    span = float(logs.max() - logs.min())
    heights: Array = (logs - logs.min()) * (_HEIGHT / span if span else 0.0)
    return heights


def _corners(heights: Array, limit: int) -> list[int]:
    """Indices of the points to keep, ascending."""
    last = len(heights) - 1
    if last < 2:
        return list(range(last + 1))
    kept, heap = [0, last], [_worst(heights, 0, last)]
    while heap and len(kept) < limit:
        gap, start, corner, end = heapq.heappop(heap)
        if -gap <= _TOLERANCE:
            break
        kept.append(corner)
        heapq.heappush(heap, _worst(heights, start, corner))
        heapq.heappush(heap, _worst(heights, corner, end))
    return sorted(kept)


def _worst(heights: Array, start: int, end: int) -> tuple[float, int, int, int]:
    """The point furthest from the chord between two others: (-distance, start, point, end)."""
    part = heights[start : end + 1]
    chord = np.linspace(part[0], part[-1], len(part))
    distance = np.abs(part - chord)
    corner = int(distance.argmax())
    return -float(distance[corner]), start, start + corner, end

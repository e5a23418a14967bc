"""Sliding pairs of a convolution: one small map at several positions, then what reads them all.

A patch is cut into equal pieces, the same r directions U are taken of each, and what reads them is
fitted to that: ``W' = (U ⊗ I) B`` (method: section 3). Columns of a patch
are channel first, then along the kernel's axes, so a piece is a channel vector, one for each
entry of the kernel (1x1, then k x k), or a channel vector along the first axis, one for each
position on the others (k x 1, then 1 x k).
"""

from __future__ import annotations

import numpy as np

from onnxrank.linalg.factorize import Factors
from onnxrank.linalg.gram import Array
from onnxrank.linalg.regression import ridged

# Beside the moments, so that what no row has shown leaves the second part defined.
_RIDGE = 1e-9
# Times that the directions are improved.
_STEPS = 2
# Ranks at which errors are computed.
_GRID = 6
# Rows of a weight beyond which improved directions are dear.
_WIDE = 300
# Of the whole, below which an error is rounding.
_LEAST = 1e-15


def directions(weight: Array, gram: Array, positions: int) -> tuple[Array, Array]:
    """Directions of a piece, those that the outputs use most first.

    They are optimal where the pieces of a patch are uncorrelated.

    Parameters
    ----------
    weight : ndarray of float64, shape (size * positions, d_out)
        The matrix of a convolution.
    gram : ndarray of float64, shape (size * positions, size * positions)
        Second moment, or covariance, of its patches.
    positions : int
        Pieces of a patch.

    Returns
    -------
    ndarray of float64, shape (size, size)
        Columns, orthonormal in the metric of the pieces' mean second moment up to scale.
    ndarray of float64, shape (size,)
        Energy of the outputs that each would carry if the pieces were uncorrelated.
    """
    values, vectors = np.linalg.eigh(_own(gram, positions))
    values = values.clip(min=values[-1] * 1e-15 if values[-1] > 0 else 1.0)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    seen = root @ weight.reshape(len(root), -1)
    energies, turned = np.linalg.eigh(seen @ seen.T)
    leading: Array = inverse @ turned[:, ::-1]
    return leading, energies[::-1].clip(min=0)


def _own(gram: Array, positions: int) -> Array:
    """Mean second moment of the pieces, which a ridge makes regular."""
    size = len(gram) // positions
    blocks = gram.reshape(size, positions, size, positions)
    return np.asarray(ridged(np.einsum("apbp->ab", blocks)[None] / positions, _RIDGE)[0])


def sliding_pair(weight: Array, gram: Array, rank: int, positions: int) -> Factors:
    """The pair at a rank, without bias.

    Returns
    -------
    Factors
        Shapes (1, size, rank) and (1, rank * positions, d_out).
    """
    found, _ = directions(weight, gram, positions)
    first, second = _fitted(weight, gram, gram @ weight, found[:, :rank], positions)
    return Factors((first[None], second[None]))


def sliding_tails(weight: Array, fit: Array, judge: Array, positions: int) -> Array:
    """Squared error of the pair of every rank, fitted to one metric, in another.

    It is computed for some of the ranks that save parameters. The others are interpolated in the
    logarithm of its quotient to what it would be if the pieces of a patch were uncorrelated,
    which varies little. So does what better directions gain: in wide layers it is computed for one
    rank alone.

    Parameters
    ----------
    weight : ndarray of float64, shape (size * positions, d_out)
        The matrix of a convolution.
    fit, judge : ndarray of float64, shape (size * positions, size * positions)
        Second moments, or scatters, of its patches.
    positions : int
        Pieces of a patch.

    Returns
    -------
    ndarray of float64, shape (size + 1,)
        Entry r is the error at rank r; they do not rise. At ranks that save nothing it is rough.
    """
    size = len(weight) // positions
    saving = weight.size // (size + positions * weight.shape[1])
    last = max(min(size - 1, saving), 1)
    ranks = np.arange(1, last + 1)
    if last > _GRID:
        ranks = np.unique(np.geomspace(1, last, _GRID).round().astype(int))
    found, energies = directions(weight, fit, positions)
    whole = max(float(np.sum(weight * (judge @ weight))), 1e-300)
    alike = np.append(np.cumsum(energies[::-1])[::-1], 0.0) / max(float(energies.sum()), 1e-300)
    alike = np.log(alike.clip(min=_LEAST))
    pulled = fit @ weight

    def error(rank: int, steps: int) -> float:
        pair = _fitted(weight, fit, pulled, found[:, :rank], positions, steps)
        lost = weight - Factors((pair[0][None], pair[1][None])).product[0]
        return float(np.log(max(float(np.sum(lost * (judge @ lost))) / whole, _LEAST)))

    wide = len(weight) > _WIDE
    errors = np.array([error(rank, 0 if wide else _STEPS) for rank in ranks])
    middle = len(ranks) // 2
    gain = error(ranks[middle], _STEPS) - errors[middle] if wide else 0.0
    known = errors + min(gain, 0.0) - alike[ranks]
    total = np.exp(np.interp(np.arange(size + 1), ranks, known) + alike)
    total[0], total[size] = 1.0, 0.0
    return np.asarray(whole * np.minimum.accumulate(total))


def _fitted(
    weight: Array, gram: Array, pulled: Array, used: Array, positions: int, steps: int = _STEPS
) -> tuple[Array, Array]:
    """Both parts by alternating least squares from some directions; `pulled` is ``G W``."""
    used, _ = np.linalg.qr(used)
    size, rank = used.shape
    if rank == size:  # nothing is cut
        return used, (used.T @ weight.reshape(size, -1)).reshape(rank * positions, -1)
    own = _own(gram, positions)
    for _ in range(steps):
        used = _turned(gram, pulled, own, used, positions)
    return used, _second(gram, pulled, used, positions)[1]


def _second(gram: Array, pulled: Array, used: Array, positions: int) -> tuple[Array, Array]:
    """``G (U ⊗ I)``, and the second part that serves best."""
    half = spread(gram, used, positions)
    inner = ridged(spread(half.T, used, positions)[None], _RIDGE)[0]
    return half, np.linalg.solve(inner, spread(pulled.T, used, positions).T)


def _turned(gram: Array, pulled: Array, own: Array, used: Array, positions: int) -> Array:
    """Directions nearer to the best for the second part that serves these best.

    One step down the gradient, scaled as if the pieces were uncorrelated, as far as is best.
    """
    size, rank = used.shape
    half, second = _second(gram, pulled, used, positions)
    left = (pulled - half @ second).reshape(size, positions, -1)
    each = second.reshape(rank, positions, -1)
    slope = np.tensordot(left, each, ((1, 2), (1, 2)))
    weights = ridged(np.tensordot(each, each, ((1, 2), (1, 2)))[None], _RIDGE)[0]
    step = np.linalg.solve(weights, np.linalg.solve(own, slope).T).T
    moved = spread(spread(gram, step, positions).T, step, positions)
    energy = float(np.sum(second * (moved @ second)))
    far = float(np.sum(slope * step)) / energy if energy > 0 else 0.0
    return np.linalg.qr(used + far * step)[0]


def spread(matrix: Array, used: Array, positions: int) -> Array:
    """``M (U ⊗ I)``: (rows, size * positions) to (rows, rank * positions)."""
    size, rank = used.shape
    parts = matrix.reshape(len(matrix), size, positions)
    return np.asarray(np.einsum("ncp,cr->nrp", parts, used, optimize=True)).reshape(
        len(matrix), rank * positions
    )

"""Sliding pairs of a convolution: one small map at several positions, then what reads them all.

A patch is cut into equal pieces, the same r directions U are taken of each, and the rest of the
kernel is fitted anew to what is left: ``W' = (U ⊗ I) B`` (method: section 3). Columns of a patch
are channel first, then along the kernel's axes, so a piece is a channel vector, one for each
entry of the kernel (1x1, then k x k), or a channel vector along the first axis, one for each
position on the others (k x 1, then 1 x k).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxrank.linalg.factorize import Factors
from onnxrank.linalg.gram import Array
from onnxrank.linalg.regression import ridged

# Beside the moments, so that what no row has shown leaves the second part defined.
_RIDGE = 1e-9
# Ranks at which errors are computed.
_GRID = 14
# Of the whole, below which an error is rounding.
_LEAST = 1e-15


def directions(weight: Array, gram: Array, positions: int) -> tuple[Array, Array]:
    """Directions of a piece, those that the outputs use most first.

    They are optimal where the pieces of a patch are uncorrelated; the second part that is fitted
    on them afterwards makes up for what correlation there is.

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
    size = len(weight) // positions
    blocks = gram.reshape(size, positions, size, positions)
    own = np.einsum("apbp->ab", blocks) / positions
    values, vectors = np.linalg.eigh(ridged(own[None], _RIDGE)[0])
    values = values.clip(min=values[-1] * 1e-15 if values[-1] > 0 else 1.0)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    seen = root @ weight.reshape(size, -1)
    energies, turned = np.linalg.eigh(seen @ seen.T)
    return inverse @ turned[:, ::-1], energies[::-1].clip(min=0)


def sliding_pair(weight: Array, gram: Array, rank: int, positions: int) -> Factors:
    """The pair at a rank, without bias.

    Returns
    -------
    Factors
        Shapes (1, size, rank) and (1, rank * positions, d_out).
    """
    size = len(weight) // positions
    found, _ = directions(weight, gram, positions)
    used, _ = np.linalg.qr(found[:, :rank])
    if rank == size:  # nothing is cut
        turned = used.T @ weight.reshape(size, -1)
        return Factors((used[None], turned.reshape(1, rank * positions, -1)))
    half = spread(gram, used, positions)
    inner = spread(half.T, used, positions)
    second = np.linalg.solve(ridged(inner[None], _RIDGE)[0], half.T @ weight)
    return Factors((used[None], second[None]))


def sliding_tails(weight: Array, fit: Array, judge: Array, positions: int) -> Array:
    """Squared error of the pair of every rank, fitted to one metric, in another.

    It is computed for some ranks. Those between are interpolated in the logarithm of its quotient
    to what it would be if the pieces of a patch were uncorrelated, which varies little.

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
        Entry r is the error at rank r; they do not rise.
    """
    size = len(weight) // positions
    found, energies = directions(weight, fit, positions)
    last = max(size - 1, 1)
    ranks = np.arange(1, last + 1)
    if last > _GRID:
        ranks = np.unique(np.geomspace(1, last, _GRID).round().astype(int))
    whole = max(float(np.sum(weight * (judge @ weight))), 1e-300)
    alike = np.append(np.cumsum(energies[::-1])[::-1], 0.0) / max(float(energies.sum()), 1e-300)
    alike = np.log(alike.clip(min=_LEAST))
    errors = _errors(weight, fit, judge, np.linalg.qr(found)[0], ranks.tolist(), positions)
    known = np.log((errors / whole).clip(min=_LEAST)) - alike[ranks]
    total = np.exp(np.interp(np.arange(size + 1), ranks, known) + alike)
    total[0], total[size] = 1.0, 0.0
    return np.asarray(whole * np.minimum.accumulate(total))


def _errors(
    weight: Array, fit: Array, judge: Array, used: Array, ranks: Sequence[int], positions: int
) -> Array:
    """Squared errors at several ranks, of pairs on the leading columns of an orthonormal basis.

    In coordinates of the basis a pair keeps the leading rows, so that everything but the second
    part is computed once for all ranks.
    """
    size = len(used)
    turned = (used.T @ weight.reshape(size, -1)).reshape(weight.shape)
    fit, judge = (spread(spread(g, used, positions).T, used, positions) for g in (fit, judge))
    pulled, wanted = fit @ turned, judge @ turned
    whole = float(np.sum(turned * wanted))
    errors = np.zeros(len(ranks))
    for place, rank in enumerate(ranks):
        if rank < size:
            kept = slice(rank * positions)
            second = np.linalg.solve(ridged(fit[None, kept, kept], _RIDGE)[0], pulled[kept])
            gain = 2 * wanted[kept] - judge[kept, kept] @ second
            errors[place] = max(whole - float(np.sum(second * gain)), 0.0)
    return errors


def spread(matrix: Array, used: Array, positions: int) -> Array:
    """``M (U ⊗ I)``: (rows, size * positions) to (rows, rank * positions)."""
    size, rank = used.shape
    parts = matrix.reshape(len(matrix), size, positions)
    return np.asarray(np.einsum("ncp,cr->nrp", parts, used, optimize=True)).reshape(
        len(matrix), rank * positions
    )

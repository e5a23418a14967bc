"""Channel-first pairs of a convolution: 1x1 to r channels, then k x k (method: section 3).

Each position of a patch is projected onto the same r channel directions U, and the kernel is
fitted anew to what is left: ``W' = (U ⊗ I) B``, columns of a patch being channel first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxrank.linalg.factorize import Factors
from onnxrank.linalg.gram import Array
from onnxrank.linalg.regression import ridged

# Beside the moments, so that channels no row has shown leave the kernel defined.
_RIDGE = 1e-9


def channel_directions(weight: Array, gram: Array, positions: int) -> Array:
    """Directions among the channels, those that the outputs use most first.

    They are optimal where the positions of a patch are uncorrelated; the kernel that is fitted on
    them afterwards makes up for what correlation there is.

    Parameters
    ----------
    weight : ndarray of float64, shape (channels * positions, d_out)
        The matrix of a convolution.
    gram : ndarray of float64, shape (channels * positions, channels * positions)
        Second moment, or covariance, of its patches.
    positions : int
        Entries of the kernel.

    Returns
    -------
    ndarray of float64, shape (channels, channels)
        Columns, orthonormal in the metric of the channels' own second moment up to scale.
    """
    channels = len(weight) // positions
    blocks = gram.reshape(channels, positions, channels, positions)
    own = np.einsum("apbp->ab", blocks) / positions
    values, vectors = np.linalg.eigh(ridged(own[None], _RIDGE)[0])
    values = values.clip(min=values[-1] * 1e-15 if values[-1] > 0 else 1.0)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    seen = root @ weight.reshape(channels, -1)
    _, directions = np.linalg.eigh(seen @ seen.T)
    return np.asarray(inverse @ directions[:, ::-1], np.float64)


def channel_pair(weight: Array, gram: Array, rank: int, positions: int) -> Factors:
    """The pair at a rank, without bias.

    Returns
    -------
    Factors
        Shapes (1, channels, rank) and (1, rank * positions, d_out).
    """
    channels = len(weight) // positions
    used = channel_directions(weight, gram, positions)[:, :rank]
    used, _ = np.linalg.qr(used)
    if rank == channels:  # nothing is cut
        turned = used.T @ weight.reshape(channels, -1)
        return Factors((used[None], turned.reshape(1, rank * positions, -1)))
    half = spread(gram, used, positions)
    inner = spread(half.T, used, positions)
    kernel = np.linalg.solve(ridged(inner[None], _RIDGE)[0], half.T @ weight)
    return Factors((used[None], kernel[None]))


def channel_errors(
    weight: Array, fit: Array, judge: Array, ranks: Sequence[int], positions: int
) -> Array:
    """Squared errors of the pairs of several ranks, fitted to one metric, in another.

    In coordinates of the directions a pair keeps the leading rows, so that everything but the
    kernel is computed once for all ranks.

    Parameters
    ----------
    weight : ndarray of float64, shape (channels * positions, d_out)
        The matrix of a convolution.
    fit, judge : ndarray of float64, shape (channels * positions, channels * positions)
        Second moments, or scatters, of its patches.
    ranks : sequence of int
        From 1 to the number of channels.
    positions : int
        Entries of the kernel.

    Returns
    -------
    ndarray of float64, shape (len(ranks),)
        Not negative.
    """
    channels = len(weight) // positions
    used, _ = np.linalg.qr(channel_directions(weight, fit, positions))
    turned = (used.T @ weight.reshape(channels, -1)).reshape(weight.shape)
    fit, judge = (spread(spread(g, used, positions).T, used, positions) for g in (fit, judge))
    pulled, wanted = fit @ turned, judge @ turned
    whole = float(np.sum(turned * wanted))
    errors = np.zeros(len(ranks))
    for place, rank in enumerate(ranks):
        if rank < channels:
            kept = slice(rank * positions)
            kernel = np.linalg.solve(ridged(fit[None, kept, kept], _RIDGE)[0], pulled[kept])
            gain = 2 * wanted[kept] - judge[kept, kept] @ kernel
            errors[place] = max(whole - float(np.sum(kernel * gain)), 0.0)
    return errors


def spread(matrix: Array, used: Array, positions: int) -> Array:
    """``M (U ⊗ I)``: (rows, channels * positions) to (rows, rank * positions)."""
    channels, rank = used.shape
    parts = matrix.reshape(len(matrix), channels, positions)
    return np.asarray(np.einsum("ncp,cr->nrp", parts, used, optimize=True)).reshape(
        len(matrix), rank * positions
    )

"""Least squares on moments: what a map should be, given rows in and rows wanted (section 6)."""

from __future__ import annotations

import numpy as np

from onnxrank.linalg.factorize import Factors, output_pair
from onnxrank.linalg.gram import Array

# Least ridge, relative to the mean square: directions no row has shown get no coefficient.
_LEAST = 1e-12


def ridged(gram: Array, epsilon: float) -> Array:
    """``G + ε tr(G)/d I``: moments of shape (groups, d, d) with a ridge relative to their size."""
    d = gram.shape[1]
    trace = gram.trace(axis1=1, axis2=2)[:, None, None]
    ridge = np.where(trace > 0, trace * (max(epsilon, _LEAST) / d), 1.0)
    total: Array = gram + ridge * np.eye(d)
    return total


def ridge(gram: Array, cross: Array, epsilon: float) -> Array:
    """Coefficients B of least ``‖Y − X B‖² + ε tr(G)/d ‖B‖²``.

    Parameters
    ----------
    gram : ndarray of float64, shape (groups, d, d)
        ``Xᵀ X``, or its centred kind.
    cross : ndarray of float64, shape (groups, d, d_out)
        ``Xᵀ Y``, likewise.
    epsilon : float
        Relative to the mean square of the inputs; 1e-2 is a good start.

    Returns
    -------
    ndarray of float64, shape (groups, d, d_out)
        Zero where no row has anything.
    """
    return np.asarray(np.linalg.solve(ridged(gram, epsilon), cross), np.float64)


def reduced_rank(gram: Array, cross: Array, rank: int, epsilon: float) -> Factors:
    """Minimise as `ridge` does over all B of a rank: the pair ``B V_r, V_rᵀ``, V from B's outputs.

    Returns
    -------
    Factors
        Shapes (groups, d, rank) and (groups, rank, d_out).
    """
    return output_pair(ridge(gram, cross, epsilon), ridged(gram, epsilon), rank)

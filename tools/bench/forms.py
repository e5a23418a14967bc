"""Ways to cut a weight to a rank: those of others, and ours, as functions of weight and moments.

Each gives the product of its factors, (groups, d_in, d_out), and the shift of the output or None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxrank.linalg.factorize import Factors, factorize
from onnxrank.linalg.gram import Array, SecondMoment

Cut = Callable[[Array, SecondMoment, int], Factors]

# ASVD's exponent (arXiv 2312.05821).
_ALPHA = 0.5


def one_ratio(parameters: int, groups: int, d_in: int, d_out: int, share: float) -> int:
    """The rank at which a factor pair keeps a share of the parameters."""
    most = min(d_in, d_out)
    return max(1, min(int(share * parameters / (groups * (d_in + d_out))), most))


def _scaled(weight: Array, scale: Array, rank: int) -> Factors:
    """Cut the singular values of ``diag(s) W``, and take the scale away again."""
    left, values, right = np.linalg.svd(scale[:, :, None] * weight, full_matrices=False)
    first = left[:, :, :rank] * values[:, None, :rank] / scale[:, :, None]
    return Factors((first, right[:, :rank]))


def svd(weight: Array, moment: SecondMoment, rank: int) -> Factors:
    """The weight alone."""
    return factorize(weight, moment, rank, "svd")


def asvd(weight: Array, moment: SecondMoment, rank: int) -> Factors:
    """ASVD: every input scaled by a power of its size (here, its root mean square)."""
    square = np.diagonal(moment.gram, axis1=1, axis2=2) / max(moment.n, 1)
    size = np.sqrt(np.maximum(square, 0)) ** _ALPHA
    floor = 1e-6 * size.max(axis=1, keepdims=True)
    return _scaled(weight, np.maximum(size, np.maximum(floor, 1e-30)), rank)


def whitening(weight: Array, moment: SecondMoment, rank: int) -> Factors:
    """SVD-LLM (arXiv 2403.07378), DRONE: singular values behind a Cholesky factor of the moment."""
    from scipy.linalg import solve_triangular

    parts = []
    for gram, one in zip(moment.gram / max(moment.n, 1), weight, strict=True):
        root = _cholesky(gram)
        left, values, right = np.linalg.svd(root.T @ one, full_matrices=False)
        first = solve_triangular(root.T, left[:, :rank] * values[:rank], lower=False)
        parts.append((first, right[:rank]))
    first, second = (np.stack(part) for part in zip(*parts, strict=True))
    return Factors((first, second))


def _cholesky(gram: Array) -> Array:
    mean = max(float(np.trace(gram)) / len(gram), 1e-30)
    for jitter in (0.0, 1e-12, 1e-10, 1e-8, 1e-6):
        try:
            return np.linalg.cholesky(gram + jitter * mean * np.eye(len(gram)))
        except np.linalg.LinAlgError:
            continue
    raise ValueError("no positive moment")


def projection(weight: Array, moment: SecondMoment, rank: int) -> Factors:
    """The paper: inputs and outputs projected on as many directions (arXiv 2407.04797)."""
    return factorize(weight, moment, rank, "projection")


def optimal(weight: Array, moment: SecondMoment, rank: int) -> Factors:
    """Output PCA."""
    return factorize(weight, moment, rank, "optimal")


def centered(weight: Array, moment: SecondMoment, rank: int) -> Factors:
    """Output PCA about the mean, which goes to the bias."""
    return factorize(weight, moment, rank, "centered")


OTHERS: dict[str, Cut] = {
    "SVD of the weight": svd,
    "ASVD": asvd,
    "whitening (SVD-LLM)": whitening,
    "projection (paper)": projection,
}
OURS: dict[str, Cut] = {"optimal": optimal, "centred": centered}


def factorizable(measured: Any) -> list[Any]:
    """Units in whose place a factor pair can be written, whatever their rank."""
    from onnxrank.stages.ranks import kept_reason

    units = measured.survey.units
    return [u for u in units if kept_reason(u, measured.ranks[u.name], True) is None]

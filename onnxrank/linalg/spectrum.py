"""Spectra of second moments, and the ranks read from them (method: section 2; arXiv 2407.04797).

A site with groups has one spectrum a group and one rank for all of them: every function here
that gives a rank reads the *pooled* spectrum, the sum over groups of the k-th eigenvalues. For
one group that is the spectrum itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from onnxrank.linalg.gram import Array, SecondMoment

# Energies this close to the threshold, relative to the total, have reached it.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a symmetric positive semidefinite matrix, and its eigenvectors if asked for.

    Attributes
    ----------
    eigenvalues : ndarray of float64, shape (groups, d)
        Descending; what rounding made negative is zero.
    vectors : ndarray of float64, shape (groups, d, d), or None
        Orthonormal columns in the same order; of each, the entry of largest modulus is positive.
    """

    eigenvalues: Array
    vectors: Array | None = None

    @classmethod
    def of(cls, matrix: Array, vectors: bool = False) -> Spectrum:
        """Decompose symmetric matrices, shape (groups, d, d)."""
        from scipy.linalg import eigh  # here: naming a model's layers needs no scipy

        if not vectors:
            values = np.stack([eigh(one, eigvals_only=True, driver="evd") for one in matrix])
            return cls(values[:, ::-1].clip(min=0))
        pairs = [eigh(one, driver="evd") for one in matrix]
        values, columns = (np.stack(part) for part in zip(*pairs, strict=True))
        return cls(values[:, ::-1].clip(min=0), fix_signs(columns[:, :, ::-1]))


def fix_signs(columns: Array) -> Array:
    """Turn every column, shape (groups, d, k), so that its entry of largest modulus is positive."""
    largest = np.abs(columns).argmax(axis=1)[:, None, :]
    signs = np.sign(np.take_along_axis(columns, largest, axis=1))
    turned: Array = columns * np.where(signs == 0, 1.0, signs)
    return turned


def pooled(eigenvalues: Array) -> Array:
    """Sum over all axes but the last, shape (d,)."""
    total: Array = eigenvalues.reshape(-1, eigenvalues.shape[-1]).sum(axis=0)
    return total


def rank_by_energy(eigenvalues: Array, energy: float) -> int:
    """Smallest k whose leading eigenvalues hold this share of the total.

    Parameters
    ----------
    eigenvalues : ndarray of float64, shape (d,) or (groups, d)
        Descending, not negative. With groups, the k leading ones of *each* group are summed.
    energy : float
        The paper's τ, in (0, 1]; 1 cuts nothing.

    Returns
    -------
    int
        d for energy 1; 0 if all eigenvalues are zero.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy {energy} is not in (0, 1]")
    cumulative = np.cumsum(pooled(eigenvalues))
    if cumulative[-1] <= 0:
        return 0
    if energy == 1:  # rounding must not decide which directions are nothing
        return len(cumulative)
    # A tie is the smaller k: the share is reached, and only rounding would say otherwise.
    return int(np.searchsorted(cumulative, (energy - _ROUNDING) * cumulative[-1])) + 1


def numerical_rank(eigenvalues: Array) -> int:
    """Count the eigenvalues above ``eps · d · largest``; eps is float32's, as products are."""
    values = pooled(eigenvalues)
    tolerance = np.finfo(np.float32).eps * len(values) * values[0]
    return int((values > tolerance).sum())


def entropy_rank(eigenvalues: Array) -> float:
    """Effective rank of Roy and Vetterli (2007): exp of the singular values' entropy."""
    singular = np.sqrt(pooled(eigenvalues))
    share = singular[singular > 0] / max(singular.sum(), np.finfo(float).tiny)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0


def stable_rank(eigenvalues: Array) -> float:
    """Squared Frobenius norm of the rows over their squared spectral norm."""
    values = pooled(eigenvalues)
    return float(values.sum() / values[0]) if values[0] > 0 else 0.0


Criterion = Callable[[Array, float], float]

# All take (eigenvalues, energy); only "energy" reads the latter.
CRITERIA: dict[str, Criterion] = {
    "energy": rank_by_energy,
    "numerical": lambda eigenvalues, energy: numerical_rank(eigenvalues),
    "entropy": lambda eigenvalues, energy: entropy_rank(eigenvalues),
    "stable": lambda eigenvalues, energy: stable_rank(eigenvalues),
}


def output_gram(weight: Array, gram: Array) -> Array:
    """Second moment of ``Wᵀ x``: ``Wᵀ G W`` (method: section 1).

    Parameters
    ----------
    weight : ndarray of float64, shape (groups, d_in, d_out)
        The matrix of a linear map.
    gram : ndarray of float64, shape (groups, d_in, d_in)
        Second moment, or scatter, of its input.

    Returns
    -------
    ndarray of float64, shape (groups, d_out, d_out)
        Symmetric.
    """
    product = weight.swapaxes(1, 2) @ (gram @ weight)
    symmetric: Array = (product + product.swapaxes(1, 2)) / 2
    return symmetric


def narrow(weight: Array) -> tuple[Array, Array | None]:
    """Rewrite a wide weight as ``W = N Qᵀ``, Q orthonormal, so that N is not wider than high.

    The outputs ``Wᵀx = Q Nᵀx`` never leave the span of Q, so all that is asked of their second
    moment is found in the ``min(d_in, d_out)`` dimensions of ``Nᵀ G N``, without a root or an
    inverse of G.

    Returns
    -------
    ndarray of float64, shape (groups, d_in, m)
        N, with m = min(d_in, d_out).
    ndarray of float64, shape (groups, d_out, m), or None
        Q; None stands for the identity.
    """
    if weight.shape[1] >= weight.shape[2]:
        return weight, None
    basis, triangle = np.linalg.qr(weight.swapaxes(1, 2))
    return triangle.swapaxes(1, 2), basis


def compact(weight: Array) -> Array:
    """The N of `narrow` alone, which is cheaper."""
    if weight.shape[1] >= weight.shape[2]:
        return weight
    triangle = np.asarray(np.linalg.qr(weight.swapaxes(1, 2), mode="r"))
    return np.swapaxes(triangle, 1, 2)


def scatter(moment: SecondMoment, centered: bool) -> Array:
    """Sum of outer products, of the rows or of their deviations: (groups, d, d)."""
    return moment.about(moment.mean) if centered else moment.gram


def output_spectrum(weight: Array, moment: SecondMoment, centered: bool = False) -> Spectrum:
    """Eigenvalues of the second moment of a map's outputs (without its bias).

    Parameters
    ----------
    weight : ndarray of float64, shape (groups, d_in, d_out)
        The matrix of a linear map.
    moment : SecondMoment
        Of its input.
    centered : bool
        Of deviations from the mean, in place of the outputs themselves.

    Returns
    -------
    Spectrum
        Eigenvalues of shape (groups, d_out), zero beyond ``min(d_in, d_out)``; no vectors.
    """
    return _outputs(output_gram(compact(weight), scatter(moment, centered)), weight.shape[2])


def fold_output_spectra(
    weight: Array, first: SecondMoment, second: SecondMoment, centered: bool = False
) -> tuple[Spectrum, Spectrum, Spectrum]:
    """As `output_spectrum`, of both folds together and of each, at the price of two products.

    The outputs' second moment is linear in the inputs', so that of the whole is the sum; and what
    centring takes away, ``n Wᵀμ (Wᵀμ)ᵀ``, can be taken away behind the product.
    """
    small, d_out = compact(weight), weight.shape[2]
    grams = [output_gram(small, fold.gram) for fold in (first, second)]
    sums = [(fold.sum[:, None, :] @ small)[:, 0] for fold in (first, second)]

    def spectrum(gram: Array, total: Array, n: int) -> Spectrum:
        if centered:
            gram = gram - total[:, :, None] * (total / max(n, 1))[:, None, :]
        return _outputs(gram, d_out)

    return (
        spectrum(grams[0] + grams[1], sums[0] + sums[1], first.n + second.n),
        spectrum(grams[0], sums[0], first.n),
        spectrum(grams[1], sums[1], second.n),
    )


def _outputs(gram: Array, d_out: int) -> Spectrum:
    """Eigenvalues of a Gram matrix of outputs in few coordinates, with the zeros of the others."""
    values = Spectrum.of(gram).eigenvalues
    return Spectrum(np.pad(values, ((0, 0), (0, d_out - values.shape[1]))))


@dataclass(frozen=True)
class UtilizedRank:
    """The paper's ranks of one map at one energy (arXiv 2407.04797).

    Attributes
    ----------
    k_in, k_out : int
        Dimensions of the input's and of the output's subspace.
    rank : int
        The smaller one.
    """

    k_in: int
    k_out: int

    @property
    def rank(self) -> int:
        """Rank of the weight projected on both sides."""
        return min(self.k_in, self.k_out)


def utilized_rank(
    weight: Array, moment: SecondMoment, energy: float, centered: bool = False
) -> UtilizedRank:
    """Ranks of a map on data: weight of shape (groups, d_in, d_out), moment of its input."""
    inputs = Spectrum.of(scatter(moment, centered)).eigenvalues
    outputs = output_spectrum(weight, moment, centered).eigenvalues
    return UtilizedRank(rank_by_energy(inputs, energy), rank_by_energy(outputs, energy))


def corrected_rank(r_all: int, r_folds: Sequence[int], limit: int | None = None) -> int:
    """``2 r(all) − mean r(folds)``: free of most of what few rows take away (method: section 1).

    Parameters
    ----------
    r_all : int
        Rank on all rows.
    r_folds : sequence of int
        Ranks on the two halves.
    limit : int, optional
        Largest rank there can be.

    Returns
    -------
    int
        Rounded up, not negative, at most `limit`.
    """
    corrected = max(ceil(2 * r_all - sum(r_folds) / len(r_folds)), 0)
    return corrected if limit is None else min(corrected, limit)


def rank_stable(r_all: int, r_folds: Sequence[int], share: float = 0.05) -> bool:
    """Whether a rank has settled (method: section 1).

    True when no fold's rank differs from the whole's by more than `share` of it. A difference of
    one is never too much: ranks are whole numbers.
    """
    return all(abs(rank - r_all) <= max(share * r_all, 1) for rank in r_folds)

"""Factor pairs of one weight, and their error on data in closed form (method: section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxrank.errors import PlanError
from onnxrank.linalg.gram import Array, SecondMoment
from onnxrank.linalg.spectrum import (
    Spectrum,
    compact,
    fix_signs,
    narrow,
    output_gram,
    pooled,
    scatter,
)

# Beside the rows, relative to their mean square: directions no row has shown are then ordered by
# the energy the weight has in them.
_RIDGE = 1e-12

Ranks = tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Factors:
    """Small weights whose product stands for one weight.

    Attributes
    ----------
    parts : tuple of ndarray of float64
        To be applied in this order; a pair has shapes (groups, d_in, r) and (groups, r, d_out).
        Where the first is applied to each of p positions alike (a 1x1 convolution), its shape is
        (groups, d_in / p, r) and the second's (groups, r * p, d_out).
    bias : ndarray of float64, shape (groups, d_out), or None
        To be added to the bias of the map.
    """

    parts: tuple[Array, ...]
    bias: Array | None = None

    @property
    def product(self) -> Array:
        """The weight the parts stand for, shape (groups, d_in, d_out)."""
        total = self.parts[0]
        for part in self.parts[1:]:
            groups, _, rank = total.shape
            spread = total @ part.reshape(groups, rank, -1)
            total = spread.reshape(groups, -1, part.shape[2])
        return total


def output_basis(weight: Array, gram: Array, rank: int | None = None) -> tuple[Array, Array]:
    """Principal directions of the outputs, and the weight in their coordinates.

    Parameters
    ----------
    weight : ndarray of float64, shape (groups, d_in, d_out)
        The matrix of a linear map.
    gram : ndarray of float64, shape (groups, d_in, d_in)
        Second moment, or scatter, of its input.
    rank : int, optional
        How many of the leading directions; all by default.

    Returns
    -------
    ndarray of float64, shape (groups, d_in, m)
        ``W V``, with m = min(d_in, d_out), or `rank`.
    ndarray of float64, shape (groups, d_out, m)
        V: orthonormal eigenvectors of ``Wᵀ G W``, leading ones first. ``W V Vᵀ = W`` for any G,
        also one that is singular or zero.
    """
    small, basis = narrow(weight)
    d = gram.shape[1]
    trace = gram.trace(axis1=1, axis2=2)[:, None, None]
    ridge = np.where(trace > 0, trace * (_RIDGE / d), 1.0)
    directions = Spectrum.of(output_gram(small, gram + ridge * np.eye(d)), vectors=True).vectors
    assert directions is not None
    directions = directions[:, :, :rank]
    return small @ directions, directions if basis is None else basis @ directions


def output_pair(weight: Array, gram: Array, rank: int) -> Factors:
    """Return ``A = W V_r, B = V_rᵀ``, the pair of this rank of least error on the rows."""
    within, basis = output_basis(weight, gram, rank)
    return Factors((within, basis.swapaxes(1, 2)))


def _optimal(weight: Array, moment: SecondMoment, rank: int, ranks: Ranks) -> Factors:
    """Output PCA: the squared error on the rows is the tail of the output spectrum."""
    return output_pair(weight, moment.gram, rank)


def _centered(weight: Array, moment: SecondMoment, rank: int, ranks: Ranks) -> Factors:
    """Output PCA of deviations from the mean; the bias makes up for the mean."""
    first, second = output_pair(weight, scatter(moment, centered=True), rank).parts
    mean = moment.mean[:, None, :]
    return Factors((first, second), (mean @ weight - mean @ first @ second)[:, 0])


def _projection(weight: Array, moment: SecondMoment, rank: int, ranks: Ranks) -> Factors:
    """``P_S W P_T`` (arXiv 2407.04797), factored on the side of `rank`."""
    within, outputs = output_basis(weight, moment.gram)
    k_in, k_out = _sides(weight, rank, ranks)
    inputs = Spectrum.of(moment.gram, vectors=True).vectors
    assert inputs is not None
    inputs, outputs, within = inputs[:, :, :k_in], outputs[:, :, :k_out], within[:, :, :k_out]
    core = inputs.swapaxes(1, 2) @ within
    if k_in <= k_out:
        return Factors((inputs, core @ outputs.swapaxes(1, 2)))
    return Factors((inputs @ core, outputs.swapaxes(1, 2)))


def _sides(weight: Array, rank: int, ranks: Ranks) -> tuple[int, int]:
    """Ranks of both projections: the smaller is `rank`, the other keeps what `ranks` says."""
    d_in, d_out = weight.shape[1:]
    if rank == min(d_in, d_out):  # nothing is cut
        return d_in, d_out
    k_in, k_out = ranks or (rank, rank)
    if k_in <= k_out:
        return rank, min(max(k_out, rank), d_out)
    return min(max(k_in, rank), d_in), rank


def _svd(weight: Array, moment: SecondMoment, rank: int, ranks: Ranks) -> Factors:
    """Cut the singular value decomposition of the weight: looks at no data."""
    _, _, rows = np.linalg.svd(weight, full_matrices=False)
    basis = fix_signs(rows.swapaxes(1, 2)[:, :, :rank])
    return Factors((weight @ basis, basis.swapaxes(1, 2)))


Form = Callable[[Array, SecondMoment, int, Ranks], Factors]

FORMS: dict[str, Form] = {
    "centered": _centered,
    "optimal": _optimal,
    "projection": _projection,
    "svd": _svd,
}


def factorize(
    weight: Array, moment: SecondMoment, rank: int, form: str, ranks: Ranks = None
) -> Factors:
    """Factor a weight into a pair of the given rank.

    Parameters
    ----------
    weight : ndarray, shape (groups, d_in, d_out)
        The matrix of a linear map; worked on in float64.
    moment : SecondMoment
        Of its input.
    rank : int
        From 1 to ``min(d_in, d_out)``, at which every form gives the weight back.
    form : str
        A name in `FORMS`.
    ranks : (int, int), optional
        k_S and k_T of the form ``projection``; the smaller is replaced by `rank`, the other is
        at least `rank`. Both are `rank` by default. Other forms ignore it.

    Returns
    -------
    Factors
        float64; the form ``centered`` has a bias.
    """
    if form not in FORMS:
        raise PlanError(f"unknown form {form!r}", hint=f"one of {', '.join(sorted(FORMS))}")
    if weight.shape[:2] != moment.sum.shape:
        raise ValueError(f"weight {weight.shape} and moments of rows {moment.sum.shape}")
    if not 1 <= rank <= min(weight.shape[1:]):
        raise ValueError(f"rank {rank} of a weight of shape {weight.shape}")
    return FORMS[form](weight.astype(np.float64, copy=False), moment, rank, ranks)


def layer_error(weight: Array, factors: Factors, moment: SecondMoment) -> float:
    """Squared error of a layer's outputs, summed over the rows the moments were taken of.

    ``Σ ‖Dᵀx − β‖² = tr(Dᵀ G D) − 2 βᵀDᵀs + n ‖β‖²`` with ``D = W − W'`` and β the added bias.
    """
    lost = weight - factors.product
    error = float(np.sum(lost * (moment.gram @ lost)))
    if factors.bias is not None:
        drift = (moment.sum[:, None, :] @ lost)[:, 0]
        error += float(np.sum(factors.bias * (moment.n * factors.bias - 2 * drift)))
    return max(error, 0.0)


def pair_error(
    weight: Array, moment: SecondMoment, rank: int, form: str, ranks: Ranks = None
) -> float:
    """As `layer_error` of what `factorize` gives, which is not made where a tail tells."""
    if form in ("optimal", "centered"):
        return float(tails(weight, moment, centered=form == "centered")[rank])
    return layer_error(weight, factorize(weight, moment, rank, form, ranks), moment)


def tails(weight: Array, moment: SecondMoment, centered: bool = False) -> Array:
    """Squared error of the best pair of every rank, on the rows it is fitted to.

    Parameters
    ----------
    weight : ndarray of float64, shape (groups, d_in, d_out)
        The matrix of a linear map.
    moment : SecondMoment
        Of its input.
    centered : bool
        Of the form ``centered`` in place of ``optimal``.

    Returns
    -------
    ndarray of float64, shape (min(d_in, d_out) + 1,)
        Entry r is the error at rank r, summed over rows and groups.
    """
    gram = output_gram(compact(weight), scatter(moment, centered))
    return _tail_sums(Spectrum.of(gram).eigenvalues)


def cross_tails(
    weight: Array, fit: SecondMoment, judge: SecondMoment, centered: bool = False
) -> Array:
    """Squared error of the best pair of every rank on one fold, on the rows of another.

    With V the output directions of `fit`, a pair of rank r loses the outputs along ``v_i``,
    i > r, and no others, so its error is a sum of ``v_iᵀ Wᵀ G W v_i`` with G of `judge`; for
    ``centered``, G about the mean of `fit`, from which the bias was taken.

    Parameters
    ----------
    weight : ndarray of float64, shape (groups, d_in, d_out)
        The matrix of a linear map.
    fit, judge : SecondMoment
        Of its input, on disjoint rows.
    centered : bool
        Of the form ``centered`` in place of ``optimal``.

    Returns
    -------
    ndarray of float64, shape (min(d_in, d_out) + 1,)
        Entry r is the error at rank r, summed over the rows of `judge` and groups.
    """
    within, _ = output_basis(weight, scatter(fit, centered))
    gram = judge.about(fit.mean) if centered else judge.gram
    return _tail_sums(np.sum(within * (gram @ within), axis=1).clip(min=0))


def _tail_sums(losses: Array) -> Array:
    """Sum what follows each position, over all groups: (groups, m) to (m + 1,)."""
    backwards = np.cumsum(pooled(losses)[::-1])
    return np.append(backwards[::-1], 0.0)

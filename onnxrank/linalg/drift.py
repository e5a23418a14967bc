"""Compensate for what comes before: fit a weight to the rows it will really get (section 6).

A layer of a compressed network reads x' where the original read x, and the stream it is added to
has drifted from h to h'. The map that serves best is no longer W but the least-squares one from
x' to ``x W + (h − h')``, cut to the wanted rank in the metric of x'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxrank.linalg.factorize import Factors, output_pair
from onnxrank.linalg.gram import Array, CrossMoment, SecondMoment
from onnxrank.linalg.regression import ridge

Cut = Callable[[Array, Array, int], Factors]

# None does not refit: with few rows a dimension a fit is noise, and the folds will say so.
RIDGES: tuple[float | None, ...] = (None, 1e-1, 1e-2, 1e-3)


@dataclass(frozen=True, eq=False)
class Drift:
    """Moments of one layer's rows in the original and in the compressed network, in step.

    Attributes
    ----------
    moved : SecondMoment
        Of x'.
    cross : CrossMoment
        Of x' with x.
    pull : CrossMoment or None
        Of x' with ``h − h'``; None if the layer is added to no stream.
    """

    moved: SecondMoment
    cross: CrossMoment
    pull: CrossMoment | None = None

    def __add__(self, other: Drift) -> Drift:
        """Moments of both sets of rows."""
        pull = None if self.pull is None or other.pull is None else self.pull + other.pull
        return Drift(self.moved + other.moved, self.cross + other.cross, pull)

    def target(self, weight: Array) -> tuple[Array, Array]:
        """Covariance of x' with what is wanted of the layer, and the mean of that.

        Returns
        -------
        ndarray of float64, shape (groups, d_in, d_out)
        ndarray of float64, shape (groups, d_out)
        """
        n = max(self.moved.n, 1)
        wanted = self.cross.covariance @ weight
        mean = ((self.cross.sum_y / n)[:, None, :] @ weight)[:, 0]
        if self.pull is not None:
            wanted = wanted + self.pull.covariance
            mean = mean + self.pull.sum_y / n
        return wanted, mean


def fitted(weight: Array, drift: Drift, rank: int, epsilon: float | None, cut: Cut) -> Factors:
    """The factors of a rank that serve best on drifted rows, with the shift of the output.

    Parameters
    ----------
    weight : ndarray of float64, shape (groups, d_in, d_out)
        The original matrix.
    drift : Drift
        Rows to fit to.
    rank : int
        Of the factors.
    epsilon : float or None
        Ridge relative to the mean square of x'; None keeps W and cuts it only.
    cut : callable
        Gives the factors of a weight at a rank in the metric of a covariance.
    """
    covariance = drift.moved.covariance
    wanted, mean = drift.target(weight)
    best = weight
    if epsilon is not None:
        best = weight + ridge(covariance, wanted - covariance @ weight, epsilon)
    pair = cut(best, covariance, rank)
    shift = mean - (drift.moved.mean[:, None, :] @ pair.product)[:, 0]
    return Factors(pair.parts, shift)


def judged(weight: Array, factors: Factors, drift: Drift) -> float:
    """Squared error a row of a pair on drifted rows, less what no pair can change."""
    product = factors.product
    wanted, mean = drift.target(weight)
    covariance = drift.moved.covariance
    error = float(np.sum(product * (covariance @ product)) - 2 * np.sum(product * wanted))
    off = mean - (drift.moved.mean[:, None, :] @ product)[:, 0]
    if factors.bias is not None:
        off = off - factors.bias
    return error + float(np.sum(off**2))


def choose_ridge(weight: Array, folds: Sequence[Drift], rank: int, cut: Cut) -> float | None:
    """The ridge whose fit to each fold does best on the other; None if not refitting does."""
    if any(fold.moved.n == 0 for fold in folds):
        return None
    pairs = ((folds[0], folds[1]), (folds[1], folds[0]))
    scores = [
        sum(judged(weight, fitted(weight, fit, rank, epsilon, cut), other) for fit, other in pairs)
        for epsilon in RIDGES
    ]
    return RIDGES[int(np.argmin(scores))]


def uncentred(drift: Drift) -> Drift:
    """The same moments about zero: what is fitted to them needs no shift."""

    def about_zero(cross: CrossMoment) -> CrossMoment:
        return CrossMoment(cross.n, 0 * cross.sum_x, 0 * cross.sum_y, cross.cross)

    moved = SecondMoment(drift.moved.n, 0 * drift.moved.sum, drift.moved.gram)
    pull = None if drift.pull is None else about_zero(drift.pull)
    return Drift(moved, about_zero(drift.cross), pull)


def compensated(
    weight: Array,
    folds: Sequence[Drift],
    rank: int,
    cut: Cut = output_pair,
    *,
    shifts: bool = True,
) -> tuple[Factors, float | None]:
    """The compensated factors, fitted to both folds, and the ridge that they chose.

    Parameters
    ----------
    weight : ndarray of float64, shape (groups, d_in, d_out)
        The original matrix.
    folds : sequence of Drift
        Two, on disjoint rows.
    rank : int
        Of the factors.
    cut : callable
        Gives the factors of a weight at a rank in the metric of a covariance.
    shifts : bool
        The output can be shifted; if not, the factors have no bias.
    """
    first, second = folds if shifts else map(uncentred, folds)
    epsilon = choose_ridge(weight, (first, second), rank, cut)
    found = fitted(weight, first + second, rank, epsilon, cut)
    return (found if shifts else Factors(found.parts)), epsilon

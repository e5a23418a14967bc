"""How far one output is from another: streaming, and exact to merge."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log10, nan, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxrank.linalg.gram import Array


@dataclass(frozen=True)
class OutputStats:
    """Comparison of a candidate's outputs with a reference's; add the batches' up.

    Attributes
    ----------
    n : int
        Samples: the length of the first axis, 1 for a scalar.
    max_abs : float
        Largest difference of two elements.
    reference_square, error_square : float
        Sums of squares of the reference, and of the difference, over all elements.
    cosine_sum : float
        Sum over samples of the cosine between both samples, each flattened to a vector.
    """

    n: int = 0
    max_abs: float = 0.0
    reference_square: float = 0.0
    error_square: float = 0.0
    cosine_sum: float = 0.0

    @classmethod
    def of(cls, reference: NDArray[Any], candidate: NDArray[Any]) -> OutputStats:
        """Compare two batches of one shape, of floats, ints or bools, in float64."""
        a, b = _samples(reference), _samples(candidate)
        if reference.shape != candidate.shape:
            raise ValueError(f"outputs of shapes {reference.shape} and {candidate.shape}")
        lost = a - b
        return cls(
            n=len(a),
            max_abs=float(np.abs(lost).max(initial=0)),
            reference_square=float(np.square(a).sum()),
            error_square=float(np.square(lost).sum()),
            cosine_sum=float(_cosines(a, b).sum()),
        )

    def __add__(self, other: OutputStats) -> OutputStats:
        """Return the comparison over both sets of samples."""
        return OutputStats(
            self.n + other.n,
            float(np.maximum(self.max_abs, other.max_abs)),  # a NaN stays one
            self.reference_square + other.reference_square,
            self.error_square + other.error_square,
            self.cosine_sum + other.cosine_sum,
        )

    @property
    def relative_l2(self) -> float:
        """``‖a − b‖ / ‖a‖`` over everything; infinite for errors on a zero reference."""
        if self.error_square == 0:
            return 0.0
        return sqrt(self.error_square / self.reference_square) if self.reference_square else inf

    @property
    def cosine(self) -> float:
        """Mean over samples; a zero vector's is 1 to another zero vector, 0 to others."""
        return self.cosine_sum / self.n if self.n else nan

    @property
    def sqnr_db(self) -> float:
        """``10 log10(‖a‖² / ‖a − b‖²)``: infinite without error."""
        relative = self.relative_l2
        if relative == 0 or relative == inf:
            return inf if relative == 0 else -inf
        return -20 * log10(relative)


@dataclass(frozen=True)
class Top1:
    """Agreement of the largest entries along the last axis; add the batches' up.

    Attributes
    ----------
    n : int
        Decisions compared: all positions but the last axis'.
    agreements : int
        Those in which both have the same largest entry (the first of equal ones).
    labelled : int
        Those of which the right answer was given.
    correct_reference, correct_candidate : int
        Those of them that the reference, or the candidate, got right.
    """

    n: int = 0
    agreements: int = 0
    labelled: int = 0
    correct_reference: int = 0
    correct_candidate: int = 0

    @classmethod
    def of(
        cls,
        reference: NDArray[Any],
        candidate: NDArray[Any],
        labels: NDArray[np.integer[Any]] | None = None,
    ) -> Top1:
        """Compare scores of shape (..., classes); labels, if any, of shape (...)."""
        if reference.shape != candidate.shape:
            raise ValueError(f"outputs of shapes {reference.shape} and {candidate.shape}")
        a, b = reference.argmax(axis=-1), candidate.argmax(axis=-1)
        agreements = int((a == b).sum())
        if labels is None:
            return cls(a.size, agreements)
        if labels.shape != a.shape:
            raise ValueError(f"labels of shape {labels.shape} for decisions of shape {a.shape}")
        right = int((a == labels).sum()), int((b == labels).sum())
        return cls(a.size, agreements, a.size, *right)

    def __add__(self, other: Top1) -> Top1:
        """Return the agreement over both sets of decisions."""
        return Top1(
            self.n + other.n,
            self.agreements + other.agreements,
            self.labelled + other.labelled,
            self.correct_reference + other.correct_reference,
            self.correct_candidate + other.correct_candidate,
        )

    @property
    def agreement(self) -> float:
        """Share of decisions alike."""
        return self.agreements / self.n if self.n else nan

    @property
    def accuracy_reference(self) -> float:
        """Share of labelled decisions the reference got right."""
        return self.correct_reference / self.labelled if self.labelled else nan

    @property
    def accuracy_candidate(self) -> float:
        """Share of labelled decisions the candidate got right."""
        return self.correct_candidate / self.labelled if self.labelled else nan


def _samples(x: NDArray[Any]) -> Array:
    """In float64, one flat vector a sample: (n, elements)."""
    if x.dtype.kind in "OSU":
        raise ValueError(f"outputs of type {x.dtype} cannot be compared")
    samples, *rest = x.shape or (1,)
    values: Array = x.astype(np.float64).reshape(samples, prod(rest))
    return values


def _cosines(a: Array, b: Array) -> Array:
    """Cosine of every pair of rows, shape (n,)."""
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = norms[0] * norms[1]
    alike = ((norms[0] == 0) & (norms[1] == 0)).astype(np.float64)
    cosines: Array = np.where(
        product == 0, alike, np.einsum("ni,ni->n", a, b) / np.where(product == 0, 1.0, product)
    )
    return cosines.clip(-1, 1)

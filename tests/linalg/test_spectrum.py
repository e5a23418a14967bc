"""Spectra and ranks against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxrank.linalg.spectrum import (
    CRITERIA,
    Spectrum,
    corrected_rank,
    entropy_rank,
    fold_output_spectra,
    numerical_rank,
    output_spectrum,
    rank_by_energy,
    rank_stable,
    stable_rank,
    utilized_rank,
)

from .cases import maps, moments

QUICK = settings(deadline=None, max_examples=80)
ENERGIES = st.sampled_from([0.5, 0.9, 0.99, 0.999, 0.9999, 1.0])


@QUICK
@given(maps())
def test_spectrum_decomposes(case):
    gram = moments(case[1]).gram
    spectrum = Spectrum.of(gram, vectors=True)
    values, vectors = spectrum.eigenvalues, spectrum.vectors
    scale = max(gram.max(), 1)
    assert (values >= 0).all() and (np.diff(values) <= 0).all()
    np.testing.assert_allclose(vectors * values[:, None] @ vectors.swapaxes(1, 2), gram,
                               atol=1e-12 * scale)  # fmt: skip
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    assert (largest > 0).all()
    np.testing.assert_allclose(Spectrum.of(gram).eigenvalues, values, atol=1e-12 * scale)


@QUICK
@given(maps(), st.booleans())
def test_output_spectrum_is_that_of_the_outputs(case, centered):
    weight, rows = case
    outputs = rows @ weight
    if centered:
        outputs = outputs - outputs.mean(axis=1, keepdims=True)
    got = output_spectrum(weight, moments(rows), centered)
    expected = np.linalg.eigvalsh(outputs.swapaxes(1, 2) @ outputs)[:, ::-1]
    scale = 1 + np.square(rows).sum() * np.square(weight).sum()
    assert got.vectors is None
    np.testing.assert_allclose(got.eigenvalues, expected, atol=1e-12 * scale)


@QUICK
@given(maps(), st.booleans(), st.integers(0, 5))
def test_spectra_of_the_folds_are_those_of_each(case, centered, cut):
    weight, rows = case
    folds = moments(rows[:, :cut]), moments(rows[:, cut:])
    spectra = fold_output_spectra(weight, *folds, centered)
    scale = 1 + np.square(rows).sum() * np.square(weight).sum()
    for got, moment in zip(spectra, (folds[0] + folds[1], *folds), strict=True):
        expected = output_spectrum(weight, moment, centered)
        np.testing.assert_allclose(got.eigenvalues, expected.eigenvalues, atol=1e-12 * scale)


@QUICK
@given(maps(), st.tuples(ENERGIES, ENERGIES))
def test_ranks_rise_with_energy(case, energies):
    weight, rows = case
    low, high = (utilized_rank(weight, moments(rows), energy) for energy in sorted(energies))
    assert low.k_in <= high.k_in and low.k_out <= high.k_out and low.rank <= high.rank
    assert high.rank == min(high.k_in, high.k_out) <= min(weight.shape[1:])


@QUICK
@given(maps(), st.sampled_from([0.5, 0.9, 0.99]))
def test_rank_by_energy_is_the_least_that_reaches_it(case, energy):
    values = Spectrum.of(moments(case[1]).gram).eigenvalues
    k = rank_by_energy(values, energy)
    reached, total = values[:, :k].sum(), values.sum()
    assert reached >= energy * total * (1 - 1e-9)
    assert k == 0 or values[:, : k - 1].sum() < energy * total


def test_rank_by_energy_at_the_edges():
    assert rank_by_energy(np.array([9.0, 1.0]), 0.9) == 1
    assert rank_by_energy(np.array([0.1] * 10), 0.3) == 3
    assert rank_by_energy(np.array([1.0, 0.0, 0.0]), 1.0) == 3
    assert rank_by_energy(np.array([1.0, 0.0, 0.0]), 0.999999) == 1
    assert rank_by_energy(np.zeros(3), 1.0) == 0
    assert rank_by_energy(np.array([[4.0, 0.0], [3.0, 3.0]]), 0.7) == 1
    assert rank_by_energy(np.array([[4.0, 0.0], [3.0, 3.0]]), 0.71) == 2
    for energy in (0, -1, 1.1, np.nan):
        with pytest.raises(ValueError):
            rank_by_energy(np.ones(2), energy)


def test_criteria_agree_on_flat_and_on_empty_spectra():
    for name, criterion in CRITERIA.items():
        assert criterion(np.ones(5), 1.0) == pytest.approx(5), name
        assert criterion(np.zeros((2, 5)), 0.9) == 0, name
    values = np.array([4.0, 1.0, 1e-20])
    assert numerical_rank(values) == 2
    assert stable_rank(values) == 1.25
    share = np.array([2, 1, 1e-10]) / (3 + 1e-10)
    assert entropy_rank(values) == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_corrected_and_stable_ranks():
    assert corrected_rank(100, (90, 92)) == 109
    assert corrected_rank(100, (90, 91)) == 110
    assert corrected_rank(100, (90, 92), limit=105) == 105
    assert corrected_rank(1, (9, 9)) == 0
    assert rank_stable(100, (95, 105))
    assert not rank_stable(100, (94, 100))
    assert rank_stable(3, (2, 3))
    assert rank_stable(100, (90, 100), share=0.1)

from __future__ import annotations

import numpy as np
import pytest

from onnxrank.linalg.thin import FLOOR, thinned


def spectrum(d: int) -> np.ndarray:
    k = np.arange(d)
    return np.exp(-k / 20) + 1e-3 * np.exp(-k / (d / 3)) + 1e-7


def drawn(shares: np.ndarray) -> np.ndarray:
    logs = np.log10(np.maximum(shares, shares[0] * FLOOR))
    return 260 * (logs - logs.min()) / (logs.max() - logs.min())


@pytest.mark.parametrize("d", [3, 64, 768, 4096])
def test_few_points_draw_the_same_curve(d: int) -> None:
    values = spectrum(d)
    points = thinned(values)
    assert len(points) <= 80
    assert points[0][0] == 1 and points[-1][0] == d
    index = np.array([k for k, _ in points]) - 1
    full = drawn(values / values.sum())
    between = np.interp(np.arange(d), index, full[index])
    assert np.abs(between - full).max() <= 0.4


def test_values_are_shares_of_the_energy() -> None:
    points = thinned(np.array([6.0, 3.0, 1.0]))
    assert dict(points) == {1: 0.6, 2: 0.3, 3: 0.1}


def test_groups_are_pooled() -> None:
    assert thinned(np.array([[2.0, 1.0], [4.0, 1.0]])) == ((1, 0.75), (2, 0.25))


def test_noise_is_cut_at_the_limit() -> None:
    noise = np.sort(np.random.default_rng(0).lognormal(0, 4, 4096))[::-1]
    assert len(thinned(noise * np.tile([1, 1e-3], 2048), 80)) == 80


@pytest.mark.parametrize("values", [[1.0], [1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
def test_small_and_flat_spectra(values: list[float]) -> None:
    points = thinned(np.array(values))
    assert points[0][0] == 1 and points[-1][0] == len(values)


def test_no_energy_no_points() -> None:
    assert thinned(np.zeros(5)) == ()

"""What charts hold is what the report says."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from onnxrank.linalg.spectrum import rank_by_energy
from onnxrank.linalg.thin import thinned
from onnxrank.report import charts
from onnxrank.report.axes import Axis, numbers, percents, powers
from onnxrank.report.energies import ladder
from onnxrank.results import Frontier, FrontierPoint

from .reports import analysis, layer, spectrum

ANALYSIS = analysis()


def walked(path: str) -> list[tuple[int, int]]:
    """Places of a path of relative steps."""
    numbers_ = [int(text) for text in re.findall(r"-?\d+", path)]
    steps = np.array(numbers_).reshape(-1, 2).cumsum(axis=0)
    return [tuple(step) for step in steps.tolist()]


def test_curves_lie_where_their_values_are() -> None:
    site = ANALYSIS.sites[20]
    chart = charts.spectrum(site, None, None)
    assert chart is not None
    places = walked(chart.outputs)
    curve = [p for p in site.spectrum_out if p[0] <= min(site.d_in, site.d_out)]
    assert len(places) == len(curve)
    shares = [s for p in (site.spectrum_in, curve) for _, s in p]
    top, bottom = np.log(max(shares)), np.log(min(shares))
    for (x, y), (index, share) in zip(places, curve, strict=True):
        assert x == pytest.approx(1000 * index / 384, abs=0.51)
        assert y == pytest.approx(1000 * (top - np.log(share)) / (top - bottom), abs=0.51)


def test_what_is_not_used_is_shaded_from_the_rank_to_the_full_rank() -> None:
    chart = charts.spectrum(ANALYSIS.sites[20], 40, None)
    assert chart is not None
    assert chart.shade[0] == chart.rank
    assert sum(chart.shade) == 1000
    assert chart.cut == round(1000 * 40 / 384)


def test_marks_that_say_nothing_new_are_left_out() -> None:
    site = replace(ANALYSIS.sites[20], rank_corrected=ANALYSIS.sites[20].rank)
    chart = charts.spectrum(site, site.rank, None)
    assert chart is not None and chart.corrected is None and chart.cut is None


def test_empty_directions_do_not_stretch_the_axis() -> None:
    site = replace(ANALYSIS.sites[0], spectrum_in=((1, 0.9), (383, 1e-4), (384, 0.0)))
    chart = charts.spectrum(replace(site, spectrum_out=site.spectrum_in), None, None)
    assert chart is not None
    assert [tick.label for tick in chart.y_ticks] == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]
    assert walked(chart.inputs)[-1] == (1000, 1000)


def test_no_spectra_no_chart() -> None:
    assert charts.spectrum(replace(ANALYSIS.sites[0], spectrum_in=()), None, None) is None


def test_bars_are_as_high_as_layers_are_used() -> None:
    depth = charts.depth(ANALYSIS.sites, [], "m")
    for bar, site in zip(depth.bars, ANALYSIS.sites, strict=True):
        assert site.utilization is not None
        assert bar.height == pytest.approx(1000 * site.utilization, abs=0.51)
        assert bar.y + bar.height == 1000
        assert bar.unsettled is (not site.rank_stable)
    assert depth.corrected.count("M") == sum(not site.rank_stable for site in ANALYSIS.sites)


@pytest.mark.parametrize("count", [1, 2, 9, 300])
def test_ticks_by_depth_are_whole_layers(count: int) -> None:
    sites = (ANALYSIS.sites * 10)[:count]
    ticks = charts.depth(sites, [], "m").x_ticks
    assert 1 <= len(ticks) <= 12
    for tick in ticks:
        assert 100 * (int(tick.label) - 0.5) / count == pytest.approx(tick.at)


@pytest.mark.parametrize(
    ("axis", "ticks", "labels"),
    [
        (Axis(0, 384), numbers, ["0", "100", "200", "300"]),
        (Axis(0, 1), percents, ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]),
        (Axis(3e-7, 0.5, log=True), powers, ["10⁻⁵", "10⁻³", "10⁻¹"]),
        (Axis(0.002, 0.03, log=True), numbers, ["0.002", "0.005", "0.01", "0.02"]),
        (Axis(0.3, 0.8, log=True), powers, ["0.5"]),
    ],
)
def test_ticks_are_round(axis: Axis, ticks, labels: list[str]) -> None:
    assert [tick.label for tick in ticks(axis, 5)] == labels


def test_the_frontier_needs_two_points() -> None:
    one = FrontierPoint(0.5, 0.1, 0.1, True)
    assert charts.frontier(Frontier("weights", "error", (one,))) == ()
    other = FrontierPoint(0.7, 0.01)
    (chart,) = charts.frontier(Frontier("weights", "error", (other, one), 0.05))
    assert chart.limit is not None
    assert [line.kind for line in chart.lines] == ["predicted", "measured"]
    assert [dot.chosen for dot in chart.lines[0].dots] == [True, False]


def test_different_measures_never_share_an_axis() -> None:
    points = (FrontierPoint(0.5, 1e-3, 0.04), FrontierPoint(0.7, 1e-5, 0.01, True))
    found = Frontier("weights", "accuracy lost", points, 0.02, "relative error")
    measured, predicted = charts.frontier(found)
    assert (measured.y_title, predicted.y_title) == ("accuracy lost", "relative error")
    assert measured.limit is not None and predicted.limit is None
    assert [line.kind for line in (*measured.lines, *predicted.lines)] == ["measured", "predicted"]


def test_a_frontier_without_error_is_drawn_on_a_linear_axis() -> None:
    points = (FrontierPoint(0.5, 0.1), FrontierPoint(1.0, 0.0))
    (chart,) = charts.frontier(Frontier("weights", "error", points))
    assert chart.y_ticks[0].label == "0 %"


def test_ranks_at_other_energies_are_within_two_percent() -> None:
    rng = np.random.default_rng(0)
    site = layer(0, 768, 768, 0.5)
    inputs, outputs = spectrum(rng, 768, 0.5), spectrum(rng, 768, 0.7)
    site = replace(site, spectrum_in=thinned(inputs), spectrum_out=thinned(outputs))
    for rung in ladder(replace(ANALYSIS, sites=(site,))):
        if rung.energy != 0.99:  # there it is the report's own rank
            exact = min(rank_by_energy(v, rung.energy) for v in (inputs, outputs))
            assert rung.utilization == pytest.approx(exact / 768, rel=0.02, abs=1.5 / 768)


def test_the_own_energy_is_not_read_from_the_picture() -> None:
    own = next(rung for rung in ladder(ANALYSIS) if rung.energy == 0.99)
    assert own.utilization == pytest.approx(ANALYSIS.mean_layer_utilization)

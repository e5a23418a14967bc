"""Two reports side by side."""

from __future__ import annotations

from dataclasses import replace

from onnxrank.report import render
from onnxrank.report.page import report_page

from .reports import analysis, compressed, inspection

ANALYSIS = analysis()


def test_layers_are_matched_by_name_and_sorted_by_change() -> None:
    other = analysis(energy=0.999)
    pairing = report_page(ANALYSIS, other).pairing
    assert pairing is not None
    assert len(pairing.changes) == 36
    sizes = [abs(change.utilization) for change in pairing.changes]
    assert sizes == sorted(sizes, reverse=True)
    assert (pairing.here, pairing.there) == ("energy 0.99", "energy 0.999")
    assert "36 use less of their directions" in pairing.summary


def test_what_sets_them_apart_names_them() -> None:
    assert ANALYSIS.data is not None
    data = replace(ANALYSIS, data=replace(ANALYSIS.data, source="x/b.npz"))
    model = replace(ANALYSIS, model=replace(ANALYSIS.model, path="b.onnx", sha256="cd"))
    for other, names, kind in (
        (data, ("made up.npz", "b.npz"), "One model on two data sets."),
        (model, ("made up.onnx", "b.onnx"), "Two models on one data set."),
        (ANALYSIS, ("this report", "the other report"), "One model on one data set, measured"),
    ):
        pairing = report_page(ANALYSIS, other).pairing
        assert pairing is not None
        assert (pairing.here, pairing.there) == names
        assert pairing.kind.startswith(kind)


def test_layers_of_one_side_only_are_named() -> None:
    here = replace(ANALYSIS, sites=ANALYSIS.sites[1:])
    there = replace(ANALYSIS, sites=ANALYSIS.sites[:-1])
    pairing = report_page(here, there).pairing
    assert pairing is not None
    assert pairing.only_here == (ANALYSIS.sites[-1].name,)
    assert pairing.only_there == (ANALYSIS.sites[0].name,)


def test_models_without_common_names_stand_below_each_other() -> None:
    sites = tuple(replace(site, name=f"other {site.name}") for site in ANALYSIS.sites)
    other = replace(ANALYSIS, sites=sites, model=replace(ANALYSIS.model, path="b.onnx"))
    page = report_page(ANALYSIS, other)
    assert page.depth_there is not None
    assert page.pairing is not None and "No layer has the same name" in page.pairing.summary
    assert "<h3>b.onnx</h3>" in render(ANALYSIS, other)


def test_the_others_spectrum_is_drawn_into_the_chart() -> None:
    page = report_page(ANALYSIS, analysis(energy=0.999))
    assert all(row.spectrum and row.spectrum.other for row in page.rows)
    assert page.depth is not None and page.depth.other.count("M") == 36


def test_a_report_without_data_can_stand_beside() -> None:
    for pair in ((ANALYSIS, inspection(ANALYSIS)), (inspection(ANALYSIS), ANALYSIS)):
        assert "Side by side" in render(*pair)


def test_what_became_of_the_answers_stands_in_both_columns() -> None:
    pairing = report_page(compressed(ANALYSIS), compressed(ANALYSIS, error=0.031)).pairing
    assert pairing is not None
    figure = next(found for found in pairing.figures if found.name == "answers unchanged")
    words = [text.replace("\N{NO-BREAK SPACE}", " ") for text in (figure.here, figure.there)]
    assert words == ["99.5 %", "98.5 %"]
    assert figure.change.startswith("+1")

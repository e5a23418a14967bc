"""The headline says what can go at what cost, or that nothing can, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxrank.report.page import comparison_page, report_page
from onnxrank.report.verdict import Verdict
from onnxrank.results import OutputError, Pair, Report

from .reports import analysis, comparison, compressed, inspection, planned

ANALYSIS = analysis()


def verdict(report: Report) -> Verdict:
    found = report_page(report, None).verdict
    plain = {"\N{NO-BREAK SPACE}": " ", "\N{RIGHT SINGLE QUOTATION MARK}": "'"}

    def clean(text: str) -> str:
        for old, new in plain.items():
            text = text.replace(old, new)
        return text

    return replace(
        found,
        headline=clean(found.headline),
        sentences=tuple(clean(line) for line in found.sentences),
        warnings=tuple(clean(line) for line in found.warnings),
    )


def test_an_analysis_says_what_can_go_and_what_is_not_known() -> None:
    found = verdict(ANALYSIS)
    assert found.headline == "25 % of the weights can go with 99 % of every layer's energy kept"
    assert any("onnxrank compress" in line for line in found.sentences)
    assert "undecided for lack of data" in found.warnings[0]
    assert "1,600 more samples" in found.warnings[0]


def test_nothing_can_go_and_why() -> None:
    sites = tuple(replace(site, worthwhile=False) for site in ANALYSIS.sites)
    found = verdict(replace(ANALYSIS, sites=sites))
    assert found.headline == "No weight can go with 99 % of every layer's energy kept"
    assert "too many of their directions" in found.sentences[0]


def test_too_little_data_to_tell() -> None:
    sites = tuple(replace(site, rank_stable=False, rows_wanted=7) for site in ANALYSIS.sites)
    found = verdict(replace(ANALYSIS, sites=sites))
    assert found.headline == "Too little data to tell what can go"


def test_a_plan_that_was_not_applied() -> None:
    found = verdict(planned(ANALYSIS))
    assert found.headline == "25 % of the weights can go"
    assert "was not measured" in found.sentences[0]
    report = planned(ANALYSIS)
    assert report.plan is not None
    guess = replace(report, plan=replace(report.plan, predicted_error=0.0009))
    assert verdict(guess).sentences[0].startswith("The outputs change by about 3 %, as predicted")


def test_what_was_gained_and_what_it_cost() -> None:
    found = verdict(compressed(ANALYSIS))
    assert found.headline == "25 % of the weights are gone; 99.5 % of the answers stay the same"
    assert found.sentences[0] == (
        "It runs 1.35 times as fast: 3.10 ms in the place of 4.20 ms for 32 samples."
    )
    assert not found.harmful


@pytest.mark.parametrize(
    ("change", "words", "harmful"),
    [
        ({"accuracy": Pair.of(0.9, 0.9)}, "accuracy stays at 90 %", False),
        ({"accuracy": Pair.of(0.9, 0.895)}, "accuracy goes from 90 % to 89.5 %", False),
        ({"accuracy": Pair.of(0.9, 0.6)}, "accuracy goes from 90 % to 60 %", True),
        ({"top1_agreement": 1.0}, "every answer stays the same", False),
        ({"top1_agreement": 0.99996}, "over 99.99 % of the answers stay the same", False),
        ({"top1_agreement": 0.5}, "only 50 % of the answers stay the same", True),
        ({"top1_agreement": None}, "the outputs change by 1.1 %", False),
        (
            {"top1_agreement": None, "outputs": {"y": OutputError(9.0, 0.8, 0.5, 2.0)}},
            "the outputs change by 80 %",
            True,
        ),
        (
            {"top1_agreement": None, "outputs": {"y": OutputError(0.0, 1e-7, 1.0, 140.0)}},
            "the outputs stay the same",
            False,
        ),
        (
            {"top1_agreement": None, "outputs": {"y": OutputError(None, None, None, None)}},
            "how far the outputs are from the original's is not known",
            False,
        ),
    ],
)
def test_the_cost_is_told_by_what_is_known(
    change: dict[str, object], words: str, harmful: bool
) -> None:
    report = compressed(ANALYSIS)
    assert report.comparison is not None
    found = verdict(replace(report, comparison=replace(report.comparison, **change)))
    assert words in found.headline
    assert found.harmful is harmful


def test_a_slower_result_is_called_that() -> None:
    report = compressed(ANALYSIS)
    assert report.comparison is not None
    slower = replace(report.comparison, latency_ms=Pair.of(3.0, 4.0))
    assert verdict(replace(report, comparison=slower)).sentences[0].startswith("It is not faster")


def test_random_data_are_said_loudly() -> None:
    assert ANALYSIS.data is not None
    found = verdict(replace(ANALYSIS, data=replace(ANALYSIS.data, meaningless=True)))
    assert found.headline == "Meaningless: measured on random data"
    assert found.warnings[0].startswith("Random data.")
    one = comparison(100, 50)
    alone = comparison_page(replace(one, data=replace(one.data, meaningless=True)))
    assert alone.verdict.headline.startswith("Meaningless")


def test_without_data_nothing_is_claimed() -> None:
    found = verdict(inspection(ANALYSIS))
    assert "could be split" in found.headline
    assert "not known yet" in found.sentences[0]


def test_every_weight_is_counted_once() -> None:
    shared = tuple(replace(site, weight="w") for site in ANALYSIS.sites[:2])
    savings = report_page(replace(ANALYSIS, sites=shared), None).savings
    assert savings is not None
    assert savings.goes + savings.stays + savings.full == shared[0].parameters
    for report in (ANALYSIS, compressed(ANALYSIS), inspection(ANALYSIS)):
        page = report_page(report, None)
        assert sum(part.weights for part in page.parts) == report.model.parameters
        assert sum(part.share for part in page.parts) == pytest.approx(100, abs=0.1)


def test_what_a_unit_of_many_weights_saves_is_counted_once() -> None:
    report = planned(ANALYSIS)
    assert report.plan is not None
    first, second = ANALYSIS.sites[20], ANALYSIS.sites[22]
    whole = first.parameters + second.parameters
    entry = replace(
        report.plan.units[20],
        name="heads",
        sites=(first.name, second.name),
        form="centered",
        rank=8,
        parameters=whole,
        factorized_parameters=whole // 4,
    )
    sites = (first, replace(second, factorizable=True, reason=None))
    plan = replace(report.plan, units=(entry,))
    found = report_page(replace(report, sites=sites, plan=plan), None).savings
    assert found is not None
    assert found.goes == pytest.approx(whole * 3 / 4, abs=2)

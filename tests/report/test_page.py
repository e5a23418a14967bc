"""The page as text: the same bytes, a limit of size, nothing from elsewhere, everything told."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest

from onnxrank.errors import WriteError
from onnxrank.report import render, write
from onnxrank.results import Report

from .reports import (
    HOSTILE,
    analysis,
    comparison,
    compressed,
    inspection,
    layer,
    planned,
)

ANALYSIS = analysis()
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
KINDS = {
    "inspection": inspection(ANALYSIS),
    "analysis": ANALYSIS,
    "planned": planned(ANALYSIS),
    "compressed": compressed(ANALYSIS),
    "empty": replace(ANALYSIS, sites=(), units=(), skipped=(), mean_layer_utilization=None),
    "one layer": replace(ANALYSIS, sites=ANALYSIS.sites[:1]),
    "no spectra": replace(
        ANALYSIS,
        sites=tuple(replace(s, spectrum_in=(), spectrum_out=()) for s in ANALYSIS.sites),
    ),
}


@pytest.fixture(params=KINDS)
def report(request: pytest.FixtureRequest) -> Report:
    return KINDS[request.param]


def test_every_kind_of_report_has_a_page(report: Report) -> None:
    text = render(report)
    assert text.startswith("<!DOCTYPE html>") and text.rstrip().endswith("</html>")
    assert text.count("<h1") == 1


def test_the_same_report_gives_the_same_bytes(report: Report) -> None:
    again = Report.from_dict(report.to_dict())
    assert render(again) == render(report)


def test_against_gives_the_same_bytes() -> None:
    other = analysis(energy=0.999)
    assert render(ANALYSIS, other) == render(ANALYSIS, Report.from_dict(other.to_dict()))


def test_the_policy_comes_before_all_it_governs() -> None:
    text = render(ANALYSIS)
    assert f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">' in text
    assert text.index("Content-Security-Policy") < text.index("<style")


def test_nothing_comes_from_elsewhere(report: Report) -> None:
    text = render(report, ANALYSIS)
    text = text.replace("<wbr>", "").replace(html.escape(HOSTILE), "")
    assert not re.search(r"\b(src|srcset|action|formaction|poster|data)\s*=", text)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', text))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "@import" not in text and "url(" not in text


def test_names_are_escaped_everywhere() -> None:
    nasty = HOSTILE + "\"'`${{7*7}}"
    sites = tuple(
        replace(site, name=f"{nasty}{i}", op=nasty, weight=nasty, reason=nasty)
        for i, site in enumerate(ANALYSIS.sites[:3])
    )
    model = replace(ANALYSIS.model, path=f"a/{nasty}", producer=nasty)
    assert ANALYSIS.data is not None
    data = replace(ANALYSIS.data, source=nasty)
    skipped = tuple(replace(s, name=nasty, op=nasty, reason=nasty) for s in ANALYSIS.skipped)
    report = replace(
        ANALYSIS, sites=sites, model=model, data=data, skipped=skipped, notes=(nasty,), units=()
    )
    text = render(report, replace(report, sites=sites[:2]))
    assert "<img" not in text
    assert text.count("</script>") == 1
    assert "{{7*7}}" in text  # as it is, not as a template


def test_every_layer_and_every_skipped_node_is_told() -> None:
    text = html.unescape(render(ANALYSIS).replace("<wbr>", ""))
    for site in ANALYSIS.sites:
        assert site.name in text
    for skip in ANALYSIS.skipped:
        assert skip.name in text and skip.reason in text
    for index in range(1, len(ANALYSIS.sites) + 1):
        assert f'<tr id="l{index}"' in text
        assert f'<template id="t{index}"' in text


def test_300_wide_layers_fit_into_a_megabyte() -> None:
    large = [layer(i, 4096, 4096, 0.3 + 0.1 * i) for i in range(4)]
    sites = tuple(
        replace(large[i % 4], name=f"/model/encoder/layer.{i}/attention/self/query/MatMul_{i}")
        for i in range(300)
    )
    report = replace(compressed(replace(ANALYSIS, sites=sites)), sites=sites)
    assert len(render(report).encode()) < 1_000_000


def test_a_comparison_alone_has_a_page() -> None:
    text = render(comparison(1000, 600))
    assert "The candidate has 40\N{NO-BREAK SPACE}% fewer weights" in text
    assert "embedding &lt;2&gt;" in text
    assert "<script>" not in text


def test_predicted_and_measured_error_stand_side_by_side() -> None:
    text = render(compressed(ANALYSIS))
    assert (
        "relative error 7.93\N{NO-BREAK SPACE}% measured, 6.51\N{NO-BREAK SPACE}% predicted" in text
    )
    assert 'class="predicted"' in text and 'class="measured"' in text


def test_writing_replaces_a_file_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write(ANALYSIS, path)
    assert path.read_text(encoding="utf-8") == render(ANALYSIS)
    write(comparison(10, 5), path)
    assert path.read_text(encoding="utf-8") == render(comparison(10, 5))
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(WriteError, match="cannot be written"):
        write(ANALYSIS, tmp_path / "nowhere" / "report.html")

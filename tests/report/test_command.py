"""The page from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from onnxrank.cli import main
from onnxrank.report import headline, read, render
from onnxrank.results import Report

from .reports import analysis, comparison


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    analysis().save(path)
    return path


def test_a_page_from_json_alone(saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run("report", saved, "--html", page)
    assert result.exit_code == 0, result.output
    assert page.read_text(encoding="utf-8") == render(analysis())
    assert result.stdout == f"{page}: {headline(analysis())}\n"


def test_two_reports_side_by_side(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    analysis(energy=0.999).save(other)
    result = run("report", saved, "--against", other, "--html", "-")
    assert result.exit_code == 0, result.output
    assert result.stdout == render(analysis(), analysis(energy=0.999))


def test_a_comparison_has_a_page_but_none_beside_it(saved: Path, tmp_path: Path) -> None:
    path, page = tmp_path / "comparison.json", tmp_path / "comparison.html"
    comparison(10, 5).save(path)
    assert run("report", path, "--html", page).exit_code == 0
    result = run("report", path, "--against", saved, "--html", tmp_path / "no.html")
    assert result.exit_code == 2
    assert "a comparison cannot be shown beside another result" in result.stderr
    assert not (tmp_path / "no.html").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "onnxrank.plan/1"}', "\x00"])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    path, page = tmp_path / "bad.json", tmp_path / "bad.html"
    path.write_text(text)
    result = run("report", path, "--html", page)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.output
    assert not page.exists()


def test_a_missing_folder_is_refused_first(saved: Path, tmp_path: Path) -> None:
    result = run("report", saved, "--html", tmp_path / "nowhere" / "a.html")
    assert result.exit_code == 2
    assert "its folder does not exist" in result.stderr


def test_every_command_with_a_report_writes_a_page(case, tmp_path: Path) -> None:
    small = case.model.parent / "small.onnx"
    for words in (
        ["inspect", case.model],
        ["analyze", case.model, "--data", case.data],
        ["compress", case.model, small, "--data", case.data, "--eval", case.evaluation],
    ):
        page, plain = tmp_path / "r.html", tmp_path / "r.json"
        result = run(*words, "--html", page, "--json", plain)
        assert result.exit_code == 0, result.output
        assert page.read_text(encoding="utf-8") == render(read(plain))
    assert Report.load(plain).sites[0].spectrum_in
    page = tmp_path / "c.html"
    result = run("compare", case.model, small, "--data", case.evaluation, "--html", page)
    assert result.exit_code == 0, result.output
    assert "fewer weights" in page.read_text(encoding="utf-8")


def test_only_one_result_goes_to_standard_output(case) -> None:
    result = run("inspect", case.model, "--html", "-", "--json", "-")
    assert result.exit_code == 2
    assert "only one result can go to standard output" in result.stderr
    assert run("inspect", case.model, "--html", "-").stdout.startswith("<!DOCTYPE html>")

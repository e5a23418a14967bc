"""A gate in a pipeline: exit codes, JUnit, and the examples that people copy."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
from click.testing import CliRunner, Result

from onnxrank.cli import main
from onnxrank.errors import DataError
from onnxrank.report.junit import junit
from onnxrank.results import Comparison, OutputError, Pair
from onnxrank.stages.compare import compare
from onnxrank.stages.gates import judge

DOCS = Path(__file__).parents[2] / "docs"
SOURCES = ["examples/github-actions.yml", "examples/pre-commit-config.yaml", "howto/ci.md"]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def comparison(case) -> Comparison:
    """The model against itself, with figures that a test may replace."""
    found = compare(case.model, case.model, case.evaluation, latency=False)
    return replace(found, top1_agreement=0.98, latency_ms=Pair.of(3.0, 2.0))


def test_each_gate_has_a_verdict(comparison: Comparison) -> None:
    gates = judge(comparison, max_error=0.1, min_agreement=0.99, min_speedup=1.5)
    assert [(gate.name, gate.limit) for gate in gates] == [
        ("max-error", 0.1),
        ("min-agreement", 0.99),
        ("min-speedup", 1.5),
    ]
    assert [gate.failure is None for gate in gates] == [True, False, True]
    (slow,) = judge(comparison, max_error=None, min_speedup=1.51)
    assert slow.failure == "the candidate is 1.500 times as fast, less than 1.51"


def test_a_speed_that_was_not_measured_is_no_verdict(comparison: Comparison) -> None:
    unknown = replace(comparison, latency_ms=Pair(None, None, None))
    with pytest.raises(DataError, match="--min-speedup cannot be judged"):
        judge(unknown, min_speedup=1.0)


def test_junit(comparison: Comparison) -> None:
    gates = judge(comparison, max_error=0.1, min_agreement=0.99)
    root = ElementTree.fromstring(junit(comparison, gates, "small.onnx"))
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    cases = {test.get("name"): test for test in suite.iter("testcase")}
    assert list(cases) == ["max-error 0.1", "min-agreement 0.99"]
    assert cases["max-error 0.1"].find("failure") is None
    failure = cases["min-agreement 0.99"].find("failure")
    assert failure is not None and "0.9800" in (failure.get("message") or "")
    figures = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert figures["latency_ms ratio"] == "0.666666667"
    assert figures["relative L2 error of y"] == "0"


def test_junit_of_a_hostile_name(comparison: Comparison) -> None:
    name = 'a<b>&"\x00\x1b]'
    odd = replace(comparison, outputs={name: OutputError(1.0, 0.5, 0.9, 3.0)})
    text = junit(odd, judge(odd, max_error=0.1), name)
    root = ElementTree.fromstring(text)
    failure = root.find(".//failure")
    assert failure is not None and 'a<b>&"' in (failure.text or "")


def test_gates_from_the_command_line(case, tmp_path: Path) -> None:
    words = ["compare", case.model, case.model, "--data", case.evaluation]
    xml = tmp_path / "gates.xml"
    good = run(*words, "--min-speedup", "0.01", "--max-error", "0.1", "--junit", xml)
    assert good.exit_code == 0, good.output
    assert ElementTree.parse(xml).getroot().get("failures") == "0"
    bad = run(*words, "--min-speedup", "1000", "--max-error", "0.1", "--junit", xml)
    assert bad.exit_code == 1
    assert "times as fast, less than 1000" in bad.stderr
    assert ElementTree.parse(xml).getroot().get("failures") == "1"
    alone = run(
        "compare",
        case.model,
        case.model,
        "--data",
        case.evaluation,
        "--no-latency",
        "--max-error",
        "1",
        "--junit",
        "-",
    )
    assert ElementTree.fromstring(alone.stdout).get("tests") == "1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--junit", "gates.xml"], "--junit shows gates"),
        (["--min-speedup", "1", "--no-latency"], "--min-speedup needs the latency"),
        (["--min-speedup", "0"], "--min-speedup"),
        (["--max-error", "1", "--junit", "no/folder/gates.xml"], "no/folder"),
    ],
)
def test_gates_that_cannot_be(case, words: list[str], message: str) -> None:
    result = run("compare", case.model, case.model, "--data", case.evaluation, *words)
    assert result.exit_code == 2
    assert message in result.stderr


def commands() -> list[list[str]]:
    """Every call of onnxrank in the examples and their page, without what the shell makes of it."""
    found = []
    for source in SOURCES:
        text = (DOCS / source).read_text(encoding="utf-8")
        for line in re.findall(r"^(?: *entry:)? *onnxrank (.+)$", text, re.MULTILINE):
            found.append(shlex.split(line.split("||")[0]))
    return found


def test_the_examples_run(case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case.data.rename("calibration.npz")
    case.evaluation.rename("evaluation.npz")
    onnx.save(onnx.load(str(case.model)), "small.onnx")
    assert len(commands()) >= 6
    for words in commands():
        result = run(*words)
        assert result.exit_code in (0, 1), f"{words}: {result.output}"

"""Public names, and the JSON forms of what is saved."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import onnxrank
from onnxrank.differentiable.records import Checkpoint, Recovery
from onnxrank.errors import OnnxRankError
from onnxrank.record import Record
from onnxrank.results import (
    Comparison,
    DataReport,
    ModelInfo,
    OutputError,
    Pair,
    Plan,
    PlanEntry,
    Report,
    SiteReport,
    SkipReport,
    UnitReport,
)

GOLDEN = Path(__file__).parent / "golden"

PLAN = Plan(
    model_sha256="0" * 64,
    settings={"include": [], "exclude": ["head"], "energy": 0.99, "method": "auto"},
    mean_layer_utilization=0.375,
    units=(
        PlanEntry("fc1", "weight", ("fc1",), "centered", 8, None, 6144, 1280, 6, 7, 0.01),
        PlanEntry("fc2", "weight", ("fc2",), None, None, "does not pay at rank 40", 4608, 4608),
    ),
)
COMPARISON = Comparison(
    data=DataReport("eval.npz", 256, 256, "cpu", 0.5),
    outputs={"y": OutputError(0.25, 0.01, 0.9999, 40.0)},
    top1_agreement=0.99,
    accuracy=Pair.of(0.75, 0.5),
    parameters=Pair.of(1000, 500),
    macs=Pair.of(None, None),
    bytes=Pair.of(4000, 2000),
    latency_ms=Pair.of(2.0, 1.0),
    latency_samples=32,
    skipped_outputs={"text": "text"},
)
REPORT = Report(
    model=ModelInfo("model.onnx", "0" * 64, "pytorch 2.7", 17, 10752, 44000, 10752),
    data=DataReport("data.npz", 2048, 2048, "cpu", 1.5),
    settings={"include": [], "exclude": [], "energy": 0.99, "centered": False},
    mean_layer_utilization=0.375,
    mean_layer_utilization_corrected=0.4,
    sites=(
        SiteReport(
            name="fc1",
            op="MatMul",
            weight="w1",
            scope="main",
            d_in=64,
            d_out=96,
            groups=1,
            factorizable=True,
            reason=None,
            parameters=6144,
            macs=6144,
            rows=2048,
            rows_per_dimension=32.0,
            k_in=6,
            k_out=7,
            rank=6,
            rank_corrected=6,
            utilization=0.09375,
            energy=0.99,
            factorized_parameters=960,
            worthwhile=True,
            rank_stable=True,
            rows_wanted=0,
            criteria={"numerical": 64, "entropy": 12.5, "stable": 3.0},
            spectrum_in=((1, 0.5), (64, 0.001)),
        ),
    ),
    units=(UnitReport("fc1", "weight", ("fc1",), 64, 6, 0.09375),),
    skipped=(SkipReport("lookup", "Gather", "main", 512, "lookup", "it is a table"),),
    plan=PLAN,
    comparison=COMPARISON,
    notes=("a note",),
)


RECOVERY = Recovery(
    data=DataReport("data.npz", 896, None, "cpu", 12.5),
    settings={"steps": 300, "rate": 0.001, "labels": False, "loss": "classes"},
    constants=3,
    parameters=960,
    checkpoints=(Checkpoint(0, 0.06, 0.95, None), Checkpoint(300, 0.04, 0.97, None)),
    chosen=300,
    before=COMPARISON,
    after=COMPARISON,
)


def test_public_names() -> None:
    assert sorted(onnxrank.__all__) == onnxrank.__all__
    assert sorted(onnxrank.__all__) == (GOLDEN / "public.txt").read_text().split()
    for name in onnxrank.__all__:
        assert getattr(onnxrank, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="frobnicate"):
        onnxrank.frobnicate  # noqa: B018


@pytest.mark.parametrize(
    ("name", "result"),
    [("report", REPORT), ("plan", PLAN), ("comparison", COMPARISON), ("recovery", RECOVERY)],
)
def test_json_is_golden_and_comes_back(name: str, result: Record) -> None:
    text = (GOLDEN / f"{name}.json").read_text(encoding="utf-8")
    assert result.to_json() == text
    assert type(result).from_dict(json.loads(text)) == result


def test_the_report_has_the_fields_of_the_interface() -> None:
    plain = REPORT.to_dict()
    assert plain["schema"] == "onnxrank.report/1"
    assert {"path", "sha256", "producer", "opset", "parameters", "bytes", "macs"} <= set(
        plain["model"]
    )
    assert {"source", "samples", "rows", "provider", "seconds"} <= set(plain["data"])
    site = (
        "name op weight scope d_in d_out rows k_in k_out rank rank_corrected utilization energy "
        "parameters macs factorized_parameters worthwhile rank_stable"
    )
    assert set(site.split()) <= set(plain["sites"][0])
    assert {"name", "kind", "sites", "size", "used", "utilization"} <= set(plain["units"][0])
    assert {"name", "op", "parameters", "code", "reason"} <= set(plain["skipped"][0])
    assert {"outputs", "top1_agreement", "accuracy", "latency_ms"} <= set(plain["comparison"])


def test_results_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        REPORT.notes = ()  # type: ignore[misc]


def test_numbers_that_json_lacks_become_null() -> None:
    endless = dataclasses.replace(
        COMPARISON, outputs={"y": OutputError(0.0, 0.0, 1.0, float("inf"))}
    )
    assert json.loads(endless.to_json())["outputs"]["y"]["sqnr_db"] is None


def test_csv_has_a_line_a_site() -> None:
    header, line = REPORT.to_csv().splitlines()
    assert header.startswith("name,op,weight,scope,d_in,d_out")
    assert header.endswith("entropy_rank,numerical_rank,stable_rank")
    assert line.startswith("fc1,MatMul,w1,main,64,96")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "onnxrank.plan/2"}, "expected schema onnxrank.plan/1"),
        ({"units": None}, r"plan.units: expected"),
        ({"units": [{"name": 1}]}, r"plan.units\[0\].name: expected str, found 1"),
        ({"units": [{"name": "a"}]}, r"plan.units\[0\].kind: missing"),
    ],
)
def test_a_damaged_plan_says_where(change: dict[str, object], message: str) -> None:
    with pytest.raises(OnnxRankError, match=message):
        Plan.from_dict({**PLAN.to_dict(), **change})


def test_saving_replaces_a_file_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    PLAN.save(path)
    assert Plan.load(path) == PLAN
    assert [item.name for item in tmp_path.iterdir()] == ["plan.json"]


def test_a_dataframe_has_a_row_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    assert [row["name"] for row in REPORT.to_dataframe()] == ["fc1"]

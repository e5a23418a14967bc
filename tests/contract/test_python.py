"""The same from Python: paths or ModelProtos, arrays, iterables or readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxrank as ox
from onnxrank.results import PlanEntry


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self.rows = rows
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)

    def rewind(self) -> None:
        self.feeds = iter([{"x": part} for part in np.split(self.rows, 8)])


def test_the_whole_way(case) -> None:
    rows = np.load(case.data)["x"]
    moments = ox.collect(case.model, {"x": rows})
    report = ox.analyze(case.model, moments, energy=0.99)
    assert report.mean_layer_utilization is not None
    plan = ox.plan(case.model, moments, energy=0.99)
    small = ox.compress(case.model, plan, moments)
    assert isinstance(small, onnx.ModelProto)
    result = ox.compare(case.model, small, str(case.evaluation))
    assert result.parameters.ratio is not None and result.parameters.ratio < 1


def test_paths_and_protos_give_the_same(case) -> None:
    rows = np.load(case.data)["x"]
    proto = onnx.load(str(case.model))
    reports = []
    for model in (case.model, str(case.model), proto, ox.load(proto)):
        report = ox.analyze(model, ox.collect(model, {"x": rows}))
        reports.append(report.sites)
    assert all(sites == reports[0] for sites in reports)


@pytest.mark.parametrize("kind", ["arrays", "feeds", "function", "reader", "path"])
def test_data_in_many_forms(case, kind: str) -> None:
    rows = np.load(case.data)["x"]
    data: dict[str, Any] = {
        "arrays": {"x": rows},
        "feeds": [{"x": part} for part in np.split(rows, 8)],
        "function": lambda: ({"x": part} for part in np.split(rows, 8)),
        "reader": Reader(rows),
        "path": case.data,
    }
    moments = ox.collect(case.model, data[kind])
    assert moments.data.samples == len(rows)
    whole = ox.collect(case.model, {"x": rows})
    for view, folds in moments.views.items():
        gram = sum(fold.gram for fold in folds)
        np.testing.assert_allclose(gram, sum(f.gram for f in whole.views[view]), rtol=1e-4)


def test_options_are_objects(case) -> None:
    run = ox.Run(samples=512, batch_size=64, provider="cpu", threads=1)
    only = ox.Selection(include=("fc1",))
    moments = ox.collect(case.model, str(case.data), run=run, selection=only)
    report = ox.analyze(case.model, moments, selection=only)
    assert [site.name for site in report.sites] == ["fc1"]
    assert [skip.code for skip in report.skipped] == ["excluded"]
    with pytest.raises(ox.MomentsError, match="no moments of the input of node 'fc2'"):
        ox.analyze(case.model, moments)


def test_merging_is_adding(case) -> None:
    rows = np.load(case.data)["x"]
    parts = [ox.collect(case.model, {"x": part}) for part in np.split(rows, 2)]
    merged = ox.merge(parts)
    assert merged.data.samples == len(rows)
    with pytest.raises(ox.MomentsError, match="twice"):
        ox.merge([parts[0], parts[0]])


def test_a_plan_can_be_edited_saved_and_applied(case, tmp_path: Path) -> None:
    moments = ox.collect(case.model, str(case.data))
    plan = ox.plan(case.model, moments, energy=0.99)
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"rank": 8', '"rank": 5'))
    edited = ox.Plan.load(tmp_path / "plan.json")
    small = ox.compress(case.model, edited, moments)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in small.graph.initializer}
    assert shapes["fc1/rank_in.weight"] == (64, 5)


def test_plans_that_do_not_fit_are_refused(case) -> None:
    moments = ox.collect(case.model, str(case.data))
    plan = ox.plan(case.model, moments)

    def changed(**change: Any) -> ox.Plan:
        plain = plan.units[0].to_dict() | change
        entry = PlanEntry.from_dict(plain)
        return ox.Plan(plan.model_sha256, plan.settings, None, (entry,))

    with pytest.raises(ox.PlanError, match="not in 1 to 64"):
        ox.compress(case.model, changed(form="optimal", rank=65), moments)
    with pytest.raises(ox.PlanError, match="no unit 'fc9'"):
        ox.compress(case.model, changed(form="optimal", rank=8, name="fc9"), moments)
    with pytest.raises(ox.PlanError, match="one of centered"):
        ox.compress(case.model, changed(form="magic", rank=8), moments)
    with pytest.raises(ox.PlanError, match="one of auto"):
        ox.plan(case.model, moments, method="magic")
    other = ox.Plan("0" * 64, plan.settings, None, plan.units)
    with pytest.raises(ox.PlanError, match="another model"):
        ox.compress(case.model, other, moments)


def test_random_data_are_marked(case) -> None:
    report = ox.analyze(case.model, ox.collect(case.model, "random:64"))
    assert report.data is not None and report.data.meaningless

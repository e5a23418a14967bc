"""What is wanted, in options: one goal each, and what the words say about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnxrank.cli import main
from onnxrank.graph.cost import parameters_of
from onnxrank.results import Plan, Report


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: str | Path) -> Result:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr, result.stderr


def compressed(case, *words: str | Path, name: str = "small.onnx") -> Report:
    """Compress, and give the report."""
    output = case.model.parent / name
    result = done("compress", case.model, output, "--data", case.data, *words, "--json", "-")
    assert output.exists()
    return Report.from_dict(json.loads(result.stdout))


def planned(case, *words: str | Path, name: str = "plan.json") -> Plan:
    done("plan", case.model, case.model.parent / name, "--data", case.data, *words)
    return Plan.load(case.model.parent / name)


def small(case, name: str = "small.onnx") -> onnx.ModelProto:
    return onnx.load(str(case.model.parent / name))


@pytest.mark.parametrize(("option", "what"), [("params", "parameters"), ("macs", "macs")])
def test_budgets(case, option: str, what: str) -> None:
    report = compressed(case, f"--{option}", "0.6")
    assert report.plan is not None and report.comparison is not None
    pair = getattr(report.comparison, what)
    assert pair.ratio is not None and 0.4 < pair.ratio <= 0.6
    assert report.plan.settings["budget"] == option and report.plan.settings["share"] == 0.6
    assert report.plan.bound is not None and report.plan.predicted_error is not None
    assert report.plan.bound <= report.plan.predicted_error


def test_a_budget_of_bytes(case) -> None:
    compressed(case, "--size", "0.6")
    sizes = [path.stat().st_size for path in (case.model, case.model.parent / "small.onnx")]
    assert sizes[1] <= 0.6 * sizes[0]


@pytest.mark.parametrize("option", ["params", "macs", "size"])
def test_budgets_out_of_reach(case, option: str) -> None:
    result = run(
        "compress", case.model, case.model.parent / "s.onnx", "--data", case.data,
        f"--{option}", "0.001",
    )  # fmt: skip
    refused(result, f"a share of 0.001 of the {option} is out of reach", "reach 0.")
    assert not (case.model.parent / "s.onnx").exists()
    share = result.stderr.split("reach ")[-1].strip().rstrip(")")
    compressed(case, f"--{option}", share)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "half"])
@pytest.mark.parametrize("option", ["params", "macs", "size", "energy", "agreement"])
def test_shares_are_fractions(case, option: str, value: str) -> None:
    result = run("compress", case.model, "s.onnx", "--data", case.data, f"--{option}", value)
    refused(result, f"--{option}")


@pytest.mark.parametrize(
    "pair",
    [
        ("--energy", "0.9", "--params", "0.5"),
        ("--size", "0.5", "--max-drop", "0.1"),
        ("--macs", "0.5", "--plan", "p.json"),
        ("--params", "0.5", "--macs", "0.5", "--size", "0.5"),
    ],
)
def test_goals_exclude_each_other(case, pair: tuple[str, ...]) -> None:
    for command in ("compress", "plan"):
        result = run(command, case.model, "out", "--data", case.data, *pair)
        refused(result, "different goals", *pair[::2])


def test_without_a_goal_it_searches(case) -> None:
    report = compressed(case)
    assert report.frontier is not None
    (chosen,) = [point for point in report.frontier.points if point.chosen]
    assert report.frontier.limit == pytest.approx(0.01)
    assert chosen.measured is not None and chosen.measured <= report.frontier.limit
    assert report.comparison is not None and report.comparison.top1_agreement is not None
    assert report.comparison.top1_agreement > 0.97


def test_tolerances_of_the_search(case) -> None:
    strict = compressed(case, "--agreement", "0.999", name="a.onnx")
    loose = compressed(case, "--agreement", "0.8", "--error", "0.5", name="b.onnx")
    assert strict.frontier is not None and loose.frontier is not None
    assert loose.frontier.limit == pytest.approx(0.2)
    assert parameters_of(small(case, "b.onnx")) < parameters_of(small(case, "a.onnx"))


def test_max_drop_of_accuracy(case) -> None:
    """Labels on the data that judge: the original's own classes, so that none may change."""
    rows = np.load(case.evaluation)["x"]
    import onnxruntime as ort

    y = ort.InferenceSession(str(case.model)).run(None, {"x": rows})[0]
    np.savez(case.evaluation, x=rows, __label__=y.argmax(axis=1))
    report = compressed(case, "--eval", case.evaluation, "--max-drop", "0.02")
    assert report.frontier is not None and report.frontier.error == "accuracy lost"
    assert report.frontier.limit == 0.02
    accuracy = report.comparison.accuracy if report.comparison else None
    assert accuracy is not None and accuracy.original == 1.0
    assert accuracy.candidate is not None and accuracy.candidate >= 0.96


def test_nothing_holds(case) -> None:
    """Full-rank rows, and nothing may change: exit 1, a reason, no file."""
    rows = np.random.default_rng(0).standard_normal((1024, 64)).astype(np.float32)
    np.savez(case.data, x=rows)
    output = case.model.parent / "small.onnx"
    words = ["compress", case.model, output, "--data", case.data, "--agreement", "1"]
    result = run(*words)
    assert result.exit_code == 1
    assert "nothing to gain at this tolerance" in result.stderr
    assert "Nothing is written." in result.stderr
    assert not output.exists()


def test_a_search_needs_samples(case) -> None:
    done("collect", case.model, case.model.parent / "m", "--data", case.data)
    result = run(
        "compress", case.model, "s.onnx", "--moments", case.model.parent / "m", "--max-drop", "0.1"
    )
    refused(result, "give --data as well")
    few = case.model.parent / "few.npz"
    np.savez(few, x=np.load(case.data)["x"][:2])
    refused(run("compress", case.model, "s.onnx", "--data", few), "too few samples")


def test_moments_and_data_together(case) -> None:
    """What was collected is not collected again; samples are needed for the rest."""
    folder = case.model.parent
    done("collect", case.model, folder / "m", "--data", case.data)
    compressed(case, "--moments", folder / "m", "--params", "0.6")


def test_forms_go_with_an_energy(case) -> None:
    words = ["compress", case.model, "s.onnx", "--data", case.data, "--params", "0.5"]
    refused(run(*words, "--method", "svd"), "--method svd goes with --energy")


@pytest.mark.parametrize("words", [("--energy", "0.99"), ("--params", "0.5")])
def test_compensation_helps_and_can_be_left_out(case, words: tuple[str, ...]) -> None:
    errors = []
    for name, extra in (("a.onnx", ()), ("b.onnx", ("--no-compensate",))):
        report = compressed(case, *words, *extra, "--eval", case.evaluation, name=name)
        assert report.comparison is not None and report.plan is not None
        errors.append(report.comparison.outputs["y"].relative_l2)
        refits = [entry for entry in report.plan.units if entry.form == "refit"]
        assert not (extra and refits)
    assert errors[0] <= errors[1] * (1 + 1e-6)  # to rounding
    assert small(case, "a.onnx") != small(case, "b.onnx")


def test_plan_writes_a_plan_and_nothing_else(case) -> None:
    folder = case.model.parent
    before = set(folder.iterdir())
    result = done("plan", case.model, folder / "plan.json", "--data", case.data, "--params", "0.5")
    assert set(folder.iterdir()) == before | {folder / "plan.json"}
    assert "fc1" in result.stdout and "split" in result.stdout
    plan = Plan.load(folder / "plan.json")
    assert plan.settings["share"] == 0.5 and plan.split
    quiet = done("-q", "plan", case.model, folder / "p2", "--data", case.data, "--energy", "0.9")
    assert quiet.output == ""


@pytest.mark.parametrize(
    "goal", [("--params", "0.6"), ("--macs", "0.5"), ("--energy", "0.99"), ("--size", "0.7")]
)
@pytest.mark.parametrize("extra", [(), ("--no-compensate",)])
def test_a_plan_gives_the_same_bytes(case, goal: tuple[str, ...], extra: tuple[str, ...]) -> None:
    compressed(case, *goal, *extra, name="a.onnx")
    planned(case, *goal)
    compressed(case, "--plan", case.model.parent / "plan.json", *extra, name="b.onnx")
    first, second = ((case.model.parent / name).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second


def test_an_edited_plan(case) -> None:
    plan = planned(case, "--params", "0.6")
    path = case.model.parent / "plan.json"
    text = json.loads(path.read_text())
    for entry in text["units"]:
        entry.update(form="centered", rank=5) if entry["name"] == "fc2" else entry.update(
            form=None, rank=None
        )
    path.write_text(json.dumps(text))
    report = compressed(case, "--plan", path)
    assert report.plan is not None and report.plan.settings == plan.settings
    assert {entry.name: entry.rank for entry in report.plan.split} == {"fc2": 5}
    shapes = {t.name: tuple(t.dims) for t in small(case).graph.initializer}
    assert shapes["fc2/rank_in.weight"] == (96, 5) and "w1" in shapes


def test_a_plan_of_nothing_writes_nothing(case) -> None:
    planned(case, "--params", "1")
    path = case.model.parent / "plan.json"
    result = run("compress", case.model, case.model.parent / "s.onnx", "--data", case.data,
                 "--plan", path)  # fmt: skip
    assert result.exit_code == 1 and "Nothing to split" in result.stderr
    assert not (case.model.parent / "s.onnx").exists()


def test_the_selection_of_a_plan_goes_with_it(case) -> None:
    planned(case, "--energy", "0.9", "--include", "fc1")
    compressed(case, "--plan", case.model.parent / "plan.json")
    names = {t.name for t in small(case).graph.initializer}
    assert "fc1/rank_in.weight" in names and "w2" in names


def test_bad_plans(case) -> None:
    folder = case.model.parent
    words = ["compress", case.model, folder / "s.onnx", "--data", case.data, "--plan"]
    refused(run(*words, folder / "none.json"), "none.json")
    (folder / "p.json").write_text("{")
    refused(run(*words, folder / "p.json"), "p.json")
    (folder / "p.json").write_text('{"schema": "onnxrank.report/1"}')
    refused(run(*words, folder / "p.json"), "onnxrank.plan/1")
    plan = planned(case, "--params", "0.6").to_json()
    (folder / "p.json").write_text(plan.replace(json.loads(plan)["model_sha256"], "0" * 64))
    refused(run(*words, folder / "p.json"), "another model")
    (folder / "p.json").write_text(plan.replace('"centered"', '"banana"'))
    refused(run(*words, folder / "p.json"), "banana")
    assert not (folder / "s.onnx").exists()


def test_plans_go_where_they_can(case) -> None:
    words = ["plan", case.model, case.model.parent / "no" / "plan.json", "--data", case.data]
    refused(run(*words), "no")


def test_the_same_seed_the_same_bytes(case) -> None:
    for goal in (("--params", "0.5"), ("--agreement", "0.9"), ("--max-drop", "0.1")):
        for name in ("a.onnx", "b.onnx"):
            compressed(case, *goal, "--seed", "3", name=name)
        first, second = ((case.model.parent / n).read_bytes() for n in ("a.onnx", "b.onnx"))
        assert first == second


def test_the_same_bytes_in_other_processes(case) -> None:
    """Whatever order sets have there."""
    written = []
    for seed in ("1", "2"):
        output = case.model.parent / f"{seed}.onnx"
        words = [sys.executable, "-m", "onnxrank", "-q", "compress", case.model, output]
        words += ["--data", case.data, "--params", "0.5"]
        subprocess.run(words, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        written.append(output.read_bytes())
    assert written[0] == written[1]


def test_latency(tmp_path: Path) -> None:
    """Wide maps on data of few dimensions: pairs of a tenth of the work cannot but be faster."""
    rng = np.random.default_rng(0)
    width, count = 512, 3
    nodes, weights, stream = [], [], "x"
    for k in range(count):
        weights.append(rng.standard_normal((width, width)).astype(np.float32) / width**0.5)
        nodes.append(onnx.helper.make_node("MatMul", [stream, f"w{k}"], [f"y{k}"], name=f"map{k}"))
        stream = f"y{k}"
    shape = ["batch", 16, width]
    graph = onnx.helper.make_graph(
        nodes,
        "wide",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info(stream, onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx"
    )
    few = rng.standard_normal((768, 16, 20)) * 0.8 ** np.arange(20)
    np.savez(tmp_path / "d.npz", x=(few @ rng.standard_normal((20, width))).astype(np.float32))
    words = ["compress", tmp_path / "m.onnx", tmp_path / "s.onnx", "--data", tmp_path / "d.npz"]
    result = done(*words, "--latency", "0.6", "--threads", "1", "--json", "-")
    report = Report.from_dict(json.loads(result.stdout))
    assert report.plan is not None and report.comparison is not None
    assert report.plan.settings["budget"] == "latency" and report.plan.settings["share"] == 0.6
    assert len(report.plan.split) >= 2
    assert report.comparison.parameters.ratio is not None
    assert report.comparison.parameters.ratio < 0.6
    refused(run(*words, "--latency", "0.001", "--threads", "1"), "out of reach")
    done("collect", tmp_path / "m.onnx", tmp_path / "m.moments", "--data", tmp_path / "d.npz")
    words[3:] = ["--moments", tmp_path / "m.moments"]
    refused(run(*words, "--latency", "0.6"), "running samples")

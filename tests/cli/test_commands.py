"""Every command does its job, and says so in the right place with the right exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result

from onnxrank.cli import main
from onnxrank.results import Report


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: str | Path) -> Result:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


def test_inspect(case) -> None:
    result = done("inspect", case.model)
    assert "fc1" in result.stdout
    assert "2 linear maps" in result.stdout
    assert result.stderr == ""


def test_json_to_stdout_stands_alone(case) -> None:
    for words in (
        ["inspect", case.model],
        ["analyze", case.model, "--data", case.data],
        ["compress", case.model, case.model.parent / "s.onnx", "--data", case.data],
    ):
        report = json.loads(done(*words, "--json", "-").stdout)
        assert report["schema"] == "onnxrank.report/1"
        assert [site["name"] for site in report["sites"]] == ["fc1", "fc2"]


def test_analyze(case, tmp_path: Path) -> None:
    result = done(
        "analyze", case.model, "--data", case.data, "--json", tmp_path / "r.json", "--csv", "-"
    )
    report = Report.load(tmp_path / "r.json")
    first = report.sites[0]
    assert first.k_in is not None and first.k_in <= 6
    assert (first.rows, first.rows_per_dimension, first.rank_stable) == (2048, 32.0, True)
    assert report.data is not None and report.data.samples == 2048
    assert report.mean_layer_utilization == pytest.approx(
        np.mean([site.utilization for site in report.sites])
    )
    assert len(result.stdout.splitlines()) == 3


def test_analyze_from_moments_is_the_same(case, tmp_path: Path) -> None:
    done("collect", case.model, tmp_path / "m", "--data", case.data)
    done("analyze", case.model, "--data", case.data, "--json", tmp_path / "a.json")
    done("analyze", case.model, "--moments", tmp_path / "m", "--json", tmp_path / "b.json")
    first, second = Report.load(tmp_path / "a.json"), Report.load(tmp_path / "b.json")
    assert first.sites == second.sites


def test_shards_merge_to_the_whole(case, tmp_path: Path) -> None:
    for index in (1, 2):
        shard = f"{index}/2"
        done("collect", case.model, tmp_path / f"m{index}", "--data", case.data, "--shard", shard)
    done("merge", tmp_path / "m1", tmp_path / "m2", "--output", tmp_path / "m")
    done("analyze", case.model, "--data", case.data, "--json", tmp_path / "a.json")
    done("analyze", case.model, "--moments", tmp_path / "m", "--json", tmp_path / "b.json")
    first, second = Report.load(tmp_path / "a.json"), Report.load(tmp_path / "b.json")
    assert second.data is not None and second.data.samples == 2048
    assert [site.rank for site in first.sites] == [site.rank for site in second.sites]


def test_compress(case, tmp_path: Path) -> None:
    output = tmp_path / "small.onnx"
    result = done(
        "compress", case.model, output, "--data", case.data, "--eval", case.evaluation,
        "--energy", "0.9999", "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert "fc1" in result.stdout
    report = Report.load(tmp_path / "r.json")
    assert report.plan is not None and report.comparison is not None
    assert [entry.rank for entry in report.plan.split][:1] == [8]
    assert report.comparison.data.source == str(case.evaluation)
    error = report.comparison.outputs["y"]
    assert error.relative_l2 is not None and error.relative_l2 < 0.05
    assert report.comparison.parameters.ratio is not None
    assert report.comparison.parameters.ratio < 1
    assert report.comparison.macs.original == 64 * 96 + 96 * 48
    rows = np.load(case.evaluation)["x"]
    sessions = [ort.InferenceSession(path) for path in (case.model, output)]
    before, after = (session.run(None, {"x": rows})[0] for session in sessions)
    assert np.linalg.norm(before - after) / np.linalg.norm(before) == pytest.approx(
        error.relative_l2, rel=1e-2
    )
    properties = {item.key: item.value for item in onnx.load(str(output)).metadata_props}
    assert set(properties) == {
        "onnxrank.version",
        "onnxrank.source_sha256",
        "onnxrank.settings",
        "onnxrank.data",
        "onnxrank.mean_layer_utilization",
    }


def test_compress_twice_gives_the_same_bytes(case, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        done("compress", case.model, tmp_path / name, "--data", case.data)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_compress_keeps_samples_out_for_the_comparison(case, tmp_path: Path) -> None:
    words = ["compress", case.model, tmp_path / "s.onnx", "--data", case.data, "--json", "-"]
    report = json.loads(done(*words, "--energy", "0.999").stdout)
    held, used = report["comparison"]["data"]["samples"], report["data"]["samples"]
    assert held > 0
    assert held + used == 2048
    # What a search looks at and decides by is in neither.
    report = json.loads(done(*words).stdout)
    assert report["comparison"]["data"]["samples"] == held
    assert report["data"]["samples"] < used


def test_compress_from_moments_says_that_nothing_was_compared(case, tmp_path: Path) -> None:
    done("collect", case.model, tmp_path / "m", "--data", case.data)
    result = done("compress", case.model, tmp_path / "s.onnx", "--moments", tmp_path / "m")
    assert "not compared" in result.stdout
    assert (tmp_path / "s.onnx").exists()


def test_dry_run_writes_nothing(case, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    result = done("compress", case.model, tmp_path / "s.onnx", "--data", case.data, "--dry-run")
    assert "fc1" in result.stdout
    assert set(tmp_path.iterdir()) == before


def test_nothing_to_split_is_a_gate(case, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((4096, 64), np.float32)
    np.savez(tmp_path / "full.npz", x=rows)
    output = tmp_path / "s.onnx"
    result = run(
        "compress", case.model, output, "--data", tmp_path / "full.npz", "--energy", "0.9999"
    )
    assert result.exit_code == 1
    assert "Nothing to split" in result.stderr
    assert "does not pay at rank" in result.stdout
    assert not output.exists()


def test_too_few_rows_are_a_reason(case, tmp_path: Path) -> None:
    rows = np.load(case.data)["x"]
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "few.npz", x=rows[:40] + rng.standard_normal((40, 64)).astype(np.float32))
    words = ["compress", case.model, tmp_path / "s.onnx", "--data", tmp_path / "few.npz",
             "--energy", "0.9"]  # fmt: skip
    result = run(*words)
    assert result.exit_code == 1
    assert "rank not settled: wants about" in result.stdout
    done(*words, "--allow-unstable")


@pytest.mark.parametrize("method", ["auto", "centered", "optimal", "projection", "svd"])
def test_every_method(case, tmp_path: Path, method: str) -> None:
    report = json.loads(
        done("compress", case.model, tmp_path / "s.onnx", "--data", case.data,
             "--method", method, "--json", "-").stdout
    )  # fmt: skip
    forms = {unit["form"] for unit in report["plan"]["units"]} - {None}
    assert forms == {"centered" if method == "auto" else method}


def test_compare_and_its_gates(case, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    done("compress", case.model, small, "--data", case.data, "--energy", "0.99")
    words = ["compare", case.model, small, "--data", case.evaluation]
    assert "relative L2" in done(*words).stdout
    plain = json.loads(done(*words, "--json", "-").stdout)
    assert plain["schema"] == "onnxrank.comparison/1"
    assert plain["latency_ms"]["ratio"] > 0
    done(*words, "--max-error", "0.9", "--no-latency")
    missed = run(*words, "--max-error", "1e-9", "--no-latency")
    assert missed.exit_code == 1
    assert "'y'" in missed.stderr
    assert run(*words, "--min-agreement", "1", "--no-latency").exit_code in (0, 1)


def test_quiet_prints_nothing(case, tmp_path: Path) -> None:
    result = done("-q", "compress", case.model, tmp_path / "s.onnx", "--data", case.data)
    assert result.output == ""


def test_interrupted(case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    monkeypatch.setattr("onnxrank.stages.deliver.verify", interrupt)
    result = run("compress", case.model, tmp_path / "s.onnx", "--data", case.data)
    assert result.exit_code == 130
    assert set(tmp_path.iterdir()) == before


def test_the_unexpected_is_one_line(case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("onnxrank.stages.inspect.inspect", fail)
    result = run("inspect", case.model)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ZeroDivisionError: secret (this is a bug in onnxrank")
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" in run("--log-level", "debug", "inspect", case.model).stderr


def test_the_real_executable(case, tmp_path: Path) -> None:
    """Through a pipe: no colours, no progress, the right exit codes."""

    def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "onnxrank", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    output = tmp_path / "small.onnx"
    finished = call("compress", case.model, output, "--data", case.data)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "\x1b" not in finished.stdout
    assert output.exists()
    failed = call("inspect", tmp_path / "none.onnx")
    assert failed.returncode == 2
    assert failed.stderr.startswith("Error: ")
    assert "onnxrank" in call("--version").stdout


def test_a_reader_that_leaves_is_no_error(case) -> None:
    command = f"{sys.executable} -m onnxrank inspect {case.model} | true"
    finished = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert finished.stderr == ""

"""Bad input: one clear line, exit code 2, no file left behind, no traceback."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from onnxrank.cli import main


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(result: Result, *parts: str) -> None:
    """One line on standard error that names what, nothing on standard output, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for part in parts:
        assert part in lines[0], lines[0]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def compressing(case) -> Callable[..., Result]:
    """Compress the case with some words replaced, and see that no file was made."""

    def call(model: Path | None = None, data: object = None, output: Path | None = None) -> Result:
        before = files(case.model.parent)
        result = run(
            "compress",
            model or case.model,
            output or case.model.parent / "small.onnx",
            "--data",
            str(data or case.data),
        )
        assert files(case.model.parent) == before
        return result

    return call


def test_missing_model(compressing, tmp_path: Path) -> None:
    refused(compressing(model=tmp_path / "none.onnx"), "none.onnx", "no such file")


def test_not_onnx(compressing, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("this is no model\n")
    refused(compressing(model=tmp_path / "text.onnx"), "text.onnx", "not an ONNX model")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_truncated_model(compressing, case, tmp_path: Path, kept: float) -> None:
    whole = case.model.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(kept * len(whole))])
    refused(compressing(model=tmp_path / "cut.onnx"), "cut.onnx")


def arrays(**columns: object) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        np.savez(folder / "bad.npz", **columns)
        return folder / "bad.npz"

    return save


def truncated(folder: Path) -> Path:
    path = arrays(x=np.ones((8, 64), np.float32))(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


GOOD = np.ones((8, 64), np.float32)
NAN = np.where(np.arange(512).reshape(8, 64) == 300, np.nan, GOOD).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (arrays(X=GOOD), ["'X'", "'x'"]),
        (arrays(x=GOOD, z=GOOD), ["'z'"]),
        (arrays(x=GOOD.astype(np.float64)), ["'x'", "float32", "float64"]),
        (arrays(x=GOOD.astype(np.int64)), ["'x'", "float32", "int64"]),
        (arrays(x=GOOD[:, :63]), ["'x'", "63"]),
        (arrays(x=GOOD[0]), ["'x'", "shape"]),
        (arrays(x=GOOD[:0]), ["no samples"]),
        (arrays(), []),
        (arrays(x=NAN), ["'x'", "NaN"]),
        (arrays(x=np.where(np.isnan(NAN), np.inf, NAN).astype(np.float32)), ["'x'", "infinity"]),
        (arrays(x=np.array([None] * 8)), ["'x'"]),
        (truncated, ["bad.npz"]),
        (lambda folder: folder / "none.npz", ["none.npz"]),
    ],
    ids=[
        "wrong name",
        "unknown name",
        "float64",
        "int64",
        "wrong width",
        "wrong rank",
        "empty",
        "no arrays",
        "NaN",
        "infinity",
        "objects",
        "truncated",
        "missing",
    ],
)
def test_bad_data(
    compressing, tmp_path: Path, make: Callable[[Path], Path], parts: Iterable[str]
) -> None:
    data = make(tmp_path)
    refused(compressing(data=data), *parts)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(compressing, case, tmp_path: Path, bad: float) -> None:
    proto = onnx.load(str(case.model))
    weight = numpy_helper.to_array(proto.graph.initializer[2]).copy()
    weight[3, 5] = bad
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, "w2"))
    onnx.save(proto, str(tmp_path / "bad.onnx"))
    refused(compressing(model=tmp_path / "bad.onnx"), "fc2", "NaN or infinity")


def test_activations_that_are_no_numbers(compressing, case, tmp_path: Path) -> None:
    proto = onnx.load(str(case.model))
    bias = np.full(96, 3e38, np.float32)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(bias, "b1"))
    proto.graph.node.insert(2, onnx.helper.make_node("Add", ["h1", "b1"], ["h1b"], name="twice"))
    proto.graph.node[3].input[0] = "h1b"
    onnx.save(proto, str(tmp_path / "bad.onnx"))
    refused(compressing(model=tmp_path / "bad.onnx"), "fc2")


def test_output_folder_that_does_not_exist(compressing, tmp_path: Path) -> None:
    refused(compressing(output=tmp_path / "none" / "small.onnx"), "small.onnx", "folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_that_is_read_only(compressing, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(compressing(output=tmp_path / "locked" / "small.onnx"), "permission")


def test_output_folder_that_cannot_be_written(
    compressing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda p, m: "locked" not in str(p) and allowed(p, m))
    refused(compressing(output=tmp_path / "locked" / "small.onnx"), "permission denied")


def test_a_disk_that_is_full(compressing, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, data: bytes) -> None:
        path.write_bytes(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxrank.graph.files._write", fails)
    refused(compressing(), "No space left")


def test_output_that_is_the_input(compressing, case) -> None:
    before = case.model.read_bytes()
    refused(compressing(output=case.model), "model.onnx", "is the model itself")
    refused(compressing(output=case.model.parent / "." / "model.onnx"), "is the model itself")
    assert case.model.read_bytes() == before


def test_a_link_to_the_input_is_the_input(case) -> None:
    link = case.model.parent / "link.onnx"
    link.symlink_to(case.model)
    result = run("compress", case.model, link, "--data", case.data)
    refused(result, "is the model itself")


@pytest.mark.parametrize("command", ["inspect", "analyze", "compare", "collect"])
def test_every_command_refuses_a_missing_model(command: str, case, tmp_path: Path) -> None:
    words = {
        "inspect": ["none.onnx"],
        "analyze": ["none.onnx", "--data", case.data],
        "compare": [case.model, tmp_path / "none.onnx", "--data", case.data],
        "collect": ["none.onnx", tmp_path / "m.moments", "--data", case.data],
    }[command]
    refused(run(command, *words), "none.onnx", "no such file")
    assert not (tmp_path / "m.moments").exists()


def test_pattern_that_matches_nothing(case) -> None:
    result = run("analyze", case.model, "--data", case.data, "--include", "fcc1")
    refused(result, "'fcc1'", "did you mean fc1")


def test_mask_that_is_no_input(case) -> None:
    refused(run("analyze", case.model, "--data", case.data, "--mask", "attention_mask"), "mask")


def test_report_that_cannot_be_written(case, tmp_path: Path) -> None:
    target = tmp_path / "none" / "report.json"
    result = run("analyze", case.model, "--data", case.data, "--json", target)
    refused(result, "report.json", "folder does not exist")


def test_moments_of_another_model(case, tmp_path: Path) -> None:
    assert run("collect", case.model, tmp_path / "m", "--data", case.data).exit_code == 0
    proto = onnx.load(str(case.model))
    proto.doc_string = "another one"
    onnx.save(proto, str(tmp_path / "other.onnx"))
    result = run("analyze", tmp_path / "other.onnx", "--moments", tmp_path / "m")
    refused(result, "belong to another model")


def test_moments_that_are_damaged(case, tmp_path: Path) -> None:
    assert run("collect", case.model, tmp_path / "m", "--data", case.data).exit_code == 0
    whole = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(whole[:-50])
    refused(run("analyze", case.model, "--moments", tmp_path / "m"), str(tmp_path / "m"))
    (tmp_path / "m").write_bytes(b"nothing of the kind")
    refused(run("analyze", case.model, "--moments", tmp_path / "m"), str(tmp_path / "m"))


@pytest.mark.parametrize(
    "words",
    [
        ["--energy", "0"],
        ["--energy", "1.5"],
        ["--energy", "nan"],
        ["--energy", "much"],
        ["--method", "magic"],
        ["--memory", "much"],
        ["--memory", "4XB"],
        ["--align", "0"],
        ["--samples", "0"],
        ["--enrgy", "0.9"],
    ],
)
def test_options_out_of_range(case, words: list[str]) -> None:
    result = run("compress", case.model, "small.onnx", "--data", case.data, *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert words[0] in result.stderr


def test_data_or_moments_are_needed(case) -> None:
    neither = run("analyze", case.model)
    assert neither.exit_code == 2
    assert "give --data DATA or --moments FILE" in neither.stderr


def test_goals_exclude_each_other(case) -> None:
    both = run(
        "compress", case.model, "s.onnx", "--data", case.data, "--params", "0.5", "--macs", "1"
    )
    assert both.exit_code == 2
    assert "--params and --macs are different goals" in both.stderr


def test_near_misses_are_suggested(case) -> None:
    assert "Did you mean 'analyze'?" in run("analyse", case.model).stderr
    assert "--energy" in run("analyze", case.model, "--energie", "0.9").stderr

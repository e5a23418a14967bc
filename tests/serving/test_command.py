"""The command: what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.testing import CliRunner, Result

from onnxrank.cli import main
from onnxrank.serving import TARGETS

from .models import fixed, saved, text


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_bundle(tmp_path: Path) -> None:
    source = saved(text)(tmp_path)
    words = ["bundle", source, "--to", "mlserver", tmp_path / "out", "--name", "m"]
    result = run(*words, "--version", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "m for mlserver, 7 files" in result.stdout
    settings = json.loads((tmp_path / "out/model-settings.json").read_text())
    assert settings["parameters"]["version"] == "3"
    again = run(*words)
    assert again.exit_code == 2
    assert "not empty" in again.stderr and again.stderr.count("\n") == 1


def test_bundle_quietly(tmp_path: Path) -> None:
    result = run("-q", "bundle", saved(text)(tmp_path), "--to", "kserve", tmp_path / "out")
    assert (result.exit_code, result.output) == (0, "")


def test_bundle_names_the_tensor_that_stands_against_it(tmp_path: Path) -> None:
    source = saved(fixed)(tmp_path)
    result = run("bundle", source, "--to", "triton", tmp_path / "out", "--max-batch", "4")
    assert result.exit_code == 2
    assert "input 'image'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_knows_every_target() -> None:
    (option,) = [p for p in main.commands["bundle"].params if p.name == "target"]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == TARGETS

"""What the README shows works: its commands and its Python, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxrank.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Calls of onnxrank in the shell blocks."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    calls = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(call)[1:] for call in calls if call.startswith("onnxrank ")]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_shell_blocks_run_in_order(checkout: Path) -> None:
    assert [words[0] for words in commands()] == ["compress", "compare"]
    for words in commands():
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    assert (checkout / "small.onnx").stat().st_size < 2_500_000


def test_the_python_block_runs(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[1], "README.md", "exec"), {})
    utilization, ratio, agreement = map(float, capsys.readouterr().out.split())
    assert 0.1 < utilization < 0.4
    assert ratio < 0.5
    assert agreement > 0.9


def test_the_loader_is_read(checkout: Path) -> None:
    (checkout / "loader.py").write_text(blocks("python")[0])
    words = ["analyze", "models/vit.onnx", "--data", "loader.py:batches", "--include", "*linear*"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output

"""The help texts are golden: options and names are a contract."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from onnxrank.cli import main

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = ["", *sorted(main.commands)]


def help_of(command: str) -> str:
    words = [*command.split(), "--help"]
    result = CliRunner().invoke(main, words, prog_name="onnxrank", terminal_width=100)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_golden(command: str) -> None:
    path = GOLDEN / f"help{'-' if command else ''}{command}.txt"
    assert help_of(command) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_every_command_shows_an_example_and_explains_its_options(command: str) -> None:
    text = help_of(command)
    assert f"  onnxrank {command} " in text
    for parameter in main.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command} {parameter.name}"

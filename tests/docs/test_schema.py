"""The committed JSON Schemas are those of the code, and hold for what the commands write."""

from __future__ import annotations

import importlib.util
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from onnxrank.cli import main
from onnxrank.record import Record

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("schema", ROOT / "tools" / "schema.py")
assert SPEC is not None and SPEC.loader is not None
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)

# What `finetune` writes needs torch: it has a test of its own.
NAMES = [kind.__name__.lower() for kind in tool.SAVED if kind.__name__ != "Recovery"]
DATA = str(ROOT / "models" / "mlp_calib.npz")
MODEL = str(ROOT / "models" / "mlp.onnx")


def committed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "schema" / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the commands write, by name of its schema."""
    folder = tmp_path_factory.mktemp("written")
    small, plan = str(folder / "small.onnx"), str(folder / "plan.json")
    every = ["--data", DATA, "--samples", "512"]
    unsettled = ["--energy", "0.9", "--allow-unstable"]
    calls = {
        "inspected": ["inspect", MODEL],
        "analyzed": ["analyze", MODEL, *every],
        "searched": ["compress", MODEL, small, *every, "--agreement", "0.5", "--allow-unstable"],
        "compressed": ["compress", MODEL, small, *every, *unsettled],
        "compared": ["compare", MODEL, small, *every],
    }
    for name, call in calls.items():
        run([*call, "--json", str(folder / f"{name}.json")])
    run(["plan", MODEL, plan, *every, *unsettled])
    read = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {
        "plan": [read.pop("plan")],
        "comparison": [read.pop("compared")],
        "report": list(read.values()),
        "recovery": [json.loads((ROOT / "tests/contract/golden/recovery.json").read_text())],
    }


def run(words: list[str]) -> None:
    result = CliRunner().invoke(main, ["-q", *words])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("kind", tool.SAVED)
def test_what_is_committed_is_what_the_code_gives(kind: type[Record]) -> None:
    path = ROOT / "docs" / "schema" / f"{kind.__name__.lower()}.json"
    assert path.read_text() == tool.text(kind), "run: python tools/schema.py"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_commands_write_is_valid(name: str, written: dict[str, list[Any]]) -> None:
    schema = committed(name)
    Draft202012Validator.check_schema(schema)
    for plain in written[name]:
        Draft202012Validator(schema).validate(plain)
    if name == "report":
        assert any(plain["frontier"] for plain in written[name])
        assert any(plain["comparison"] for plain in written[name])


@pytest.mark.parametrize("name", NAMES)
def test_every_change_of_a_field_is_refused(name: str, written: dict[str, list[Any]]) -> None:
    validator = Draft202012Validator(committed(name))
    plain = written[name][-1]
    for field in validator.schema["required"]:
        changes = [
            {**plain, f"{field}_": 1},
            {**plain, field: object()},
            {key: value for key, value in plain.items() if key != field},
        ]
        for changed in changes:
            assert not validator.is_valid(changed), field


def test_records_within_are_held_to_their_fields_too(written: dict[str, list[Any]]) -> None:
    validator, plan = Draft202012Validator(committed("plan")), written["plan"][0]
    for change in ({"rank": "8"}, {"comment": "mine"}):
        changed = deepcopy(plan)
        changed["units"][0].update(change)
        assert not validator.is_valid(changed)


@pytest.mark.slow
def test_what_finetune_writes_is_valid(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="fine-tuning needs the extra finetune")
    small, result = str(tmp_path / "small.onnx"), tmp_path / "recovery.json"
    every = ["--data", DATA, "--samples", "512"]
    run(["compress", MODEL, small, *every, "--params", "0.5", "--allow-unstable"])
    words = ["finetune", MODEL, small, str(tmp_path / "better.onnx"), *every, "--steps", "30"]
    run([*words, "--json", str(result)])
    plain = json.loads(result.read_text())
    Draft202012Validator(committed("recovery")).validate(plain)
    assert plain["checkpoints"]
    assert not Draft202012Validator(committed("recovery")).is_valid({**plain, "x": 1})

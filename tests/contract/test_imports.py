"""Imports go up the list of rooms only, and starting costs little."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxrank

PACKAGE = Path(onnxrank.__file__).parent

# From the ground up: a room may import itself and rooms before it.
ROOMS = [
    "version",
    "errors",
    "record",
    "results",
    "linalg",
    "graph",
    "moments",
    "runtime",
    "stages",
    "report",
    "serving",
    "differentiable",
    "finetune",
    "olive",
    "__init__",
    "terminal",
    "options",
    "cli",
    "__main__",
]

# What must never be loaded by the bare import, and what not even by the command line's help.
HEAVY = ["torch", "ray", "pandas", "onnxruntime", "rich", "scipy", "onnx", "numpy", "jinja2"]


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports when it runs, type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "onnxrank":
                yield from (f"onnxrank.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_up_only(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert here in ROOMS, f"{here} is a room without a place"
    for module in imported(path):
        if module.split(".")[0] == "onnxrank":
            assert ROOMS.index(room(module)) <= ROOMS.index(here), f"{path} imports {module}"


def loaded_after(code: str) -> list[str]:
    """Which heavy packages a fresh interpreter has loaded after `code`."""
    script = (
        f"{code}\nimport sys, json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import onnxrank") == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "from onnxrank.cli import main\n"
        "for words in (['--help'], ['compress', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass"
    )
    assert loaded_after(code) == []


def test_inspect_loads_no_session(tmp_path: Path) -> None:
    model = Path(__file__).parents[1] / "contract" / "none.onnx"
    code = (
        f"import onnxrank\ntry: onnxrank.inspect({str(model)!r})\nexcept onnxrank.ModelError: pass"
    )
    assert set(loaded_after(code)) <= {"onnx", "numpy"}


def test_linear_algebra_leaves_room_for_onnxruntime():
    """Set before numpy is loaded, and only where nothing else was asked for."""
    code = (
        "import os; from click.testing import CliRunner; from onnxrank.cli import main; "
        "CliRunner().invoke(main, ['inspect', 'none.onnx']); "
        "print(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    plain = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    for given, wanted in (({}, None), ({"OPENBLAS_NUM_THREADS": "3"}, "3")):
        told = subprocess.run(
            [sys.executable, "-c", code], env={**plain, **given}, capture_output=True, check=True
        ).stdout.decode()
        assert int(told) >= 1 and wanted in (None, told.strip())

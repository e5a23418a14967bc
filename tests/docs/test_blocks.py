"""What the pages show works: every code block is run, parsed, or of a kind that says why not.

The blocks of a page run in order, in one folder. By default a small network stands in for
models/vit.onnx, so that gates may fail; the slow test takes the model itself.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from scipy.io import wavfile

from onnxrank.cli import main

from .pages import PAGES, ROOT, Block, blocks

# Files that pages speak of as the reader's own.
STAND_INS = {
    "model.onnx": "vit.onnx",
    "calibration.npz": "fashion_calib.npz",
    "evaluation.npz": "fashion_eval.npz",
}

# A network that takes and gives what models/vit.onnx does, and models of the reader that take
# text and sound: inputs, output, nodes, and shapes of the weights.
NETWORKS = {
    "vit.onnx": (
        "float[n, 1, 28, 28] image",
        "float[n, 10] logits",
        """{ patches = Conv <strides = [4, 4]> (image, P)
             flat = Reshape <allowzero = 0> (patches, shape)
             tokens = Transpose <perm = [0, 2, 1]> (flat)
             a = MatMul (tokens, A)  b = Relu (a)  c = MatMul (b, B)  d = Relu (c)
             mean = ReduceMean <axes = [1], keepdims = 0> (d)
             logits = Gemm (mean, H) }""",
        {"P": (48, 1, 4, 4), "A": (48, 160), "B": (160, 48), "H": (48, 10)},
    ),
    "encoder.onnx": (
        "int64[n, t] input_ids, int64[n, t] attention_mask",
        "float[n, t, d] out",
        "{ x = Gather (E, input_ids)  y = MatMul (x, A)  z = Relu (y)  out = MatMul (z, B) }",
        {"E": (64, 16), "A": (16, 32), "B": (32, 8)},
    ),
    "speech.onnx": (
        "float[n, 1, 16000] audio",
        "float[n, d, t] out",
        "{ y = Conv <strides = [160]> (audio, K)  out = Relu (y) }",
        {"K": (24, 1, 400)},
    ),
}

# Commands of others, with the reason why they are not run here.
OTHERS = {
    "git clone": "fetches this repository",
    ". .venv/bin/activate": "changes the shell",
    "python -m venv": "makes an environment; .ci/run does it",
    "pip install": "changes the environment; .ci/run does it",
    "pytest": "would run this test",
    "ruff": "run by .ci/run",
    "mypy": "run by .ci/run",
    "mkdocs build": "run by .ci/run",
    "mkdocs serve": "does not end",
    ".ci/run": "runs this test",
    "python tools/": "run by tests of their own",
    "python -m onnxrank.olive": "run by tests/test_olive.py",
    "olive run": "run by tests/test_olive.py",
    "optimum-cli": "downloads a model",
    "test $?": "the exit code is judged here",
    "cd served": "the folder of a server",
    "python -m pip": "changes the environment",
    "mlserver start": "tests/serving start it",
    "curl": "asks a server; tests/serving do",
    "docker run": "needs Docker; tests/serving run the servers without it",
}

# Commands that need more than is installed with this package: parsed, and run by the slow test.
NEEDS = {"finetune": "torch"}

# Packages that are not installed with this one; blocks that import them run where they are.
FOREIGN = ("torch", "keras", "jax", "transformers", "soundfile")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, with what pages call the reader's own."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "models").mkdir()
    for path in (ROOT / "models").iterdir():
        (tmp_path / "models" / path.name).symlink_to(path)
    for name, model in STAND_INS.items():
        (tmp_path / name).symlink_to(tmp_path / "models" / model)
    for name in NETWORKS.keys() - {"vit.onnx"}:
        onnx.save(network(name), tmp_path / name)
    (tmp_path / "recordings").mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).normal(0, 3000, 40_000).astype(np.int16)
        wavfile.write(tmp_path / "recordings" / f"{number}.wav", 16_000, noise)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network(name: str) -> onnx.ModelProto:
    inputs, output, nodes, weights = NETWORKS[name]
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    model = onnx.parser.parse_model(f"{head} g ({inputs}) => ({output}) {nodes}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 48, 49]), "shape"))
    for weight, shape in weights.items():
        values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, weight))
    return model


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_run_on_a_small_network(page: str, folder: Path) -> None:
    (folder / "models" / "vit.onnx").unlink()
    onnx.save(network("vit.onnx"), folder / "models" / "vit.onnx")
    run_page(page, (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_run_as_they_stand(page: str, folder: Path) -> None:
    for name in NEEDS:
        if f"\nonnxrank {name} " in (ROOT / page).read_text(encoding="utf-8"):
            pytest.importorskip(NEEDS[name], reason=f"'{name}' needs {NEEDS[name]}")
    run_page(page, (0,))


def run_page(page: str, gates: tuple[int, ...]) -> None:
    """Run all blocks; `gates` are the exit codes that `compare` may end with."""
    names: dict[str, Any] = {}
    for block in blocks(page):
        KINDS[block.language](block, gates, names)


def run_shell(block: Block, gates: tuple[int, ...], names: dict[str, Any]) -> None:
    for words in calls(block):
        if words[:2] == ["onnxrank", "finetune"] and not find_spec("torch"):
            main.commands[words[1]].make_context(words[1], words[2:])
        elif words[0] == "onnxrank":
            allowed = gates if words[1] in ("compare", "finetune") else (0,)
            assert invoke(words[1:]) in allowed, f"{block}: {words}"
        else:
            line = " ".join(words)
            assert line.startswith(tuple(OTHERS)), f"{block}: not known how to run '{line}'"


def calls(block: Block) -> list[list[str]]:
    """The commands of a shell block, without what their output is sent to."""
    text = re.sub(r"\\\n\s*", "", block.text)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    parts = [part for line in lines for part in re.split(r"&&|\|\||(?<!\|)\|(?!\|)|>", line)]
    found = [shlex.split(part, comments=True) for part in parts]
    return [words for words in found if words and not (len(words) == 1 and "." in words[0])]


def invoke(words: list[str]) -> int:
    result = CliRunner().invoke(main, words)
    if result.exit_code:
        print(result.output)
    return result.exit_code


def run_python(block: Block, gates: tuple[int, ...], names: dict[str, Any]) -> None:
    code = compile(block.text, str(block), "exec")
    if block.title is not None:
        Path(block.title).write_text(block.text, encoding="utf-8")
    if not foreign(block):
        exec(code, names)


def foreign(block: Block) -> list[str]:
    """Packages that a block imports and that may not be there."""
    if block.language != "python":
        return []
    nodes = list(ast.walk(ast.parse(block.text)))
    found = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    found |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    return sorted({name.partition(".")[0] for name in found} & set(FOREIGN))


def parse_console(block: Block, gates: tuple[int, ...], names: dict[str, Any]) -> None:
    """The output is of one run on one machine; the commands must be understood."""
    typed = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
    assert typed, f"{block}: no line starts with '$ '"
    for line in typed:
        words = shlex.split(line)
        if words[0] == "onnxrank":
            parse(words)
        else:
            assert line.startswith(tuple(OTHERS)), f"{block}: not known how to run '{line}'"


def parse(words: list[str]) -> None:
    main.commands[words[1]].make_context(words[1], words[2:])


def parse_json(block: Block, gates: tuple[int, ...], names: dict[str, Any]) -> None:
    json.loads(block.text)


def nothing(block: Block, gates: tuple[int, ...], names: dict[str, Any]) -> None:
    """Plain text, or the output of a command above."""


KINDS = {
    "bash": run_shell,
    "sh": run_shell,
    "python": run_python,
    "console": parse_console,
    "json": parse_json,
    "text": nothing,
}

FOREIGN_BLOCKS = [block for page in PAGES for block in blocks(page) if foreign(block)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("block", FOREIGN_BLOCKS, ids=str)
def test_blocks_of_other_packages_run_where_they_are(block: Block, folder: Path) -> None:
    for name in foreign(block):
        pytest.importorskip(name, reason=f"{block} needs {name}, which is not installed")
    model = folder / "model.onnx"
    model.unlink()
    path = folder / (block.title or "block.py")
    path.write_text(block.text, encoding="utf-8")
    runpy.run_path(str(path))
    if "model.onnx" in block.text:
        assert invoke(["inspect", "model.onnx"]) == 0


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {option for code in re.findall(r"`(--[^`]+)`", text) for option in options(code)}
    assert named <= known_options(), page


def options(code: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code))


def known_options() -> set[str]:
    commands = [main, *main.commands.values()]
    found = [p for command in commands for p in command.params if isinstance(p, click.Option)]
    return {"--help", *(name for p in found for name in (*p.opts, *p.secondary_opts))}

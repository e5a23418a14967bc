"""The Olive pass in a real workflow; Olive is large, so only where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

PAGE = Path(__file__).parents[1] / "docs/howto/olive.md"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("olive") is None, reason="olive-ai is not installed")
def test_the_workflow_of_the_page(case, tmp_path: Path) -> None:
    case.data.rename(tmp_path / "calibration.npz")
    found = re.search(r"```json\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    workflow = json.loads(found[1])
    del workflow["passes"]["int8"]
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    variables = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1"}

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    package = tmp_path / "package.json"
    package.write_text(python("onnxrank.olive"))
    python("olive", "run", "--config", "workflow.json", "--package-config", "package.json")
    model = onnx.load(str(next((tmp_path / "out").rglob("*.onnx"))))
    assert any(node.name == "fc1/rank_in" for node in model.graph.node)

"""Wheel and sdist of the last commit hold what they should, and the wheel works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_release_is_built_checked_and_tried(tmp_path: Path) -> None:
    words = [sys.executable, "tools/release.py", "--out", str(tmp_path / "dist")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, sdist, tried = done.stdout.splitlines()
    assert wheel.startswith("onnxrank-") and ".whl: " in wheel
    assert sdist.startswith("onnxrank-") and ".tar.gz: " in sdist
    assert tried.startswith("Python 3.")

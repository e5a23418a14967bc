"""Virtual environments of model servers: made once from the registry, kept for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .models import Feeds

_UNREACHABLE = (
    "No matching distribution",
    "Could not find a version",
    "Max retries",
    "Connection",
    "timed out",
)

_RUN = """\
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
with np.load(sys.argv[2]) as file:
    feeds = {name: file[name] for name in file.files}
feeds = {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in feeds.items()}
names = [output.name for output in session.get_outputs()]
values = dict(zip(names, session.run(names, feeds)))
values = {k: v.astype(str) if v.dtype.kind == "O" else v for k, v in values.items()}
np.savez(sys.argv[3], **values)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a server in it.

    Attributes
    ----------
    root : Path
    seconds : float
        Making it took so long.
    megabytes : float
    """

    root: Path
    seconds: float
    megabytes: float

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def packages(self) -> Path:
        return next(self.root.glob("lib/python*/site-packages"))

    def variables(self) -> dict[str, str]:
        """Environment variables with its programs first, and no settings of this process."""
        kept = {k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TMPDIR")}
        return {**kept, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}

    def expected(self, model: Path, feeds: Feeds, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
        """What this environment's own onnxruntime makes of `feeds`."""
        plain = {k: v.astype(str) if v.dtype == object else v for k, v in feeds.items()}
        np.savez(folder / "feeds.npz", **plain)  # type: ignore[arg-type]
        command = [self.bin / "python", "-c", _RUN, model, folder / "feeds.npz", folder / "out.npz"]
        subprocess.run(command, check=True, timeout=120, env=self.variables())
        with np.load(folder / "out.npz") as file:
            return {name: file[name] for name in file.files}


def environment(*requirements: str, below: tuple[int, int]) -> Environment:
    """Make or find an environment; skip the test where that cannot be.

    Parameters
    ----------
    requirements : str
        What pip installs.
    below : (int, int)
        The first version of Python that the server does not support.
    """
    if sys.version_info[:2] >= below:
        pytest.skip(f"{requirements[0]} needs a Python before {below[0]}.{below[1]}")
    if sys.platform != "linux":
        pytest.skip("servers are tested on Linux")
    key = hashlib.sha256(repr((sys.version, requirements)).encode()).hexdigest()[:12]
    root = Path(tempfile.gettempdir()) / f"onnxrank-servers-{os.getuid()}" / key
    record = root / "made.json"
    if not record.exists():
        shutil.rmtree(root, ignore_errors=True)
        start = time.monotonic()
        _make(root, requirements)
        size = sum(p.lstat().st_size for p in root.rglob("*") if not p.is_symlink())
        made = {"seconds": time.monotonic() - start, "megabytes": size / 1e6}
        record.write_text(json.dumps(made))
    return Environment(root, **json.loads(record.read_text()))


def _make(root: Path, requirements: tuple[str, ...]) -> None:
    subprocess.run([sys.executable, "-m", "venv", root], check=True, timeout=120)
    pip = [root / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *requirements], capture_output=True, text=True, timeout=900)
    if done.returncode:
        shutil.rmtree(root, ignore_errors=True)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if any(sign in done.stderr for sign in _UNREACHABLE):
            pytest.skip(f"pip cannot install {requirements[0]} here: {last}")
        pytest.fail(f"pip install {' '.join(requirements)}: {last}")

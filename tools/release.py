"""Build wheel and sdist of the last commit, check what they hold, and try the wheel.

    python tools/release.py [--out dist] [--python python3.10 --python python3.13 ...]

The wheel is installed into a fresh environment of every interpreter, and does the main job there:
it analyzes a model of this repository. Needs the extra ``dev``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Beside the package itself, which must be there to the last file.
BESIDE_WHEEL = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
BESIDE_WHEEL |= {"top_level.txt"}
BESIDE_SDIST = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"}
BESIDE_SDIST |= {"pyproject.toml", "setup.cfg"}


def call(*words: str | Path, cwd: Path = ROOT) -> str:
    """Run a program; its output, or an error that shows it."""
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(out: Path) -> tuple[Path, Path]:
    """Wheel and sdist of the last commit; the wheel is built from the sdist."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "tree.tar"
        call("git", "archive", "--output", archive, "HEAD")
        with tarfile.open(archive) as tree:
            tree.extractall(folder, filter="data")
        call(sys.executable, "-m", "build", "--outdir", out, folder)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    call(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Refuse a file too many or too few."""
    package = set(call("git", "ls-tree", "-r", "--name-only", "HEAD", "onnxrank").split())
    stem = "-".join(wheel.name.split("-")[:2])
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
    _same(found, package | {f"{stem}.dist-info/{name}" for name in BESIDE_WHEEL}, wheel)
    with tarfile.open(sdist) as archive:
        found = {item.name.partition("/")[2] for item in archive.getmembers() if item.isfile()}
    found = {name for name in found if not name.startswith("onnxrank.egg-info/")}
    _same(found, package | BESIDE_SDIST, sdist)


def _same(found: set[str], wanted: set[str], path: Path) -> None:
    stray, missing = sorted(found - wanted), sorted(wanted - found)
    if stray or missing:
        raise SystemExit(f"{path.name}: stray {stray}, missing {missing}")
    print(f"{path.name}: {len(found)} files, {path.stat().st_size:,} bytes")


def try_wheel(wheel: Path, python: str) -> None:
    """Install it into a fresh environment, away from the sources, and analyze a model."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        call(python, "-m", "venv", place / "env")
        scripts = place / "env" / ("Scripts" if sys.platform == "win32" else "bin")
        call(scripts / "python", "-m", "pip", "install", "--quiet", wheel, cwd=place)
        call(scripts / "python", "-m", "pip", "check", cwd=place)
        models = ROOT / "models"
        words = ["analyze", models / "mlp.onnx", "--data", models / "mlp_calib.npz"]
        sinks = ["--json", "report.json", "--html", "report.html"]
        call(scripts / "onnxrank", *words, *sinks, cwd=place)
        report = json.loads((place / "report.json").read_text(encoding="utf-8"))
        version = call(scripts / "python", "--version").strip()
        assert len(report["sites"]) == 3, report["sites"]
        assert "</html>" in (place / "report.html").read_text(encoding="utf-8")
    print(f"{version}: mean layer utilization {report['mean_layer_utilization']:.4f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, check and try."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="Emptied before.")
    parser.add_argument("--python", action="append", help="An interpreter; this one by default.")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.out, ignore_errors=True)
    wheel, sdist = build(options.out)
    check_contents(wheel, sdist)
    for python in options.python or [sys.executable]:
        try_wheel(wheel, python)


if __name__ == "__main__":
    main()

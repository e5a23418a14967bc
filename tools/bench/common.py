"""What the scripts here share: children that are measured, and where results are written.

Peak memory is that of a child process of its own, so the parents import nothing large.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tools" / "RESULTS.md"
PACKAGES = ("onnxruntime-gpu", "onnxruntime", "onnx", "numpy", "scipy")
MIB = 1 << 20

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Usage:
    """What a child process used and gave: seconds of CPU and of wall time, peak bytes."""

    cpu: float
    wall: float
    peak: int
    value: Any


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every script."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--threads", type=int, default=1, help="of both sides (default: 1)")
    found.add_argument("--results", type=Path, default=RESULTS, help="file that is added to")
    found.add_argument("--dry-run", action="store_true", help="print, and add nothing to the file")
    return found


def one_thread(threads: int) -> dict[str, str]:
    """An environment in which linear algebra takes so many threads."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        **{name: str(threads) for name in names},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NO_COLOR": "1",
    }


def limit(threads: int) -> None:
    """Let this process's linear algebra take so many threads; before numpy is imported."""
    assert "numpy" not in sys.modules
    os.environ.update(one_thread(threads))


def run(command: Sequence[str], threads: int, allowed: Iterable[int] = (0,)) -> Usage:
    """Run a command; the last line it prints, if it is JSON, is its value."""
    import time

    began = time.monotonic()
    process = subprocess.Popen(command, env=one_thread(threads), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in allowed:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}\n{text}")
    lines = text.strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except ValueError:
        value = text
    return Usage(
        used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss * 1024, value
    )


def child(script: str, function: str, limit: int, **arguments: Any) -> Usage:
    """Run a function of a script in a process of so many threads; see `serve`."""
    given = json.dumps(arguments, default=str)
    return run([sys.executable, script, "--child", function, given], limit)


def serve(functions: dict[str, Callable[..., Any]]) -> bool:
    """Answer as a child, if this process is one."""
    if len(sys.argv) != 4 or sys.argv[1] != "--child":
        return False
    value = functions[sys.argv[2]](**json.loads(sys.argv[3]))
    print(json.dumps(value))
    return True


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def alternate(
    sides: dict[str, Callable[[], Any]], rounds: int, warm: bool = True
) -> dict[str, list[float]]:
    """CPU seconds of each side, in turns, after a round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + warm):
        for name, side in sides.items():
            before = cpu_seconds()
            side()
            if number >= warm:
                times[name].append(cpu_seconds() - before)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median of the ratios of one side to another within a round."""
    return median(a / b for a, b in zip(times[name], times[base], strict=True))


def neighbours(reference: Any, candidate: Any, among: int = 512) -> float:
    """Share of embeddings whose nearest other one, among so many, stays the same."""
    import numpy as np

    nearest = []
    for rows in (reference[:among], candidate[:among]):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        likeness = unit @ unit.T
        np.fill_diagonal(likeness, -np.inf)
        nearest.append(likeness.argmax(axis=1))
    return float((nearest[0] == nearest[1]).mean())


def machine() -> str:
    """The class of this machine, and the versions of what was run."""
    return f"{os.cpu_count()} cores ({_processor()}), {_gpu()}; {_versions()}"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(v.split(":")[1].strip() for v in text.splitlines() if "model name" in v)
    except (OSError, StopIteration):
        return platform.machine()


def _gpu() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no GPU"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return f"GPU {found.splitlines()[0]}" if found else "no GPU"


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown: names to the left, numbers to the right."""
    lines = [" | ".join(head), "|".join(["---"] + ["---:"] * (len(head) - 1))]
    lines += [" | ".join("" if v is None else str(v) for v in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def command(argv: Sequence[str] = ()) -> str:
    """How this script was called, without the folders of this machine."""
    skip = {"--results", "--dry-run"}
    words = list(argv or sys.argv)
    kept = [word for word, before in zip(words, ["", *words], strict=False)
            if word not in skip and before != "--results"]  # fmt: skip
    script = Path(kept[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return " ".join(["python", str(name), *(shlex.quote(_bare(word)) for word in kept[1:])])


def _bare(word: str) -> str:
    path = Path(word)
    if not path.exists():
        return word
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def add_model(parser: argparse.ArgumentParser) -> None:
    """What is measured: a model, on the first samples of some data."""
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--mask")
    parser.add_argument("--samples", type=int)


def record(options: argparse.Namespace, section: str, *parts: str) -> None:
    """Print what was found, and add it to the end of its section."""
    today = datetime.date.today().isoformat()
    text = "\n\n".join([f"### {today}: `{command()}`", f"{machine()}.", *parts])
    print(text, flush=True)
    if options.dry_run:
        return
    path: Path = options.results
    lines = path.read_text() if path.exists() else _HEAD
    heading = f"## {section}\n"
    before, found, after = lines.partition(heading)
    if not found:
        path.write_text(f"{lines.rstrip()}\n\n{heading}\n{text}\n")
        return
    here, more, rest = after.partition("\n## ")
    body = f"\n{here.strip()}\n\n{text}\n" if here.strip() else f"\n{text}\n"
    path.write_text(before + heading + body + more + rest)


_HEAD = """# Results

What the scripts of `tools/bench/` have printed: the newest of a section stands last. Times are
seconds of CPU (user and system) unless a column says wall; ratios are medians of ratios of runs
that took turns; peaks are those of a process of its own. A figure that could not be measured is
left out.
"""

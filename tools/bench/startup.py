"""How long a command takes to start, and what it imports, beside an empty Python.

python tools/bench/startup.py models/mlp.onnx

Processes are measured whole, in turns; the first round does not count.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import common

HEAVY = ("numpy", "onnx", "onnxruntime", "scipy", "rich", "jinja2", "pandas", "torch")


def imports(words: list[str]) -> str:
    """Which of HEAVY the command has imported when it ends."""
    script = f"""
import json, sys
from onnxrank.cli import main
try:
    main({words!r})
except SystemExit:
    pass
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    return ", ".join(common.run([sys.executable, "-c", script], 1).value) or "none"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    program = str(Path(sys.executable).with_name("onnxrank"))
    commands = {
        "onnxrank --help": ["--help"],
        f"onnxrank inspect {options.model.name}": ["inspect", str(options.model)],
    }
    calls = {"python -c pass": [sys.executable, "-c", "pass"]}
    calls |= {name: [program, *words] for name, words in commands.items()}
    used: dict[str, list[common.Usage]] = {name: [] for name in calls}
    for number in range(options.rounds + 1):
        for name, words in calls.items():
            usage = common.run(words, options.threads)
            if number:
                used[name].append(usage)
    rows = []
    for name, found in used.items():
        wall = [1000 * usage.wall for usage in found]
        cpu = median(1000 * usage.cpu for usage in found)
        loaded = imports(commands[name]) if name in commands else "none"
        rows.append([f"`{name}`", f"{median(wall):.0f}", f"{min(wall):.0f}", f"{cpu:.0f}", loaded])
    head = [f"{options.rounds} runs", "wall, median ms", "minimum", "CPU, median ms", "imports"]
    note = (
        f"Imports among {', '.join(HEAVY)}. tests/contract/test_imports.py fails where help "
        "imports any of these, or `inspect` a runtime."
    )
    common.record(options, "Start-up", common.table(head, rows), note)


if __name__ == "__main__":
    main()

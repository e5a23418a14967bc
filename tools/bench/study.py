"""The paper's other findings (arXiv 2407.04797) on networks that tools/models/ trains.

    python tools/bench/study.py --data DATA.npz --eval LABELLED.npz
        [--networks FILES] [--objectives FILES] [--sizes FILES] [--half 0,1,2,3,4]

`--networks`: the paper's table of each, with all classes and with half of them, in calibration and
in test. `--objectives`: the same network trained in different ways. `--sizes`: the same network of
other widths and depths. Utilization is about zero, as in the paper, unless a column says otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import common
import paper

LESS = [0.9, 0.99, 0.999]


def networks(options: argparse.Namespace) -> Iterable[str]:
    """A table for each network: every energy with all classes, then with half of them."""
    energies = [float(e) for e in paper.ENERGIES.split(",")]
    for path in options.networks:
        for classes in (None, options.half):
            found = paper.study(path, options, energies, classes)
            yield f"{path.stem}. {found.said()}"
            yield common.table(paper.HEAD, (row.cells() for row in found.rows))


def beside(paths: list[Path], options: argparse.Namespace) -> Iterable[str]:
    """A row for each file: accuracy, utilization, what two cuts cost; then its layers by kind."""
    found = {path: paper.study(path, options, LESS) for path in paths}
    head = ["network", "linear maps", "parameters", "accuracy"]
    head += [f"MLU {e:g}" for e in LESS] + [f"about the mean {e:g}" for e in LESS]
    for e in LESS[:2]:
        head += [f"kept at {e:g}", "accuracy change"]
    rows = []
    for path, one in found.items():
        layers = one.rows[0].layers
        cells = [path.stem, str(len(layers)), f"{one.parameters:,}", f"{one.accuracy:.4f}"]
        cells += [f"{row.utilization:.3f}" for row in one.rows]
        cells += [f"{row.centered:.3f}" for row in one.rows]
        for row in one.rows[:2]:
            cells += [f"{row.kept:.3f}", f"{row.change:+.4f}"]
        rows.append(cells)
    first = next(iter(found.values()))
    yield first.said().split(",")[0] + f", judged on {first.judged}."
    yield common.table(head, rows)
    yield common.table(["MLU at 0.99 of", *KINDS], (
        [path.stem, *by_kind(one.rows[1].layers)] for path, one in found.items()))  # fmt: skip


KINDS = ["convolutions", "maps that keep the width (attention)", "that widen it", "that narrow it"]


def by_kind(layers: Iterable[tuple[str, int, int, float]]) -> list[str]:
    """Mean utilization of each kind of layer."""
    shares: list[list[float]] = [[], [], [], []]
    for op, d_in, d_out, share in layers:
        kind = 0 if op == "Conv" else 1 if d_in == d_out else 2 if d_in < d_out else 3
        shares[kind].append(share)
    return [f"{fmean(s):.3f}" if s else "" for s in shares]


def main() -> None:
    parser = common.parser(__doc__)
    paper.add_options(parser)
    for name in ("networks", "objectives", "sizes"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", default=[], metavar="MODEL.onnx")
    parser.add_argument("--half", default="0,1,2,3,4", help="half of the classes")
    options = parser.parse_args()
    common.limit(options.threads)
    if options.networks:
        common.record(options, "The paper's table", *networks(options))
    if options.objectives:
        common.record(options, "With labels and without", *beside(options.objectives, options))
    if options.sizes:
        common.record(options, "Width and depth", *beside(options.sizes, options))


if __name__ == "__main__":
    main()

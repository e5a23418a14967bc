"""Time and memory of collecting moments, over plain inference of the same samples.

    python tools/bench/collect.py MODEL.onnx --data DATA [--mask INPUT] [--samples N] [--rounds 5]

Plain inference is an onnxruntime session with default options. Both sides read the same data,
open their own session in every round, and take turns in one process; memory is that of processes
of their own, with a share of the samples and with eight times as many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common

ROWS = 20.0


def _setting(model: str, data: str, mask: str | None, samples: int, threads: int) -> Any:
    from onnxrank.graph.model import load
    from onnxrank.runtime.data import open_data
    from onnxrank.runtime.session import Run

    run = Run(provider="cpu", threads=threads, samples=samples, mask=mask)
    found = load(model)
    return found, open_data(data, found.inputs, run), run


def _plain(model: Any, source: Any, threads: int) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    for batch in source.batches():
        session.run(None, batch.feeds)


def _collect(model: Any, source: Any, run: Any, rows: float | None) -> Any:
    from dataclasses import replace

    from onnxrank.stages.collect import collect

    return collect(model, source, run=replace(run, rows=rows))


def times(rounds: int, **what: Any) -> dict[str, list[float]]:
    """CPU seconds of the three sides, in turns."""
    model, source, run = _setting(**what)
    return common.alternate(
        {
            "plain": lambda: _plain(model, source, run.threads),
            "every": lambda: _collect(model, source, run, None),
            "drawn": lambda: _collect(model, source, run, ROWS),
        },
        rounds,
    )


def peak(side: str, **what: Any) -> None:
    """Run one side once: only the memory is of interest."""
    model, source, run = _setting(**what)
    if side == "plain":
        _plain(model, source, run.threads)
    else:
        _collect(model, source, run, ROWS if side == "drawn" else None)


def ranks(energy: float, **what: Any) -> dict[str, Any]:
    """Ranks from drawn rows beside those from all rows; the bytes of moments."""
    from onnxrank.stages.measure import measure

    model, source, run = _setting(**what)
    moments = [_collect(model, source, run, rows) for rows in (None, ROWS)]
    every, drawn = (
        measure(
            model, m, energy=energy, centered=False, selection=None, progress=lambda *_: None
        ).ranks
        for m in moments
    )
    raw = [drawn[name].rank / rank.rank - 1 for name, rank in every.items() if rank.rank]
    corrected = [drawn[name].corrected / rank.rank - 1 for name, rank in every.items() if rank.rank]
    folds = [fold for pair in moments[0].views.values() for fold in pair]
    return {
        "raw": sum(raw) / len(raw),
        "corrected": sum(corrected) / len(corrected),
        "bytes": sum(fold.gram.nbytes + fold.sum.nbytes for fold in folds),
        "views": len(moments[0].views),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mask")
    parser.add_argument("--samples", type=int, default=512, help="samples that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--energy", type=float, default=0.99, help="of the ranks compared")
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks out")
    options = parser.parse_args()
    what: dict[str, Any] = {
        "model": str(options.model),
        "data": str(options.data),
        "mask": options.mask,
        "threads": options.threads,
    }

    def child(function: str, samples: int, **more: Any) -> common.Usage:
        return common.child(__file__, function, options.threads, samples=samples, **what, **more)

    found = child("times", options.samples, rounds=options.rounds).value
    known = child("ranks", options.samples, energy=options.energy).value
    few = max(options.samples // 8, 1)
    rows = []
    for side, name in (("plain", "plain inference"), ("every", "collect, every row"),
                       ("drawn", f"collect, --rows {ROWS:g}")):  # fmt: skip
        row = [name, f"{sorted(found[side])[len(found[side]) // 2]:.2f}"]
        row.append(f"{common.ratio(found, side, 'plain'):.2f}")
        if not options.no_memory:
            small, large = (child("peak", n, side=side).peak for n in (few, 8 * few))
            row += [f"{small / common.MIB:.0f}", f"{large / common.MIB:.0f}"]
            row.append(f"{100 * (large / small - 1):+.1f} %")
        rows.append(row)
    head = [f"{options.model.stem}, {options.samples} samples", "CPU s", "over plain"]
    if not options.no_memory:
        head += [f"peak MiB, {few} samples", f"{8 * few} samples", "growth"]
    note = (
        f"{known['views']} inputs of linear maps; their moments take "
        f"{known['bytes'] / common.MIB:.0f} MiB. Ranks at energy {options.energy:g} from "
        f"--rows {ROWS:g}, mean difference to those from every row: {100 * known['raw']:+.1f} %, "
        f"corrected {100 * known['corrected']:+.1f} %."
    )
    common.record(options, "Collection over plain inference", common.table(head, rows), note)


if __name__ == "__main__" and not common.serve({"times": times, "peak": peak, "ranks": ranks}):
    main()

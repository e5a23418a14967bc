"""Collecting beside onnxruntime's own calibrators, on the same model and samples.

    python tools/bench/peers.py MODEL.onnx --data DATA [--mask INPUT] [--samples 128] [--rounds 3]

The calibrators (MinMax, Entropy) of onnxruntime.quantization watch every tensor that operators
read and write, which is what they are for; `collect` watches what linear maps read, but keeps its
second moments. Every run is a process of its own; time is of the work alone, imports aside.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import common
from collect import _setting

SIDES = ("plain", "collect", "MinMax", "Entropy")


class _Reader:
    """Batches for a calibrator."""

    def __init__(self, source: Any) -> None:
        self._batches = source.batches()

    def get_next(self) -> Any:
        """The next feed; None behind the last."""
        batch = next(self._batches, None)
        return None if batch is None else batch.feeds


def work(side: str, **what: Any) -> float:
    """Do it once; return CPU seconds."""
    if side in ("plain", "collect"):
        from collect import _collect, _plain

        model, source, run = _setting(**what)
        import onnxrank.stages.collect  # noqa: F401 - its import is not timed

        before = common.cpu_seconds()
        if side == "plain":
            _plain(model, source, run.threads)
        else:
            _collect(model, source, run, None)
        return common.cpu_seconds() - before
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    model, source, run = _setting(**what)
    _limit_sessions(run.threads)
    before = common.cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            str(model.path),
            augmented_model_path=f"{folder}/augmented.onnx",
            calibrate_method=getattr(CalibrationMethod, side),
        )
        calibrator.collect_data(_Reader(source))
        calibrator.compute_data()
    return common.cpu_seconds() - before


def _limit_sessions(threads: int) -> None:
    """Calibrators make their own session options: give them as many threads."""
    import onnxruntime as ort

    made = ort.SessionOptions

    def options() -> Any:
        found = made()
        found.intra_op_num_threads = threads
        return found

    ort.SessionOptions = options


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mask")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    what: dict[str, Any] = {
        "model": str(options.model),
        "data": str(options.data),
        "mask": options.mask,
        "samples": options.samples,
    }
    used: dict[str, list[common.Usage]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            arguments = {**what, "threads": options.threads, "side": side}
            used[side].append(common.child(__file__, "work", options.threads, **arguments))
    base = [run.value for run in used["plain"]]
    rows = []
    for side in SIDES:
        times = [run.value for run in used[side]]
        over = median(a / b for a, b in zip(times, base, strict=True))
        peak = max(run.peak for run in used[side])
        name = {"plain": "plain inference", "collect": "onnxrank collect, every row"}
        label = name.get(side, f"onnxruntime {side} calibrator")
        rows.append([label, f"{median(times):.2f}", f"{over:.2f}", f"{peak / common.MIB:.0f}"])
    head = [f"{options.model.stem}, {options.samples} samples", "CPU s", "over plain", "peak MiB"]
    common.record(options, "Collection beside onnxruntime's calibrators", common.table(head, rows))


if __name__ == "__main__" and not common.serve({"work": work}):
    main()

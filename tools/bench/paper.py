"""The paper's table (arXiv 2407.04797): what its procedure keeps and loses, without training.

    python tools/bench/paper.py MODEL.onnx --data DATA --eval DATA [--mask INPUT]
        [--classes 0,1,2,3,4] [--energies .9,.99,.999,.9999]

Every layer is projected on the directions that hold a share of the energy of its inputs and
outputs, with one energy for all layers, no compensation, and ranks as they come; the written model
is then run. Parameters are those of the layers that can be factorized.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common

ENERGIES = "0.9,0.99,0.999,0.9999"


def arrays(path: Path, classes: list[int] | None) -> Any:
    """The data of a file; of some classes only, if they are named."""
    if classes is None:
        return str(path)
    import numpy as np

    with np.load(path) as stored:
        taken = np.isin(stored["__label__"], classes)
        return {name: stored[name][taken] for name in stored.files}


def study(options: argparse.Namespace, energies: list[float]) -> tuple[list[list[str]], str]:
    """A row for each energy, and what they were measured on."""
    from onnxrank.graph.model import load
    from onnxrank.runtime.data import open_data
    from onnxrank.runtime.evaluate import Differences, outputs_of
    from onnxrank.runtime.session import Run, open_session
    from onnxrank.stages.collect import collect
    from onnxrank.stages.compress import compress
    from onnxrank.stages.measure import measure
    from onnxrank.stages.plan import decide

    run = Run(provider="cpu", threads=options.threads, samples=options.samples, mask=options.mask)
    held = Run(provider="cpu", threads=options.threads)
    model = load(options.model)
    classes = None if options.classes is None else [int(c) for c in options.classes.split(",")]
    moments = collect(model, open_data(arrays(options.data, classes), model.inputs, run), run=run)
    evaluation = open_data(arrays(options.eval, classes), model.inputs, held)
    names = [info.name for info in model.outputs]

    def outputs(proto: Any) -> list[tuple[Any, dict[str, Any]]]:
        session = open_session(proto, model.folder, held, name=model.name)
        return [(batch, outputs_of(session, names, batch)) for batch in evaluation.batches()]

    reference = outputs(model.proto)
    rows, first = [], Differences()
    for energy in energies:
        measured = measure(
            model, moments, energy=energy, centered=False, selection=None,
            progress=lambda *_: None,
        )  # fmt: skip
        plan = decide(measured, method="projection", align=1, allow_unstable=True, force=False)
        found = Differences()
        for (batch, before), (_, after) in zip(
            reference, outputs(compress(model, plan, moments)), strict=True
        ):
            for name in names:
                found.add(name, before[name], after[name], batch)
        rows.append(_row(energy, measured.mean_utilization, plan, found))
        first = found
    top1 = first.top1
    samples = sum(batch.size for batch, _ in reference)
    said = f"Calibrated on {moments.data.samples} samples, judged on {samples}"
    if classes is not None:
        said += f", all of the classes {options.classes}"
    if top1 is not None and top1.labelled:
        said += f"; accuracy of the original {top1.accuracy_reference:.4f}"
    return rows, said + "."


def _row(energy: float, utilization: float | None, plan: Any, found: Any) -> list[str]:
    can = [e for e in plan.units if e.form is not None or not _held(e)]
    whole = sum(entry.parameters for entry in can)
    kept = sum(entry.factorized_parameters for entry in can)
    stats = next(iter(found.outputs.values()))
    top1 = found.top1
    row = [f"{energy:g}", f"{utilization:.3f}", f"{kept / whole:.3f}"]
    row += [f"{stats.relative_l2:.4f}", f"{stats.cosine:.4f}"]
    row.append("" if top1 is None else f"{top1.agreement:.4f}")
    if top1 is None or not top1.labelled:
        return [*row, ""]
    return [*row, f"{top1.accuracy_candidate - top1.accuracy_reference:+.4f}"]


def _held(entry: Any) -> bool:
    """Whether a unit is kept because nothing can be written in its place."""
    return entry.kept is not None and not entry.kept.startswith("does not pay at rank")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--mask")
    parser.add_argument("--samples", type=int, help="calibrate on the first of them")
    parser.add_argument("--classes", help="use samples of these classes only: 0,1,2")
    parser.add_argument("--energies", default=ENERGIES)
    options = parser.parse_args()
    common.limit(options.threads)
    rows, said = study(options, [float(e) for e in options.energies.split(",")])
    head = ["energy", "MLU", "parameters kept", "relative error", "cosine", "agreement",
            "accuracy change"]  # fmt: skip
    common.record(options, "The paper's table", f"{options.model.stem}. {said}",
                  common.table(head, rows))  # fmt: skip


if __name__ == "__main__":
    main()

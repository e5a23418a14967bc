"""The paper's table (arXiv 2407.04797): what its procedure keeps and loses, without training.

    python tools/bench/paper.py MODEL.onnx --data DATA --eval DATA [--mask INPUT]
        [--classes 0,1,2,3,4] [--energies .9,.99,.999,.9999]

Every layer is projected on the directions that hold a share of the energy of its inputs and
outputs, with one energy for all layers, no compensation, and ranks as they come; the written model
is then run. Parameters are those of the layers that can be factorized.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

ENERGIES = "0.9,0.99,0.999,0.9999"


@dataclass(frozen=True)
class Row:
    """One energy: mean layer utilization about zero and about the mean, and what it cost.

    `layers` holds every linear map in order: operator, sizes and utilization.
    """

    energy: float
    utilization: float
    centered: float
    kept: float
    found: Any
    layers: list[tuple[str, int, int, float]]

    @property
    def change(self) -> float | None:
        """Accuracy less that of the original."""
        top1 = self.found.top1
        if top1 is None or not top1.labelled:
            return None
        return float(top1.accuracy_candidate - top1.accuracy_reference)

    def cells(self) -> list[str]:
        """The row of the table."""
        stats, top1 = next(iter(self.found.outputs.values())), self.found.top1
        row = [f"{self.energy:g}", f"{self.utilization:.3f}", f"{self.centered:.3f}"]
        row += [f"{self.kept:.3f}", f"{stats.relative_l2:.4f}", f"{stats.cosine:.4f}"]
        row.append("" if top1 is None else f"{top1.agreement:.4f}")
        return [*row, "" if self.change is None else f"{self.change:+.4f}"]


HEAD = ["energy", "MLU", "MLU about the mean", "parameters kept", "relative error", "cosine",
        "agreement", "accuracy change"]  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What was found of one model, and on how many samples."""

    rows: list[Row]
    calibrated: int
    judged: int
    parameters: int
    classes: str | None

    @property
    def accuracy(self) -> float | None:
        """That of the original."""
        top1 = self.rows[0].found.top1
        return None if top1 is None or not top1.labelled else float(top1.accuracy_reference)

    def said(self) -> str:
        """What the rows were measured on."""
        said = f"Calibrated on {self.calibrated} samples, judged on {self.judged}"
        if self.classes is not None:
            said += f", all of the classes {self.classes}"
        if self.accuracy is not None:
            said += f"; accuracy of the original {self.accuracy:.4f}"
        return said + "."


def arrays(path: Path, classes: str | None) -> Any:
    """The data of a file; of some classes only, if they are named."""
    if classes is None:
        return str(path)
    import numpy as np

    with np.load(path) as stored:
        taken = np.isin(stored["__label__"], [int(c) for c in classes.split(",")])
        return {name: stored[name][taken] for name in stored.files}


def study(path: Path, options: argparse.Namespace, energies: Sequence[float],
          classes: str | None = None) -> Study:  # fmt: skip
    """Calibrate, project at each energy and run what is written."""
    from onnxrank.graph.model import load
    from onnxrank.runtime.data import open_data
    from onnxrank.runtime.session import Run
    from onnxrank.stages.collect import collect
    from onnxrank.stages.measure import measure
    from onnxrank.stages.plan import decide

    run = Run(provider="cpu", threads=options.threads, samples=options.samples,
              rows=options.rows or None, mask=options.mask)  # fmt: skip
    held = Run(provider="cpu", threads=options.threads)
    model = load(path)
    moments = collect(model, open_data(arrays(options.data, classes), model.inputs, run), run=run)
    evaluation = open_data(arrays(options.eval, classes), model.inputs, held)
    reference = list(_outputs(model, model.proto, evaluation, held))
    rows = []
    for energy in energies:
        about = {
            centered: measure(
                model,
                moments,
                energy=energy,
                centered=centered,
                selection=None,
                progress=lambda *_: None,
            )  # fmt: skip
            for centered in (False, True)
        }
        plan = decide(about[False], method="projection", align=1, allow_unstable=True, force=False)
        found = _differences(model, plan, moments, reference, evaluation, held)
        mean, spread = (about[c].mean_utilization or 0.0 for c in (False, True))
        rows.append(Row(energy, mean, spread, _kept(plan), found, _layers(about[False])))
    judged = sum(batch.size for batch, _ in reference)
    return Study(rows, moments.data.samples, judged, _parameters(model), classes)


def _outputs(model: Any, proto: Any, source: Any, run: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    from onnxrank.runtime.evaluate import outputs_of
    from onnxrank.runtime.session import open_session

    session = open_session(proto, model.folder, run, name=model.name)
    names = [info.name for info in model.outputs]
    for batch in source.batches():
        yield batch, outputs_of(session, names, batch)


def _differences(
    model: Any, plan: Any, moments: Any, reference: list[Any], source: Any, run: Any
) -> Any:
    """What the projected model gives, beside what the original gave."""
    from onnxrank.runtime.evaluate import Differences
    from onnxrank.stages.compress import compress

    found = Differences()
    after = _outputs(model, compress(model, plan, moments), source, run)
    for (batch, before), (_, values) in zip(reference, after, strict=True):
        for name, value in before.items():
            found.add(name, value, values[name], batch)
    return found


def _layers(measured: Any) -> list[tuple[str, int, int, float]]:
    return [
        (site.op, site.d_in, site.d_out, measured.ranks[unit.name].rank / site.full_rank)
        for unit in measured.survey.units
        for site in unit.sites
    ]


def _parameters(model: Any) -> int:
    """Of all floating-point tensors of the graph."""
    from math import prod

    floats = (1, 10, 11, 16)
    return sum(prod(t.dims) for t in model.proto.graph.initializer if t.data_type in floats)


def _kept(plan: Any) -> float:
    """Share of the parameters that stay, of the layers that can be factorized."""
    can = [e for e in plan.units if e.form is not None or not _held(e)]
    whole = sum(entry.parameters for entry in can)
    return float(sum(entry.factorized_parameters for entry in can) / whole)


def _held(entry: Any) -> bool:
    """Whether a unit is kept because nothing can be written in its place."""
    return entry.kept is not None and not entry.kept.startswith("does not pay at rank")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of how a model is calibrated and judged."""
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--mask")
    parser.add_argument("--samples", type=int, help="calibrate on the first of them")
    parser.add_argument("--rows", type=int, default=64, help="a dimension; 0 for all (default: 64)")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    add_options(parser)
    parser.add_argument("--classes", help="use samples of these classes only: 0,1,2")
    parser.add_argument("--energies", default=ENERGIES)
    options = parser.parse_args()
    common.limit(options.threads)
    energies = [float(e) for e in options.energies.split(",")]
    found = study(options.model, options, energies, options.classes)
    common.record(options, "The paper's table", f"{options.model.stem}. {found.said()}",
                  common.table(HEAD, (row.cells() for row in found.rows)))  # fmt: skip


if __name__ == "__main__":
    main()

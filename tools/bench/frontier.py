"""End-to-end error at equal parameters: our plans against one ratio everywhere.

    python tools/bench/frontier.py MODEL.onnx --data DATA --eval DATA [--mask INPUT]
        [--shares 0.75,0.5,0.35,0.25] [--picture FILE.svg]

Shares are of the parameters of the layers that can be factorized. With one ratio everywhere,
weights of less than 1/200 of all parameters (a first convolution, a small classifier) stay whole,
for every method alike. Nothing is written: products of factors are fed to the model as its
weights. Calibration and evaluation data are different samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common


@dataclass(frozen=True)
class Point:
    """What a method keeps and loses."""

    method: str
    share: float
    kept: float
    error: float
    cosine: float
    agreement: float | None
    accuracy: float | None
    note: str = ""


class Bench:
    """A model with everything that methods need, and the original's outputs."""

    def __init__(self, options: Any) -> None:
        from forms import factorizable

        from onnxrank.graph.model import load
        from onnxrank.graph.override import override
        from onnxrank.runtime.data import open_data
        from onnxrank.runtime.replay import Replay
        from onnxrank.runtime.session import Run
        from onnxrank.stages.collect import collect
        from onnxrank.stages.measure import measure
        from onnxrank.stages.work import rows_of_data

        self.run = Run(
            provider="cpu",
            threads=options.threads,
            samples=options.samples,
            mask=options.mask,
        )
        self.model = load(options.model)
        self.source = open_data(options.data, self.model.inputs, self.run)
        self.moments = collect(self.model, self.source, run=self.run)
        self.measured = measure(
            self.model,
            self.moments,
            energy=0.99,
            centered=False,
            selection=None,
            progress=lambda *_: None,
        )
        self.rows = rows_of_data(self.model, self.source, self.run)
        self.units = factorizable(self.measured)
        self.whole = sum(unit.sites[0].parameters for unit in self.units)
        sites = [site for unit in self.units for site in unit.sites]
        self.replay = Replay(override(self.model, sites), self.run)
        held = Run(provider="cpu", threads=options.threads, samples=options.eval_samples)
        evaluation = open_data(options.eval, self.model.inputs, held)
        self.batches = []
        for batch in evaluation.batches():
            start = self.replay.start(batch.feeds)
            self.batches.append((batch, start, self.replay.finish(1, start)))

    @property
    def samples(self) -> int:
        """How many samples are judged on."""
        return sum(batch.size for batch, _, _ in self.batches)

    def judge(self, method: str, share: float, factors: Mapping[str, Any], kept: float,
              note: str = "") -> Point:  # fmt: skip
        """Run the model with the factors' products in the place of its weights."""
        import numpy as np

        from onnxrank.runtime.evaluate import Differences
        from onnxrank.stages.compensate import site_feeds

        units = [unit for unit in self.measured.survey.units if unit.name in factors]
        feeds = site_feeds(self.replay, units, factors)
        found = Differences()
        pairs: tuple[list[Any], list[Any]] = ([], [])
        for batch, start, reference in self.batches:
            outputs = self.replay.finish(1, start, feeds)
            for name, value in reference.items():
                found.add(name, value, outputs[name], batch)
            first = next(iter(reference))
            pairs[0].append(reference[first])
            pairs[1].append(outputs[first])
        stats, top1 = next(iter(found.outputs.values())), found.top1
        agreement = None if top1 is None else top1.agreement
        accuracy = None
        if top1 is not None and top1.labelled:
            accuracy = top1.accuracy_candidate - top1.accuracy_reference
        if top1 is None and pairs[0][0].ndim == 2:
            agreement = common.neighbours(*(np.concatenate(part) for part in pairs))
        return Point(
            method, share, kept, stats.relative_l2, stats.cosine, agreement, accuracy, note
        )

    def one_ratio(self, shares: Sequence[float]) -> Iterator[Point]:
        """Every method with the same share in all layers."""
        from forms import OTHERS, OURS

        from onnxrank.graph.weights import weight_matrix
        from onnxrank.stages.measure import unit_moment

        plans = {share: self.uniform(share) for share in shares}
        units = {unit.name: unit for unit in self.units}
        for method, cut in {**OTHERS, **OURS}.items():
            for share, plan in plans.items():
                factors = {}
                for entry in plan.split:
                    unit = units[entry.name]
                    moment = unit_moment(self.moments, unit)
                    form = cut if method != "centred" or _centers(unit) else OURS["optimal"]
                    weight = weight_matrix(self.model, unit.sites[0])
                    factors[unit.name] = form(weight, moment, entry.rank)
                name = f"{method}, one ratio" if method in OURS else method
                yield self.judge(name, share, factors, self.kept(plan))

    def uniform(self, share: float) -> Any:
        """One share for all weights but those that hold less than 1/200 of the parameters."""
        from onnxrank.stages.uniform import uniform

        return uniform(self.measured, self.budget(share), self.rows, 1, True)

    def compensated(self, shares: Sequence[float]) -> Iterator[Point]:
        """One ratio everywhere, fitted to what the compressed layers before give."""
        from onnxrank.stages.compensate import compensate
        from onnxrank.stages.tasks import tasks

        units = {unit.name: unit for unit in self.measured.survey.units}
        for share in shares:
            plan = self.uniform(share)
            chosen = list(tasks(self.model, units, plan, self.moments))
            batches = list(self.source.batches())
            factors = compensate(self.model, self.replay, chosen, batches, self.run)
            yield self.judge("centred, one ratio, compensated", share, factors, self.kept(plan))

    def budget(self, share: float) -> Any:
        """The share of the whole model at which this share of the layers is left."""
        from onnxrank.stages.budget import Budget
        from onnxrank.stages.costs import Costs

        whole = Costs(self.measured.survey, "params", self.rows).whole
        return Budget("params", 1 - (1 - share) * self.whole / whole)

    def kept(self, plan: Any) -> float:
        """What a plan keeps of the layers that can be factorized."""
        here = {unit.name for unit in self.units}
        return sum(e.factorized_parameters for e in plan.units if e.name in here) / self.whole

    def plans(self, shares: Sequence[float]) -> Iterator[Point]:
        """Budgets: ranks and forms by sensitivity, with and without compensation."""
        from onnxrank.errors import PlanError
        from onnxrank.stages.budget import Planner
        from onnxrank.stages.goal import Manner, fit

        planners: dict[bool, Planner] = {}
        for share in shares:
            for bold in (False, True):
                if bold not in planners:
                    planners[bold] = Planner(
                        self.measured, self.source, self.run, self.rows, allow_unstable=bold
                    )
                planner = planners[bold]
                try:
                    plan = planner.plan(self.budget(share))
                except PlanError:
                    continue
                note = "with layers whose ranks have not settled" if bold else ""
                for compensate in (False, True):
                    factors = fit(planner, Manner(compensate=compensate), plan, self.source,
                                  self.run, lambda *_: None)  # fmt: skip
                    name = "onnxrank" if compensate else "onnxrank, not compensated"
                    yield self.judge(name, share, factors, self.kept(plan), note)
                break


def _centers(unit: Any) -> bool:
    return all(site.centers for site in unit.sites)


def tables(points: Sequence[Point], shares: Sequence[float], classes: bool) -> list[str]:
    """One table for each measure: methods down, shares across."""
    name = "agreement of classes" if classes else "same nearest neighbour"
    kinds = {
        "relative error": lambda p: f"{p.error:.4f}",
        "cosine": lambda p: f"{p.cosine:.4f}",
        name: lambda p: None if p.agreement is None else f"{p.agreement:.4f}",
        "accuracy change": lambda p: None if p.accuracy is None else f"{p.accuracy:+.4f}",
    }
    known = {(p.method, p.share): p for p in points}
    found = []
    for kind, text in kinds.items():
        if all(text(p) is None for p in points):
            continue
        rows = []
        for method in dict.fromkeys(p.method for p in points):
            cells = [known.get((method, share)) for share in shares]
            rows.append([method, *("" if p is None else text(p) for p in cells)])
        found.append(common.table([kind, *(f"{share:.0%}" for share in shares)], rows))
    return found


def picture(points: Sequence[Point], title: str, path: Path) -> None:
    """Error over what is kept, a line a method."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "onnxrank"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for method in dict.fromkeys(p.method for p in points):
        mine = sorted((p for p in points if p.method == method), key=lambda p: p.kept)
        ours = method == "onnxrank"
        axes.plot(
            [100 * p.kept for p in mine],
            [p.error for p in mine],
            marker="o",
            linewidth=2.5 if ours else 1.2,
            markersize=6 if ours else 3.5,
            color="black" if ours else None,
            label=method,
            zorder=3 if ours else 2,
        )
    axes.set_yscale("log")
    axes.set_xlabel("kept of the factorizable parameters, %")
    axes.set_ylabel("relative error of the outputs")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--mask")
    parser.add_argument("--samples", type=int, help="calibrate on the first of them")
    parser.add_argument("--eval-samples", type=int, help="judge on the first of them")
    parser.add_argument("--shares", default="0.75,0.5,0.35,0.25")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    common.limit(options.threads)
    shares = [float(share) for share in options.shares.split(",")]
    bench = Bench(options)
    points: list[Point] = []
    for found in (bench.one_ratio(shares), bench.compensated(shares), bench.plans(shares)):
        for point in found:
            points.append(point)
            print(point, flush=True)
    outputs = bench.batches[0][2]
    classes = any(p.accuracy is not None for p in points) or _scores(bench)
    said = (
        f"{options.model.stem}: {len(bench.units)} weights, {bench.whole:,} of "
        f"{bench.measured.survey.info({}).parameters:,} parameters; {bench.moments.data.samples} "
        f"samples to calibrate with, {bench.samples} to judge on; first output "
        f"'{next(iter(outputs))}'."
    )
    notes = {p.note: sorted({f"{q.share:.0%}" for q in points if q.note == p.note})
             for p in points if p.note}  # fmt: skip
    said += "".join(f" At {', '.join(where)}: {note}." for note, where in notes.items())
    off = max((abs(p.kept - p.share) for p in points), default=0.0)
    said += f" Kept shares are within {100 * off:.1f} points of those asked for."
    parts = [said, *tables(points, shares, classes)]
    if options.picture is not None:
        picture(points, options.model.stem, options.picture)
        at = options.picture.resolve()
        home = options.results.resolve().parent
        if at.is_relative_to(home):
            parts.append(f"![Error over size]({at.relative_to(home)})")
    common.record(options, "End-to-end error at equal parameters", *parts)


def _scores(bench: Bench) -> bool:
    """Whether the evaluation knows classes."""
    from onnxrank.runtime.evaluate import Differences

    batch, _, reference = bench.batches[0]
    found = Differences()
    for name, value in reference.items():
        found.add(name, value, value, batch)
    return found.top1 is not None and not math.isnan(found.top1.agreement)


if __name__ == "__main__":
    main()

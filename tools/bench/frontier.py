"""End-to-end error at equal parameters: plans and compensation against the methods of others.

    python tools/bench/frontier.py MODEL.onnx --data DATA --eval DATA [--mask INPUT]
        [--shares 0.75,0.5,0.35,0.25] [--samples N] [--eval-samples N] [--methods NAME,NAME]
        [--moments FILE] [--picture FILE.svg]

Shares are of the parameters of the layers that can be factorized. The methods of others keep one
ratio everywhere, but for weights of less than 1/200 of all parameters (a first convolution, a
small classifier), which stay whole; BALF's budget is a Lagrangian over the relative error of each
layer (arXiv 2509.25136), any layer taken. Every method gets the same moments; a model is written
in memory and run for each point. Calibration and evaluation data are different samples.

Moments are kept in the file of --moments, and read from there if it is there already. Stopped by
Ctrl-C or `kill`, it records the points so far.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import common

OURS, PLAIN, BALF, PCA = "onnxrank", "onnxrank, not compensated", "BALF", "output PCA"
FROM = time.monotonic()


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

    def __str__(self) -> str:
        values = {"agreement": self.agreement, "accuracy": self.accuracy, "cosine": self.cosine}
        said = ", ".join(f"{name} {v:.4f}" for name, v in values.items() if v is not None)
        return f"{self.method} at {self.kept:.4f}: error {self.error:.4f}, {said}"


def say(what: object) -> None:
    """Progress: what is done, after how many seconds."""
    print(f"{time.monotonic() - FROM:6.0f} s  {what}", flush=True)


class Bench:
    """A model with everything that methods need, and the original's outputs."""

    def __init__(self, options: Any) -> None:
        from forms import factorizable

        from onnxrank.graph.model import load
        from onnxrank.runtime.data import open_data
        from onnxrank.runtime.evaluate import run_outputs
        from onnxrank.runtime.session import Run
        from onnxrank.stages.measure import measure
        from onnxrank.stages.work import rows_of_data

        self.run = Run(
            provider="cpu", threads=options.threads, samples=options.samples, mask=options.mask
        )
        self.model = load(options.model)
        self.source = open_data(options.data, self.model.inputs, self.run)
        self.moments = self._moments(options.moments)
        say("moments are there")
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
        self.parameters = self.measured.survey.info({}).parameters
        held = Run(provider="cpu", threads=options.threads, samples=options.eval_samples)
        evaluation = open_data(options.eval, self.model.inputs, held)
        self.batches = list(run_outputs(self.model, evaluation, held))
        say(f"{self.samples} samples to judge on")

    def _moments(self, path: Path | None) -> Any:
        from onnxrank.moments import Moments
        from onnxrank.stages.collect import collect

        if path is not None and path.exists():
            return Moments.load(path)
        found = collect(self.model, self.source, run=self.run)
        if path is not None:
            found.save(path)
        return found

    @property
    def samples(self) -> int:
        """How many samples are judged on."""
        return sum(batch.size for batch, _ in self.batches)

    def judge(
        self, method: str, share: float, kept: float, factors: Mapping[str, Any], note: str = ""
    ) -> Point:
        """Write a model with these factors in memory, and run it."""
        import numpy as np

        from onnxrank.graph.rewrite import rewrite
        from onnxrank.runtime.evaluate import Differences, outputs_of
        from onnxrank.runtime.session import open_session

        units = [unit for unit in self.measured.survey.units if unit.name in factors]
        written = rewrite(self.model, ((s, factors[u.name]) for u in units for s in u.sites))
        session = open_session(written, self.model.folder, self.run, name=method)
        found = Differences()
        pairs: tuple[list[Any], list[Any]] = ([], [])
        for batch, reference in self.batches:
            outputs = outputs_of(session, list(reference), batch)
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
        point = Point(
            method, share, kept, stats.relative_l2, stats.cosine, agreement, accuracy, note
        )
        say(point)
        return point

    def others(self, shares: Sequence[float], methods: Sequence[str]) -> Iterator[Point]:
        """Pairs cut by the methods of others: one ratio everywhere, and BALF's budget."""
        from forms import OTHERS, optimal, projection, whitening

        uniform = {share: self.uniform(share) for share in shares}
        for method, cut in {**OTHERS, PCA: optimal, BALF: whitening}.items():
            if method not in methods:
                continue
            ranks = {share: self.balf(share) for share in shares} if method == BALF else uniform
            factors: dict[float, dict[str, Any]] = {share: {} for share in shares}
            for unit in self.units:
                here = {share: r[unit.name] for share, r in ranks.items() if unit.name in r}
                found = self._cut(unit, cut, set(here.values()), nested=cut is not projection)
                for share, rank in here.items():
                    factors[share][unit.name] = found[rank]
            for share in shares:
                yield self.judge(method, share, self._kept(ranks[share]), factors[share])

    def _cut(self, unit: Any, cut: Any, ranks: set[int], nested: bool) -> dict[int, Any]:
        """A unit cut to each rank; if nested, the smaller are parts of the largest."""
        from onnxrank.graph.weights import weight_matrix
        from onnxrank.linalg.factorize import Factors
        from onnxrank.stages.measure import unit_moment

        weight, moment = weight_matrix(self.model, unit.sites[0]), unit_moment(self.moments, unit)
        if not nested or not ranks:
            return {rank: cut(weight, moment, rank) for rank in ranks}
        first, second = cut(weight, moment, max(ranks)).parts
        return {rank: Factors((first[:, :, :rank], second[:, :rank])) for rank in ranks}

    def uniform(self, share: float) -> dict[str, int]:
        """Ranks at one share for all weights but those of less than 1/200 of the parameters."""
        from onnxrank.stages.uniform import uniform

        plan = uniform(self.measured, self.budget(share), self.rows, 1, True)
        ranks = {entry.name: entry.rank for entry in plan.split if entry.rank is not None}
        for name in list(ranks):  # layers of one shape step together: what they leave is filled
            more = {**ranks, name: ranks[name] + 1}
            if self._kept(more) <= share:
                ranks = more
        return ranks

    def balf(self, share: float) -> dict[str, int]:
        """Ranks of least sum of relative layer errors within the budget."""
        from onnxrank.linalg.allocate import allocate

        choice = allocate(self._curves, share * self.whole).choice
        return {name: rank for name, rank in choice.items() if rank}

    @cached_property
    def _curves(self) -> dict[str, Any]:
        """Relative error and parameters of each unit: option r is rank r, option 0 the whole."""
        import numpy as np

        from onnxrank.graph.weights import weight_matrix
        from onnxrank.linalg.allocate import Curve
        from onnxrank.linalg.factorize import tails
        from onnxrank.stages.forms import FORMS
        from onnxrank.stages.measure import unit_moment

        curves = {}
        for unit in self.units:
            site = unit.sites[0]
            tail = tails(weight_matrix(self.model, site), unit_moment(self.moments, unit))
            each = FORMS["pair"].parameters(site, 1)
            most = min((site.parameters - 1) // each, site.full_rank)
            error = np.append(0.0, tail[1 : most + 1] / max(float(tail[0]), 1e-300))
            cost = np.append(float(site.parameters), each * np.arange(1.0, most + 1))
            curves[unit.name] = Curve(error, cost)
        return curves

    def _kept(self, ranks: Mapping[str, int]) -> float:
        from onnxrank.stages.forms import FORMS

        kept = 0
        for unit in self.units:
            site, rank = unit.sites[0], ranks.get(unit.name)
            each = FORMS["pair"].parameters(site, 1)
            kept += rank * each if rank else site.parameters
        return kept / self.whole

    def budget(self, share: float) -> Any:
        """The share of the whole model at which this share of the layers is left."""
        from onnxrank.stages.budget import Budget
        from onnxrank.stages.costs import Costs

        whole = Costs(self.measured.survey, "params", self.rows).whole
        return Budget("params", 1 - (1 - share) * self.whole / whole)

    def ours(self, shares: Sequence[float], methods: Sequence[str]) -> Iterator[Point]:
        """Budgets: ranks and forms by sensitivity, with and without compensation."""
        from onnxrank.stages.goal import Manner, fit

        here = {unit.name for unit in self.units}
        for share, (planner, plan) in self._plans(shares).items():
            kept = sum(e.factorized_parameters for e in plan.units if e.name in here) / self.whole
            note = "with layers whose ranks have not settled" if planner.allow_unstable else ""
            for method in (PLAIN, OURS):
                if method in methods:
                    manner = Manner(compensate=method == OURS)
                    factors = fit(planner, manner, plan, self.source, self.run, lambda *_: None)
                    yield self.judge(method, share, kept, factors, note)

    def _plans(self, shares: Sequence[float]) -> dict[float, tuple[Any, Any]]:
        """A plan a share, from one set of probes; unsettled layers only if they must."""
        from onnxrank.errors import PlanError
        from onnxrank.stages.budget import Planner

        found: dict[float, tuple[Any, Any]] = {}
        for bold in (False, True):
            left = [share for share in shares if share not in found]
            if not left:
                break
            planner = Planner(self.measured, self.source, self.run, self.rows, allow_unstable=bold)
            say("probes are done")
            for share in left:
                try:
                    found[share] = (planner, planner.plan(self.budget(share)))
                except PlanError:
                    continue
        return found


def measures(points: Sequence[Point]) -> dict[str, tuple[str, int]]:
    """What is tabled: the attribute of a point, and 1 if more is better."""
    if any(p.accuracy is not None for p in points):
        return {
            "accuracy change": ("accuracy", 1),
            "agreement of classes": ("agreement", 1),
            "relative error": ("error", -1),
        }
    found = {"cosine": ("cosine", 1), "relative error": ("error", -1)}
    if any(p.agreement is not None for p in points):
        found["agreement of classes, or same nearest neighbour"] = ("agreement", 1)
    return found


def tables(points: Sequence[Point], shares: Sequence[float]) -> tuple[list[str], str]:
    """A table a measure, methods down and shares across; and where ours is not the best."""
    found, lost = [], []
    for title, (name, sign) in measures(points).items():
        form = "{:+.4f}" if name == "accuracy" else "{:.4f}"
        text = {(p.method, p.share): form.format(getattr(p, name)) for p in points}
        best = {
            share: max(
                (float(value) * sign for (_, at), value in text.items() if at == share),
                default=0.0,
            )
            for share in shares
        }
        rows = []
        for method in dict.fromkeys(p.method for p in points):
            cells = [text.get((method, share), "") for share in shares]
            for at, share in enumerate(shares):
                if cells[at] and float(cells[at]) * sign == best[share]:
                    cells[at] = f"**{cells[at]}**"
                elif cells[at] and method == OURS:
                    first = _first(text, share, best[share] * sign)
                    lost.append(f"{title} at {share:.0%} ({first})")
            rows.append([method, *cells])
        found.append(common.table([title, *(f"{share:.0%}" for share in shares)], rows))
    ours = [p for p in points if p.method == OURS]
    if not ours:
        return found, ""
    cells = len(measures(points)) * len(ours)
    if not lost:
        return found, f" {OURS} is best in each of its {cells} cells."
    return found, f" {OURS} is NOT the best in {len(lost)} of its {cells} cells: {'; '.join(lost)}."


def _first(text: Mapping[tuple[str, float], str], share: float, value: float) -> str:
    """The method with this value at a share."""
    return next(m for (m, at), cell in text.items() if at == share and float(cell) == value)


def picture(points: Sequence[Point], title: str, path: Path) -> None:
    """Error over what is kept, a line a method."""
    from lines import chart

    known = {
        method: [(p.kept, p.error) for p in points if p.method == method]
        for method in dict.fromkeys(p.method for p in points)
    }
    labels = ("share of the factorizable parameters", "relative error of the outputs")
    path.write_text(chart(known, title, *labels, OURS))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--mask")
    parser.add_argument("--samples", type=int, help="calibrate on the first of them")
    parser.add_argument("--eval-samples", type=int, help="judge on the first of them")
    parser.add_argument("--shares", default="0.75,0.5,0.35,0.25")
    parser.add_argument("--methods", help="parts of names, with commas (default: all)")
    parser.add_argument("--moments", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    common.limit(options.threads)
    from forms import OTHERS

    shares = [float(share) for share in options.shares.split(",")]
    wanted = [*OTHERS, PCA, BALF, PLAIN, OURS]
    if options.methods:
        parts = options.methods.split(",")
        wanted = [name for name in wanted if any(part in name for part in parts)]
    bench = Bench(options)
    points: list[Point] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        points.extend(bench.others(shares, wanted))
        points.extend(bench.ours(shares, wanted))
    except KeyboardInterrupt:
        say("stopped")
    if points:
        report(options, bench, points, shares)


def report(options: Any, bench: Bench, points: Sequence[Point], shares: Sequence[float]) -> None:
    """Record the tables and the picture."""
    found, best = tables(points, shares)
    said = (
        f"{options.model.stem}: {len(bench.units)} weights, {bench.whole:,} of "
        f"{bench.parameters:,} parameters; moments of {bench.moments.data.samples} samples, "
        f"compensated on up to {bench.source.samples}, judged on {bench.samples} others; "
        f"first output '{next(iter(bench.batches[0][1]))}'."
    )
    notes = {p.note: sorted({f"{q.share:.0%}" for q in points if q.note == p.note})
             for p in points if p.note}  # fmt: skip
    said += "".join(f" At {', '.join(where)}: {note}." for note, where in notes.items())
    off = max(abs(p.kept - p.share) for p in points)
    said += f" Kept shares are within {100 * off:.1f} points of those asked for.{best}"
    parts = [said, *found]
    if options.picture is not None:
        picture(points, options.model.stem, options.picture)
        at, home = options.picture.resolve(), options.results.resolve().parent
        if at.is_relative_to(home):
            parts.append(f"![Error over size]({at.relative_to(home)})")
    common.record(options, "End-to-end error at equal parameters", *parts)


if __name__ == "__main__":
    main()

"""What people see: tables that fit the width, progress on a terminal, plain text in a pipe."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType, RenderResult
    from rich.progress import ProgressColumn

    from onnxrank.differentiable.records import Recovery
    from onnxrank.moments import Moments
    from onnxrank.results import Comparison, OutputError, Pair, Plan, Report, SiteReport

Progress = Callable[[int, "int | None", str], None]

# In a pipe nothing is cut: rows are as wide as they need to be.
_PIPE_WIDTH = 10_000


def show_inspection(report: Report) -> None:
    """Print every weight-bearing node, factorizable or with its reason."""
    table = _table(("node", "left"), "op", "shape", "parameters", "MACs", ("factorizable", "left"))
    for site in report.sites:
        note = site.reason or "yes"
        _row(table, site.name, site.op, _shape(site), site.parameters, count(site.macs), note)
    others = _table(("other node", "left"), ("op", "left"), "parameters", ("reason", "left"))
    for skip in report.skipped:
        _row(others, skip.name, skip.op, skip.parameters, skip.reason)
    able = sum(site.parameters for site in report.sites if site.factorizable)
    _print(table)
    if report.skipped:
        _print(others)
    _print(
        f"{_number(len(report.sites), 'linear map')}, {_number(len(report.skipped), 'other node')};"
        f" {count(able)} of {count(report.model.parameters)} parameters"
        f" ({_share(able, report.model.parameters)}) can be factorized"
    )


def show_analysis(report: Report) -> None:
    """Print the utilized rank of every site, and the mean layer utilization."""
    table = _table(
        ("node", "left"), "shape", "rows/dim", "k_in", "k_out", "rank", "utilized", "pays"
    )
    for site in report.sites:
        rank = f"{site.rank}" if site.rank_stable else f"{site.rank} ?"
        pays = "yes" if site.worthwhile and site.factorizable else "no"
        _row(
            table,
            site.name,
            _shape(site),
            f"{site.rows_per_dimension or 0:.0f}",
            site.k_in,
            site.k_out,
            rank,
            _percent(site.utilization),
            pays,
        )
    _print(table)
    energy = report.settings.get("energy")
    _print(
        f"mean layer utilization {_percent(report.mean_layer_utilization)} at energy {energy}"
        f" (corrected for the number of rows: "
        f"{_percent(report.mean_layer_utilization_corrected)})"
    )
    _print_open_questions(report)


def show_plan(plan: Plan) -> None:
    """Print what becomes of every unit."""
    table = _table(
        ("node", "left"), "form", "rank", "parameters", "after", "error", ("kept", "left")
    )
    for entry in plan.units:
        _row(
            table,
            entry.name,
            entry.form or "",
            "" if entry.rank is None else entry.rank,
            count(entry.parameters),
            count(entry.factorized_parameters),
            "" if entry.rank is None else _float(entry.expected_relative_error),
            entry.kept or "",
        )
    _print(table)
    before = sum(entry.parameters for entry in plan.units)
    after = sum(entry.factorized_parameters for entry in plan.units)
    _print(
        f"{len(plan.split)} of {_number(len(plan.units), 'weight')} split; their layers keep "
        f"{_share(after, before)} of {count(before)} parameters"
    )


def show_comparison(comparison: Comparison) -> None:
    """Print original and candidate side by side."""
    table = _table(("", "left"), "original", "candidate", "ratio")
    for name, pair, form in (
        ("parameters", comparison.parameters, count),
        ("MACs a sample", comparison.macs, count),
        ("bytes", comparison.bytes, count),
        (f"ms for {_samples(comparison)}", comparison.latency_ms, _float),
        ("accuracy", comparison.accuracy, _percent),
    ):
        if pair is not None and (pair.original is not None or pair.candidate is not None):
            _row(table, name, *_pair(pair, form))
    _print(table)
    outputs = _table(("output", "left"), "max abs error", "relative L2", "cosine", "SQNR, dB")
    for name, error in comparison.outputs.items():
        _row(outputs, name, *_errors(error))
    for name, reason in comparison.skipped_outputs.items():
        _row(outputs, name, reason)
    _print(outputs)
    if comparison.top1_agreement is not None:
        _print(f"same top-1 class: {_percent(comparison.top1_agreement)}")
    _print(
        f"compared on {_number(comparison.data.samples, 'sample')} of {comparison.data.source}"
        + (" (random data: says little)" if comparison.data.meaningless else "")
    )


def show_recovery(recovery: Recovery) -> None:
    """Print how the samples kept out were judged on the way, and the model before and after."""
    table = _table("step", "loss", "same top-1 class", "accuracy", ("", "left"))
    for point in recovery.checkpoints:
        cells = (_float(point.loss), _known(point.agreement), _known(point.accuracy))
        table.add_row(f"{point.step:,}", *cells, "chosen" if point.step == recovery.chosen else "")
    _print(table)
    _print(
        f"{_number(recovery.parameters, 'parameter')} of {_number(recovery.constants, 'constant')} "
        f"trained on {_number(recovery.data.samples, 'sample')} in {recovery.data.seconds:.0f} s"
    )
    if recovery.before is not None and recovery.after is not None:
        _show_change(recovery.before, recovery.after)


def _show_change(before: Comparison, after: Comparison) -> None:
    table = _table(("", "left"), "original", "before", "after")
    if before.accuracy is not None and after.accuracy is not None:
        shown = (before.accuracy.original, before.accuracy.candidate, after.accuracy.candidate)
        _row(table, "accuracy", *(_percent(value) for value in shown))
    if before.top1_agreement is not None:
        agreements = (before.top1_agreement, after.top1_agreement)
        _row(table, "same top-1 class", "", *(_percent(value) for value in agreements))
    for name, error in before.outputs.items():
        errors = (error.relative_l2, after.outputs[name].relative_l2)
        _row(table, f"relative L2 of {name}", "", *(_float(value) for value in errors))
    _print(table)
    _print(f"compared on {_number(after.data.samples, 'sample')} of {after.data.source}")


def _known(value: float | None) -> str:
    return "" if value is None else _percent(value)


def _samples(comparison: Comparison) -> str:
    return _number(comparison.latency_samples or 0, "sample")


def show_moments(moments: Moments, path: str) -> None:
    """Print what was collected, and where it lies."""
    data = moments.data
    rows = max((a.n + b.n for a, b in moments.views.values()), default=0)
    _print(
        f"{path}: {_number(len(moments.views), 'input')}, {_number(data.samples, 'sample')}, "
        f"up to {_number(rows, 'row')}, {data.seconds:.1f} s on {data.provider}"
    )


def show_delivery(report: Report) -> None:
    """Print plan and comparison, and what their reader must know."""
    assert report.plan is not None
    show_plan(report.plan)
    if report.comparison is not None:
        show_comparison(report.comparison)
        _print_predicted(report.plan, report.comparison)
    for note in report.notes:
        _print(f"note: {note}")


def _print_predicted(plan: Plan, comparison: Comparison) -> None:
    """What the plan expected, beside what came of it."""
    found = [e.relative_l2 for e in comparison.outputs.values() if e.relative_l2 is not None]
    if plan.predicted_error and found:
        measured = math.sqrt(sum(error**2 for error in found) / len(found))
        _print(
            f"relative error of the outputs: {math.sqrt(plan.predicted_error):.4f} predicted "
            f"before layers were fitted to each other, {measured:.4f} measured"
        )


def _print_open_questions(report: Report) -> None:
    """What the table cannot say: data that mean nothing, ranks not settled, nodes left out."""
    if report.data is not None and report.data.meaningless:
        _print("random data: these ranks say nothing about the model")
    waiting = [site for site in report.sites if site.rank_stable is False]
    if waiting:
        wanted = max(site.rows_wanted or 0 for site in waiting)
        _print(
            f"{_number(len(waiting), 'rank')} marked ? not settled: "
            f"about {count(wanted)} more rows are wanted"
        )
    if report.skipped:
        _print(f"{_number(len(report.skipped), 'node')} left out; 'inspect' says why")


@contextmanager
def progress(enabled: bool) -> Iterator[Progress]:
    """A progress callable: a bar with rate and time left if standard error is a terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda done, total, what: None
        return
    from rich.progress import Progress as Bars

    with Bars(*_columns(), console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, int] = {}

        def report(done: int, total: int | None, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield report


def _columns() -> list[ProgressColumn]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        """Steps a second."""

        def render(self, task: object) -> Text:
            speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
            return Text("" if speed is None else f"{speed:.1f}/s", style="dim")

    return [
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(compact=True),
    ]


class Elided:
    """A name that gives up its middle, never its ends, when the column is narrow."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(len(self.text), 1)
        return Measurement(min(longest, 16), longest)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(elide(self.text, options.max_width), no_wrap=True)


def elide(text: str, width: int) -> str:
    """At most `width` characters: the beginning and the end, with an ellipsis between."""
    if len(text) <= width:
        return text
    if width < 2:
        return text[:width]
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def count(value: float | None) -> str:
    """A number with three digits and a unit: 10.6 M."""
    if value is None:
        return "?"
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            scaled = value / (1e3 if unit == " k" else size)
            return f"{scaled:.3g}{unit}" if scaled < 1000 else f"{scaled:.0f}{unit}"
    return f"{value:,.0f}"


def _print(what: RenderableType) -> None:
    """Print for a terminal, or as plain lines without trailing blanks."""
    if sys.stdout.isatty():
        Console(highlight=False).print(what, markup=False)
        return
    console = Console(highlight=False, width=_PIPE_WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(what, markup=False)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _table(*columns: str | tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        name, side = column if isinstance(column, tuple) else (column, "right")
        if side == "left":
            table.add_column(name)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    return table


def _row(table: Table, name: str, *cells: object) -> None:
    texts: Sequence[RenderableType] = [Text(_cell(cell)) for cell in cells]
    table.add_row(Elided(name), *texts)


def _cell(value: object) -> str:
    if value is None:
        return "?"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shape(site: SiteReport) -> str:
    shape = f"{site.d_in}×{site.d_out}"
    return shape if site.groups == 1 else f"{site.groups}·{shape}"


def _number(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}" + ("" if amount == 1 else "s")


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.1f} %"


def _share(part: float, whole: float) -> str:
    return _percent(part / whole if whole else None)


def _float(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def _pair(pair: Pair, form: Callable[[float | None], str]) -> tuple[str, str, str]:
    return form(pair.original), form(pair.candidate), _percent(pair.ratio)


def _errors(error: OutputError) -> tuple[str, str, str, str]:
    cosine = "?" if error.cosine is None else f"{error.cosine:.6f}"
    return _float(error.max_abs), _float(error.relative_l2), cosine, _float(error.sqnr_db)

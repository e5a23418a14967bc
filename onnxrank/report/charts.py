"""Charts as data: what their templates draw.

Curves and bars lie in a box of `BOX` by `BOX` units that is stretched to the space there is;
labels are placed in percent, so that text keeps its size on a phone and on paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxrank.report.axes import Axis, Tick, around, numbers, percents, powers
from onnxrank.report.energies import Rung
from onnxrank.report.text import percent
from onnxrank.results import Frontier, SiteReport

BOX = 1000
# Shares below this part of the largest one are rounding: they are drawn on the floor.
_FLOOR = 1e-7

Points = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Bar:
    """A layer in the chart by depth: place and height in the box, and its class of colour."""

    x: int
    y: int
    height: int
    level: int
    unsettled: bool


@dataclass(frozen=True)
class Depth:
    """Utilization by depth: a bar a layer, and marks for the corrected or the other's figure."""

    width: int
    bars: tuple[Bar, ...]
    corrected: str
    other: str
    x_ticks: tuple[Tick, ...]
    label: str


@dataclass(frozen=True)
class Spectrum:
    """Both spectra of a site, with the ranks that are read from them."""

    label: str
    inputs: str
    outputs: str
    other: str
    grid: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    shade: tuple[int, int]
    rank: int
    corrected: int | None
    cut: int | None


@dataclass(frozen=True)
class Dot:
    """A marked point of a line chart, in percent, with its words."""

    x: float
    y: float
    label: str
    chosen: bool = False


@dataclass(frozen=True)
class Line:
    """A line with its marks."""

    kind: str
    name: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Lines:
    """A chart of lines over one axis; `limit` is a level across it, in percent from below."""

    label: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    grid: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marker: float | None = None
    limit: float | None = None


def depth(sites: Sequence[SiteReport], others: Sequence[SiteReport | None], name: str) -> Depth:
    """Utilization of layers in the order of the graph.

    Parameters
    ----------
    sites : sequence of SiteReport
        Measured ones.
    others : sequence of SiteReport or None
        The same sites of another report, or none at all.
    name : str
        Of the model, for the label.
    """
    bars = tuple(_bar(i, site) for i, site in enumerate(sites))
    shift = [
        (i, (site.rank_corrected or 0) / min(site.d_in, site.d_out))
        for i, site in enumerate(sites)
        if site.rank_corrected not in (None, site.rank)
    ]
    found = enumerate(others)
    counterpart = [(i, o.utilization) for i, o in found if o and o.utilization is not None]
    count = max(len(sites), 1)
    whole = [tick for tick in Axis(0, count).ticks(8) if tick[0] % 1 == 0 and tick[0] > 0]
    ticks = tuple(Tick(100 * (value - 0.5) / count, f"{value:,.0f}") for value, _ in whole)
    lowest = min((site.utilization or 0 for site in sites), default=0)
    highest = max((site.utilization or 0 for site in sites), default=0)
    label = (
        f"Utilization of {len(sites)} layers of {name} in the order of the graph, "
        f"from {percent(lowest)} to {percent(highest)}"
    )
    return Depth(10 * count, bars, _dashes(shift), _dashes(counterpart), ticks, label)


def level(utilization: float) -> int:
    """Class of colour, 0 to 4."""
    return min(int(utilization * 5), 4)


def spectrum(site: SiteReport, cut: int | None, other: SiteReport | None) -> Spectrum | None:
    """Spectra of a site, and the output spectrum of its counterpart; None without spectra."""
    full = min(site.d_in, site.d_out)
    # Of a wide layer's outputs, the directions beyond its full rank are empty by construction.
    curves = [site.spectrum_in, _up_to(site.spectrum_out, full)]
    if other is not None:
        curves.append(_up_to(other.spectrum_out, min(other.d_in, other.d_out)))
    shares = [share for curve in curves for _, share in curve]
    if site.rank is None or not curves[0] or not curves[1]:
        return None
    top = max(shares)
    bottom = min(share for share in shares if share >= top * _FLOOR)
    y = Axis(min(bottom, top * 0.5), top, log=True)
    x = Axis(0, max(index for curve in curves for index, _ in curve))
    x_ticks, y_ticks = numbers(x, 5), powers(y, 5)
    inputs, outputs, *counterpart = (_curve(curve, x, y) for curve in curves)
    return Spectrum(
        label=f"Spectra of {site.name}: rank {site.rank} of {full}",
        inputs=inputs,
        outputs=outputs,
        other="".join(counterpart),
        grid=_grid(y_ticks),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        shade=(_unit(x.place(site.rank)), _unit(x.place(full)) - _unit(x.place(site.rank))),
        rank=_unit(x.place(site.rank)),
        corrected=_mark(x, site.rank_corrected, site.rank),
        cut=_mark(x, cut, site.rank),
    )


def frontier(found: Frontier) -> tuple[Lines, ...]:
    """Size against error: one chart, or one each where predictions are in another measure."""
    if found.predicted in ("", found.error):
        charts = [_against_size(found, {"predicted": found.error, "measured": found.error})]
    else:
        charts = [
            _against_size(found, {"measured": found.error}),
            _against_size(found, {"predicted": found.predicted}),
        ]
    return tuple(chart for chart in charts if chart is not None)


def _against_size(found: Frontier, kinds: Mapping[str, str]) -> Lines | None:
    """Lines of these kinds of error, each with its measure; None with fewer than two points."""
    known = {
        kind: sorted(
            (point.size, error, point.chosen)
            for point in found.points
            if (error := getattr(point, kind)) is not None
        )
        for kind in kinds
    }
    sizes = {size for points in known.values() for size, _, _ in points}
    errors = [error for points in known.values() for _, error, _ in points]
    if len(sizes) < 2:
        return None
    limit = found.limit if "measured" in kinds else None
    if limit is not None:
        errors.append(limit)
    log = min(errors) > 0 and max(errors) / min(errors) > 10
    x, y = around([*sizes], log=False), around(errors, log)
    lines = []
    for kind, measure in kinds.items():
        dots = tuple(
            Dot(
                round(100 * x.place(size), 2),
                round(100 * y.place(error), 2),
                f"{found.size} {percent(size)}, {kind} {measure} {percent(error, 2)}",
                chosen,
            )
            for size, error, chosen in known[kind]
        )
        if dots:
            lines.append(Line(kind, kind, _straight((d.x, d.y) for d in dots), dots))
    y_ticks, measure = percents(y, 5), next(iter(kinds.values()))
    return Lines(
        label=f"{' and '.join(kinds)} {measure} against {found.size}",
        x_title=found.size,
        y_title=measure,
        lines=tuple(lines),
        grid=_grid(y_ticks),
        x_ticks=percents(x, 6),
        y_ticks=y_ticks,
        limit=None if limit is None else round(100 * y.place(limit), 2),
    )


def energies(rungs: Sequence[Rung], energy: float) -> Lines:
    """Weights left, and mean utilization, at other energies than the chosen one."""
    x = Axis(1 - rungs[0].energy, 1 - rungs[-1].energy)
    x = Axis(min(x.low, x.high), max(x.low, x.high), log=True)
    across = {rung.energy: round(100 - 100 * x.place(1 - rung.energy), 2) for rung in rungs}
    y = Axis(0, 1)
    lines = []
    for kind, name in (("left", "weights left"), ("utilization", "mean utilization")):
        heights = [(across[r.energy], 100 * getattr(r, kind)) for r in rungs]
        dots = tuple(
            Dot(a, round(b, 2), f"energy {r.energy:g}: about {percent(b / 100, 0)} {name}")
            for (a, b), r in zip(heights, rungs, strict=True)
            if r.labelled
        )
        lines.append(Line(kind, name, _straight(heights), dots))
    y_ticks = percents(y, 4)
    inside = rungs[0].energy <= energy <= rungs[-1].energy
    return Lines(
        label="Weights left, and mean utilization, by energy",
        x_title="energy kept in every layer",
        y_title="",
        lines=tuple(lines),
        grid=_grid(y_ticks),
        x_ticks=tuple(Tick(across[r.energy], f"{r.energy:g}") for r in rungs if r.labelled),
        y_ticks=y_ticks,
        marker=round(100 - 100 * x.place(1 - energy), 2) if inside else None,
    )


def _up_to(curve: Points, last: int) -> Points:
    return [point for point in curve if point[0] <= last]


def _bar(index: int, site: SiteReport) -> Bar:
    share = site.utilization or 0.0
    height = max(_unit(share), 4)  # an empty layer is still to be seen
    return Bar(10 * index + 1, BOX - height, height, level(share), site.rank_stable is False)


def _dashes(heights: Iterable[tuple[int, float]]) -> str:
    """A path with a short level line over each bar."""
    return "".join(f"M{10 * i} {BOX - _unit(min(share, 1))}h10" for i, share in heights)


def _mark(x: Axis, value: int | None, drawn: int) -> int | None:
    """Where a rank is marked, if it is not where one is drawn already."""
    return None if value is None or value == drawn else _unit(x.place(value))


def _unit(part: float) -> int:
    return round(BOX * part)


def _grid(ticks: Sequence[Tick]) -> str:
    """Level lines across the box at ticks."""
    return "".join(f"M0 {BOX - round(BOX * tick.at / 100)}h{BOX}" for tick in ticks)


def _curve(curve: Points, x: Axis, y: Axis) -> str:
    """A path in whole units, each step relative to the one before: short in the file."""
    places = [(_unit(x.place(i)), BOX - _unit(y.place(max(v, y.low)))) for i, v in curve]
    if not places:
        return ""
    (left, up), *rest = places
    steps = []
    for here, there in rest:
        steps.append(f"{here - left} {there - up}")
        left, up = here, there
    path = f"M{places[0][0]} {places[0][1]}l" + " ".join(steps)
    return path.replace(" -", "-") if steps else f"M{places[0][0]} {places[0][1]}h1"


def _straight(points: Iterable[tuple[float, float]]) -> str:
    """A path through points in percent from the lower left."""
    return "M" + "L".join(f"{10 * x:.0f} {BOX - 10 * y:.0f}" for x, y in points)

"""Everything the page shows, chosen and worded; the templates only lay it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxrank.report import charts, text
from onnxrank.report.energies import Rung, ladder
from onnxrank.report.pairing import Pairing, counterparts, pair
from onnxrank.report.savings import (
    CUT,
    UNSETTLED,
    Fate,
    Savings,
    fates,
    samples_wanted,
    savings,
)
from onnxrank.report.text import number
from onnxrank.report.verdict import Verdict, judge, judge_comparison, predicted_error
from onnxrank.results import (
    Comparison,
    DataReport,
    Frontier,
    FrontierPoint,
    Pair,
    Report,
    SiteReport,
    SkipReport,
    UnitReport,
)

# Spectra that are drawn without a click; the first is the one that the large chart shows.
_SHOWN = 9


@dataclass(frozen=True)
class Card:
    """A figure with its meaning."""

    value: str
    meaning: str
    note: str = ""


@dataclass(frozen=True)
class Part:
    """A part of the model's weights: percent of the bar, and what it is."""

    code: str
    share: float
    weights: int
    meaning: str


@dataclass(frozen=True)
class Row:
    """A layer, with what becomes of it and its spectra."""

    index: int
    site: SiteReport
    fate: Fate
    spectrum: charts.Spectrum | None
    other: SiteReport | None

    @property
    def shape(self) -> str:
        """Size of its matrix, or of each group's."""
        shape = f"{self.site.d_in}×{self.site.d_out}"
        return shape if self.site.groups == 1 else f"{self.site.groups}·{shape}"

    @property
    def measured(self) -> bool:
        """Whether its rank is known."""
        return self.site.utilization is not None

    @property
    def full_rank(self) -> int:
        """The most directions it could use."""
        return min(self.site.d_in, self.site.d_out)

    @property
    def pays_up_to(self) -> int:
        """Largest rank at which a pair is smaller."""
        return (self.site.d_in * self.site.d_out - 1) // (self.site.d_in + self.site.d_out)


@dataclass(frozen=True)
class Skipped:
    """Nodes that are left out for one reason; `reasons` differ only in details."""

    code: str
    reason: str
    nodes: tuple[SkipReport, ...]
    weights: int


@dataclass(frozen=True)
class Measure:
    """One figure of original and candidate, as words and as bars."""

    name: str
    before: str
    after: str
    ratio: float | None


@dataclass(frozen=True)
class Page:
    """One page; what is None or empty is not shown."""

    title: str
    subject: str
    verdict: Verdict
    cards: tuple[Card, ...]
    report: Report | None = None
    savings: Savings | None = None
    parts: tuple[Part, ...] = ()
    rows: tuple[Row, ...] = ()
    shown: tuple[Row, ...] = ()
    depth: charts.Depth | None = None
    waiting: tuple[Row, ...] = ()
    samples_wanted: int = 0
    units: tuple[UnitReport, ...] = ()
    frontier: tuple[charts.Lines, ...] = ()
    frontier_points: tuple[FrontierPoint, ...] = ()
    rungs: tuple[Rung, ...] = ()
    energies: charts.Lines | None = None
    skipped: tuple[Skipped, ...] = ()
    comparison: Comparison | None = None
    measures: tuple[Measure, ...] = ()
    predicted: float | None = None
    pairing: Pairing | None = None
    depth_there: charts.Depth | None = None

    @property
    def has_spectra(self) -> bool:
        """Whether there is a spectrum to be drawn."""
        return any(row.spectrum for row in self.rows)

    @property
    def chosen(self) -> FrontierPoint | None:
        """The point of the frontier that was taken."""
        return next((point for point in self.frontier_points if point.chosen), None)


def report_page(report: Report, against: Report | None) -> Page:
    """Choose and word what a report's page shows."""
    ends = fates(report)
    found = savings(report, ends)
    others = counterparts(report, against)
    rows = _rows(report, ends, others)
    verdict = judge(report, found)
    rungs = ladder(report)
    energy = report.settings.get("energy")
    pairing, there = None, None
    if against is not None:
        pairing = pair(report, against, (found, savings(against, fates(against))))
        there = _depth(against, {}, pairing.there) if not others else None
    name = text.basename(report.model.path)
    frontier = report.frontier
    return Page(
        title=f"{name}: {verdict.headline}",
        subject=name,
        verdict=verdict,
        cards=_cards(report, found),
        report=report,
        savings=found,
        parts=_parts(found, report.plan is not None),
        rows=rows,
        shown=_largest(rows),
        depth=_depth(report, others, name),
        waiting=_waiting(rows),
        samples_wanted=samples_wanted(report),
        units=_units(report),
        frontier=charts.frontier(frontier) if frontier else (),
        frontier_points=_ordered(frontier),
        rungs=rungs,
        energies=charts.energies(rungs, float(energy))
        if rungs and isinstance(energy, (int, float))
        else None,
        skipped=_skipped(report),
        comparison=report.comparison,
        measures=_measures(report.comparison),
        predicted=predicted_error(report),
        pairing=pairing,
        depth_there=there,
    )


def comparison_page(comparison: Comparison) -> Page:
    """Choose and word what a comparison's page shows."""
    verdict = judge_comparison(comparison)
    return Page(
        title=verdict.headline,
        subject="two models",
        verdict=verdict,
        cards=_effects(comparison),
        comparison=comparison,
        measures=_measures(comparison),
    )


def _rows(
    report: Report, ends: Mapping[str, Fate], others: Mapping[str, SiteReport]
) -> tuple[Row, ...]:
    rows = []
    for index, site in enumerate(report.sites, 1):
        found, other = ends[site.name], others.get(site.name)
        cut = found.rank if report.plan is not None else None
        rows.append(Row(index, site, found, charts.spectrum(site, cut, other), other))
    return tuple(rows)


def _largest(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Layers with the most to save, or the largest where nothing is saved."""
    drawn = [row for row in rows if row.spectrum]
    drawn.sort(key=lambda row: (-row.fate.saves, -row.site.parameters, row.index))
    saving = [row for row in drawn if row.fate.saves > 0]
    return tuple((saving or drawn)[:_SHOWN])


def _waiting(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Layers whose rank has not settled, the largest first."""
    found = [row for row in rows if row.site.rank_stable is False]
    return tuple(sorted(found, key=lambda row: (-row.site.parameters, row.index)))


def _depth(report: Report, others: Mapping[str, SiteReport], name: str) -> charts.Depth | None:
    sites = [site for site in report.sites if site.utilization is not None]
    if not sites:
        return None
    beside = [others.get(site.name) for site in sites] if others else []
    return charts.depth(sites, beside, name)


def _units(report: Report) -> tuple[UnitReport, ...]:
    """Units that are more than one weight of one node."""
    return tuple(unit for unit in report.units if unit.kind != "weight" or len(unit.sites) > 1)


def _ordered(frontier: Frontier | None) -> tuple[FrontierPoint, ...]:
    return tuple(sorted(frontier.points, key=lambda point: point.size)) if frontier else ()


def _skipped(report: Report) -> tuple[Skipped, ...]:
    """Skipped nodes by reason, those with the most weights first."""
    groups: dict[str, list[SkipReport]] = {}
    for skip in report.skipped:
        groups.setdefault(skip.code, []).append(skip)
    found = []
    for code, nodes in groups.items():
        reasons = {node.reason for node in nodes}
        reason = reasons.pop() if len(reasons) == 1 else ""
        found.append(Skipped(code, reason, tuple(nodes), sum(node.parameters for node in nodes)))
    return tuple(sorted(found, key=lambda group: (-group.weights, -len(group.nodes), group.code)))


def _cards(report: Report, found: Savings) -> tuple[Card, ...]:
    cards: list[Card] = []
    if report.comparison is not None:
        cards.extend(_effects(report.comparison))
    else:
        left_out = number(len(report.skipped), "node") + " left out"
        cards.append(Card(text.count(found.total), "weights in the model", left_out))
        if report.data is not None:
            word = "go by this plan" if report.plan else "can go"
            share = text.percent(found.share(found.goes))
            cards.append(Card(text.count(found.goes), f"weights {word}", share))
    if report.mean_layer_utilization is not None:
        corrected = report.mean_layer_utilization_corrected
        note = f"{text.percent(corrected)} corrected for few rows" if corrected else ""
        cards.append(Card(text.percent(report.mean_layer_utilization), "mean utilization", note))
    if report.data is not None:
        cards.append(_layers_card(report))
    return tuple(cards)


def _layers_card(report: Report) -> Card:
    ends = fates(report)
    cut = sum(found.code == CUT for found in ends.values())
    waiting = sum(site.rank_stable is False for site in report.sites)
    word = "layers are split" if report.plan else "layers are worth a split"
    note = f"{number(waiting, 'rank')} not settled" if waiting else "every rank has settled"
    return Card(f"{cut:,} of {len(ends):,}", word, note)


def _effects(comparison: Comparison) -> tuple[Card, ...]:
    """What changed in size and speed, and the one figure that tells best what it cost."""
    cards: list[Card] = []
    for name, found, form in (
        ("weights", comparison.parameters, text.count),
        ("file size", comparison.bytes, text.size),
        ("latency", comparison.latency_ms, text.milliseconds),
    ):
        if found.candidate is not None:
            note = f"{form(found.original)} before" if found.original is not None else ""
            cards.append(Card(form(found.candidate), name, note))
    accuracy, agreement = comparison.accuracy, comparison.top1_agreement
    errors = [error.relative_l2 for error in comparison.outputs.values()]
    worst = max((error for error in errors if error is not None), default=None)
    if accuracy is not None and accuracy.candidate is not None:
        cards.append(
            Card(
                text.percent(accuracy.candidate),
                f"accuracy, {text.percent(accuracy.original)} before",
                "" if agreement is None else f"{text.percent(agreement)} of answers unchanged",
            )
        )
    elif agreement is not None:
        change = "" if worst is None else f"outputs change by {text.percent(worst)}"
        cards.append(Card(text.percent(agreement), "answers unchanged", change))
    elif worst is not None:
        cards.append(Card(text.percent(worst), "change of the outputs", "relative, the worst one"))
    return tuple(cards)


def _parts(found: Savings, planned: bool) -> tuple[Part, ...]:
    """Parts of the bar that shows where the weights are; empty ones are left out."""
    parts = (
        ("goes", found.goes, "goes" if planned else "can go"),
        ("stays", found.stays, f"{'stays' if planned else 'would stay'} in the same layers"),
        (UNSETTLED, found.unsettled, "too few rows to tell"),
        ("full", found.full, "in layers where a pair is not smaller"),
        ("fixed", found.fixed, "in layers that cannot be rewritten"),
        ("unknown", found.unknown, "in layers that could be split"),
        ("rest", found.rest, "outside of these layers"),
    )
    return tuple(
        Part(code, round(100 * found.share(weights), 2), weights, meaning)
        for code, weights, meaning in parts
        if weights > 0
    )


def _measures(comparison: Comparison | None) -> tuple[Measure, ...]:
    if comparison is None:
        return ()
    measures = []
    for name, found, form in (
        ("weights", comparison.parameters, text.count),
        ("multiply-accumulates a sample", comparison.macs, text.count),
        ("file", comparison.bytes, text.size),
        ("latency", comparison.latency_ms, text.milliseconds),
        ("accuracy", comparison.accuracy, text.percent),
    ):
        if _known(found):
            assert found is not None
            before, after = form(found.original), form(found.candidate)
            measures.append(Measure(name, before, after, found.ratio))
    return tuple(measures)


def _known(found: Pair | None) -> bool:
    return found is not None and not (found.original is None and found.candidate is None)


def source(data: DataReport) -> str:
    """Data in a few words."""
    return f"{number(data.samples, 'sample')} of {text.basename(data.source)}"

"""Two reports side by side: which layers are the same, and what differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxrank.report import text
from onnxrank.report.savings import Savings
from onnxrank.results import Comparison, Report, SiteReport

_CHANGED = 0.005


@dataclass(frozen=True)
class Change:
    """One layer in both reports."""

    here: SiteReport
    there: SiteReport

    @property
    def utilization(self) -> float:
        """How much more of it is used here than there."""
        return (self.here.utilization or 0) - (self.there.utilization or 0)


@dataclass(frozen=True)
class Figure:
    """One figure of both reports, in words, and the difference."""

    name: str
    here: str
    there: str
    change: str = ""


@dataclass(frozen=True)
class Pairing:
    """A report beside another.

    Attributes
    ----------
    here, there : str
        What to call them.
    kind : str
        What sets them apart, in words.
    summary : str
        What became of the layers in both, in a sentence.
    figures : tuple of Figure
    changes : tuple of Change
        The largest first.
    only_here, only_there : tuple of str
        Measured layers without a counterpart.
    """

    here: str
    there: str
    kind: str
    summary: str
    figures: tuple[Figure, ...]
    changes: tuple[Change, ...]
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]


def counterparts(report: Report, against: Report | None) -> dict[str, SiteReport]:
    """Layers of `against` by the name of the same layer of `report`."""
    if against is None:
        return {}
    mine = {site.name for site in report.sites if site.utilization is not None}
    return {
        site.name: site
        for site in against.sites
        if site.name in mine and site.utilization is not None
    }


def pair(report: Report, against: Report, savings: tuple[Savings, Savings]) -> Pairing:
    """Put two reports side by side; layers belong together by their names."""
    same = counterparts(report, against)
    changes = [Change(site, same[site.name]) for site in report.sites if site.name in same]
    changes.sort(key=lambda change: -abs(change.utilization))
    here, there = _names(report, against)
    return Pairing(
        here=here,
        there=there,
        kind=_kind(report, against),
        summary=_summary(changes, here, there),
        figures=tuple(_figures(report, against, *savings)),
        changes=tuple(changes),
        only_here=_alone(report, same),
        only_there=_alone(against, same),
    )


def _alone(report: Report, same: Mapping[str, SiteReport]) -> tuple[str, ...]:
    return tuple(
        site.name for site in report.sites if site.name not in same and site.utilization is not None
    )


def _names(report: Report, against: Report) -> tuple[str, str]:
    """The shortest names that tell the reports apart: models, data, energies, or their order."""
    models = text.basename(report.model.path), text.basename(against.model.path)
    if models[0] != models[1]:
        return models
    data = _data(report), _data(against)
    if data[0] != data[1]:
        return data
    energies = report.settings.get("energy"), against.settings.get("energy")
    if energies[0] != energies[1]:
        return f"energy {energies[0]}", f"energy {energies[1]}"
    return "this report", "the other report"


def _data(report: Report) -> str:
    return text.basename(report.data.source) if report.data else "no data"


def _kind(report: Report, against: Report) -> str:
    one_model = report.model.sha256 == against.model.sha256
    one_source = _data(report) == _data(against)
    if one_model and one_source:
        return "One model on one data set, measured twice."
    if one_model:
        return "One model on two data sets."
    if one_source:
        return "Two models on one data set."
    return "Two models, each on a data set of its own."


def _summary(changes: list[Change], here: str, there: str) -> str:
    if not changes:
        return "No layer has the same name in both, so only the totals can be compared."
    more = sum(change.utilization > _CHANGED for change in changes)
    less = sum(change.utilization < -_CHANGED for change in changes)
    same = len(changes) - more - less
    told = [
        f"{amount:,} {words}"
        for amount, words in (
            (less, "use less of their directions"),
            (more, "use more"),
            (same, "use as much"),
        )
        if amount
    ]
    both = text.number(len(changes), "layer")
    return f"Of {both} in both, seen from {here} against {there}: {text.listed(told)}."


def _figures(report: Report, against: Report, mine: Savings, other: Savings) -> list[Figure]:
    both = (report, against)
    figures = [
        Figure("model", *(text.basename(one.model.path) for one in both)),
        Figure("data", *(_data(one) for one in both)),
        Figure("samples", *(f"{one.data.samples:,}" if one.data else "" for one in both)),
        Figure("energy", *(str(one.settings.get("energy", "")) for one in both)),
    ]
    totals = mine.total, other.total
    figures.append(
        Figure("weights", text.count(totals[0]), text.count(totals[1]), _relative(*totals))
    )
    for name, shares in (
        ("weights that can go", (mine.share(mine.goes), other.share(other.goes))),
        ("mean utilization", tuple(one.mean_layer_utilization for one in both)),
        ("corrected for few rows", tuple(one.mean_layer_utilization_corrected for one in both)),
    ):
        here, there = shares
        change = "" if here is None or there is None else text.points(here - there)
        figures.append(Figure(name, text.percent(here), text.percent(there), change))
    return figures + _effects(report.comparison, against.comparison)


def _effects(mine: Comparison | None, other: Comparison | None) -> list[Figure]:
    """What became of the answers, where both models were compressed."""
    if mine is None or other is None:
        return []
    accuracy = [found.accuracy.candidate if found.accuracy else None for found in (mine, other)]
    rows = (
        ("accuracy afterwards", accuracy[0], accuracy[1]),
        ("answers unchanged", mine.top1_agreement, other.top1_agreement),
    )
    return [
        Figure(name, text.percent(here), text.percent(there), text.points(here - there))
        for name, here, there in rows
        if here is not None and there is not None
    ]


def _relative(here: int, there: int) -> str:
    if not there or here == there:
        return ""
    change = here / there - 1
    return ("+" if change > 0 else "") + text.percent(change)

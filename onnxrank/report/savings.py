"""Which weights can go and which stay, each weight counted once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onnxrank.results import PlanEntry, Report, SiteReport

# What becomes of a layer; the order is that of the legend.
CUT = "cut"
FULL = "full"
UNSETTLED = "unsettled"
FIXED = "fixed"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Fate:
    """What becomes of one layer.

    Attributes
    ----------
    code : str
        CUT (it is, or can be, replaced by a smaller pair), FULL (a pair would not be smaller),
        UNSETTLED (too few rows to know), FIXED (it cannot be rewritten), UNKNOWN (no data).
    text : str
        The same in words.
    saves : int
        Weights that go.
    rank : int or None
        What it is cut to.
    """

    code: str
    text: str
    saves: int = 0
    rank: int | None = None


@dataclass(frozen=True)
class Savings:
    """Where a model's weights are, and which of them go; every weight is counted once.

    Attributes
    ----------
    total : int
        Weights of the whole model.
    goes, stays : int
        Of the layers that are, or can be, cut.
    full, unsettled, fixed, unknown : int
        In layers that are kept whole, by the reason.
    undecided : int
        What `unsettled` layers would save if their ranks held.
    rest : int
        In no measured layer: embeddings, biases, skipped nodes.
    """

    total: int
    goes: int
    stays: int
    full: int
    unsettled: int
    fixed: int
    unknown: int
    undecided: int
    rest: int

    @property
    def measured(self) -> int:
        """Weights in the layers of the report."""
        return self.total - self.rest

    def share(self, part: int) -> float:
        """A part of the whole model."""
        return part / self.total if self.total else 0.0


def fates(report: Report) -> dict[str, Fate]:
    """What becomes of every layer; the saving of a unit is parted by the size of its weights."""
    sites = {site.name: site for site in report.sites}
    planned: dict[str, tuple[PlanEntry, int]] = {}
    for entry in report.plan.units if report.plan else ():
        members = [sites[name] for name in entry.sites if name in sites]
        whole = sum({(m.scope, m.weight): m.parameters for m in members}.values())
        saved = entry.parameters - entry.factorized_parameters
        for member in members:
            planned[member.name] = entry, round(saved * member.parameters / max(whole, 1))
    return {name: _fate(site, *planned.get(name, (None, 0))) for name, site in sites.items()}


def _fate(site: SiteReport, entry: PlanEntry | None, saved: int) -> Fate:
    """As planned, else as its rank suggests."""
    if not site.factorizable:
        return Fate(FIXED, site.reason or "cannot be rewritten")
    if entry is not None:
        if entry.rank is not None:
            return Fate(CUT, f"split, {entry.form}, rank {entry.rank}", saved, entry.rank)
        code = UNSETTLED if would_save(site) and site.rank_stable is False else FULL
        return Fate(code, entry.kept or "kept")
    if site.rank is None:
        return Fate(UNKNOWN, "not measured")
    if not would_save(site):
        return Fate(FULL, "a pair is not smaller")
    if site.rank_stable is False:
        return Fate(UNSETTLED, f"too few rows: {site.rows_wanted or 0:,} more wanted")
    return Fate(CUT, "can be split", would_save(site), site.rank)


def would_save(site: SiteReport) -> int:
    """Weights that a pair at the utilized rank saves, should the rank hold."""
    if not site.worthwhile or site.factorized_parameters is None:
        return 0
    return max(site.parameters - site.factorized_parameters, 0)


def savings(report: Report, found_fates: Mapping[str, Fate]) -> Savings:
    """Add up the fates of all weights."""
    parts = dict.fromkeys(("goes", "stays", FULL, UNSETTLED, FIXED, UNKNOWN, "undecided"), 0)
    weights = {(site.scope, site.weight): site for site in reversed(report.sites)}
    for site in weights.values():
        found = found_fates[site.name]
        if found.code == CUT:
            parts["goes"] += found.saves
            parts["stays"] += site.parameters - found.saves
        else:
            parts[found.code] += site.parameters
        if found.code == UNSETTLED:
            parts["undecided"] += would_save(site)
    known = sum(site.parameters for site in weights.values())
    total = max(report.model.parameters, known)
    return Savings(total=total, rest=total - known, **parts)


def samples_wanted(report: Report) -> int:
    """About how many more samples the least settled rank wants; 0 if all have settled."""
    if report.data is None:
        return 0
    more = [
        (site.rows_wanted or 0) / site.rows
        for site in report.sites
        if site.rank_stable is False and site.rows
    ]
    return _rounded_up(max(more, default=0.0) * report.data.samples)


def _rounded_up(value: float) -> int:
    """Two digits are enough of an estimate."""
    step: int = 10 ** max(len(str(int(value))) - 2, 0)
    return math.ceil(value / step) * step

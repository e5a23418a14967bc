"""Measure: the ranks of every unit from its moments, on all rows and on each fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from statistics import fmean

from onnxrank.errors import MomentsError
from onnxrank.graph.model import Model
from onnxrank.graph.sites import Selection, Skip, Unit, View
from onnxrank.graph.weights import weight_matrix
from onnxrank.linalg.gram import Array, SecondMoment
from onnxrank.linalg.spectrum import (
    CRITERIA,
    Spectrum,
    corrected_rank,
    fold_output_spectra,
    rank_by_energy,
    rank_stable,
    scatter,
)
from onnxrank.linalg.thin import thinned
from onnxrank.moments import Moments
from onnxrank.stages.ranks import UnitRank, rows_wanted
from onnxrank.stages.survey import Progress, Survey, survey

# A rank has settled when the folds' ranks are within this share of it.
STABLE_SHARE = 0.05

Folds = tuple[SecondMoment, SecondMoment]


@dataclass(frozen=True, eq=False)
class Measured:
    """A survey, and the rank of each of its units on data.

    Attributes
    ----------
    survey : Survey
    moments : Moments
    ranks : mapping of str to UnitRank
        By unit name.
    energy : float
    centered : bool
        Measured about the mean instead of about zero.
    """

    survey: Survey
    moments: Moments
    ranks: Mapping[str, UnitRank]
    energy: float
    centered: bool

    @property
    def mean_utilization(self) -> float | None:
        """Mean over all sites of rank over full rank; None without sites."""
        return self._mean(lambda rank: rank.rank)

    @property
    def mean_utilization_corrected(self) -> float | None:
        """The same with ranks corrected for the number of rows."""
        return self._mean(lambda rank: rank.corrected)

    def _mean(self, which: Callable[[UnitRank], int]) -> float | None:
        shares = [
            which(self.ranks[unit.name]) / site.full_rank
            for unit in self.survey.units
            for site in unit.sites
        ]
        return fmean(shares) if shares else None


def measure(
    model: Model,
    moments: Moments,
    *,
    energy: float,
    centered: bool,
    selection: Selection | None,
    progress: Progress,
) -> Measured:
    """Measure every unit that is selected.

    Raises
    ------
    MomentsError
        The moments belong to another model, or lack a node.
    """
    check_model(model, moments)
    found = _reached(survey(model, selection or Selection()), moments)
    eigenvalues = _InputEigenvalues(moments, centered)
    ranks: dict[str, UnitRank] = {}
    for done, unit in enumerate(found.units):
        progress(done, len(found.units), "measuring ranks")
        ranks[unit.name] = _measure(model, unit, eigenvalues, energy)
    progress(len(found.units), len(found.units), "measuring ranks")
    return Measured(found, moments, ranks, energy, centered)


def _reached(found: Survey, moments: Moments) -> Survey:
    """The survey with units that no row has reached among the skipped: branches not taken.

    Raises
    ------
    MomentsError
        No unit was reached.
    """
    idle = {unit.name for unit in found.units if _rows(moments, unit) == 0}
    if idle and len(idle) == len(found.units):
        raise MomentsError(
            f"node '{found.units[0].name}' saw no rows, nor did another", where=moments.data.source
        )
    sites = {site.name for unit in found.units if unit.name in idle for site in unit.sites}
    skips = [
        Skip(site.name, site.op, site.scope, site.parameters, "no_rows", _IDLE)
        for site in found.sites
        if site.name in sites
    ]
    return replace(
        found,
        sites=tuple(site for site in found.sites if site.name not in sites),
        skips=(*found.skips, *skips),
        units=tuple(unit for unit in found.units if unit.name not in idle),
    )


_IDLE = "no row of these data reached it: it lies in a branch that was not taken"


def _rows(moments: Moments, unit: Unit) -> int | None:
    """Rows that reached a unit; None where they were not collected."""
    folds = [moments.views.get(view) for view in unit_views(unit)]
    counts = [None if pair is None else pair[0].n + pair[1].n for pair in folds]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def check_model(model: Model, moments: Moments) -> None:
    """Refuse moments of another model, and unfinished ones."""
    if not moments.complete:
        raise MomentsError(
            "these moments are unfinished",
            where=moments.data.source,
            hint="run the same 'collect' again, it goes on where it stopped",
        )
    if moments.model_sha256 != model.sha256:
        raise MomentsError(
            f"these moments belong to another model than {model.name}",
            where=moments.data.source,
            hint="collect them again",
        )


class _InputEigenvalues:
    """Eigenvalues of what units read, of the whole and of each fold, computed once an input."""

    def __init__(self, moments: Moments, centered: bool) -> None:
        self.moments, self.centered = moments, centered
        self._known: dict[tuple[View, ...], list[Array]] = {}

    def __call__(self, unit: Unit, parts: Sequence[SecondMoment]) -> list[Array]:
        views = unit_views(unit)
        if views not in self._known:
            matrices = [scatter(part, self.centered) for part in parts]
            self._known[views] = [Spectrum.of(matrix).eigenvalues for matrix in matrices]
        return self._known[views]


def _measure(model: Model, unit: Unit, eigenvalues: _InputEigenvalues, energy: float) -> UnitRank:
    site = unit.sites[0]
    weight = weight_matrix(model, site)
    first, second = unit_folds(eigenvalues.moments, unit)
    parts = (first + second, first, second)
    inputs = eigenvalues(unit, parts)
    spectra = fold_output_spectra(weight, first, second, eigenvalues.centered)
    outputs = [spectrum.eigenvalues for spectrum in spectra]
    k_in, *k_in_folds = (rank_by_energy(values, energy) for values in inputs)
    k_out, *k_out_folds = (rank_by_energy(values, energy) for values in outputs)
    rank, rows = min(k_in, k_out), parts[0].n
    folds = [min(pair) for pair in zip(k_in_folds, k_out_folds, strict=True)]
    settled = rank_stable(rank, folds, STABLE_SHARE)
    return UnitRank(
        k_in=k_in,
        k_out=k_out,
        corrected=corrected_rank(rank, folds, site.full_rank),
        stable=settled,
        rows=rows,
        rows_wanted=0 if settled else rows_wanted(rows, rank, folds, STABLE_SHARE, site.d_in),
        criteria={
            name: min(criterion(inputs[0], energy), criterion(outputs[0], energy))
            for name, criterion in CRITERIA.items()
            if name != "energy"
        },
        spectrum_in=thinned(inputs[0]),
        spectrum_out=thinned(outputs[0]),
    )


def unit_views(unit: Unit) -> tuple[View, ...]:
    """The distinct inputs of a unit's sites."""
    return tuple(dict.fromkeys(site.view for site in unit.sites))


def unit_folds(moments: Moments, unit: Unit) -> Folds:
    """Both folds of what a unit reads: the sums over its sites' views.

    Raises
    ------
    MomentsError
        A view was not collected, or saw no rows.
    """
    views = unit_views(unit)
    if any(view not in moments.views for view in views):
        raise MomentsError(
            f"no moments of the input of node '{unit.name}'",
            where=moments.data.source,
            hint="collect again without --include and --exclude, or give the same ones",
        )
    folds = [moments.views[view] for view in views]
    first, second = (reduce(add, parts) for parts in zip(*folds, strict=True))
    if first.n + second.n == 0:
        raise MomentsError(f"node '{unit.name}' saw no rows", where=moments.data.source)
    return first, second


def unit_moment(moments: Moments, unit: Unit) -> SecondMoment:
    """All rows that a unit read."""
    return reduce(add, unit_folds(moments, unit))

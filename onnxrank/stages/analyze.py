"""Analyze: the utilized rank of every layer, and the mean layer utilization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onnxrank.graph.cost import factor_parameters
from onnxrank.graph.model import load
from onnxrank.graph.sites import Selection, Site
from onnxrank.moments import Moments
from onnxrank.results import DataReport, Report, SiteReport
from onnxrank.stages.collect import obtain
from onnxrank.stages.inspect import described
from onnxrank.stages.measure import Measured, measure
from onnxrank.stages.ranks import UnitRank
from onnxrank.stages.survey import (
    Progress,
    Source,
    Survey,
    silent,
    site_report,
    skip_report,
    survey,
    unit_report,
)


def analyze(
    model: Source,
    moments: Moments,
    *,
    energy: float = 0.99,
    centered: bool = False,
    selection: Selection | None = None,
    rows: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> Report:
    """Utilized rank of every linear map, on the data that the moments were collected from.

    Parameters
    ----------
    model : path, ModelProto or Model
        The model the moments belong to.
    moments : Moments
        From `collect`.
    energy : float
        Share of the energy that the utilized directions hold, in (0, 1].
    centered : bool
        Measure about the mean instead of about zero, as the paper does.
    selection : Selection, optional
        Which nodes are meant; all by default.
    rows : mapping, optional
        Rows a sample by site, for the multiply-accumulates; by default as the model states its
        shapes, else as the moments saw them (padding aside).
    progress : callable
        Called with (done, total, what).

    Raises
    ------
    MomentsError
        The moments belong to another model, or lack a node.
    """
    measured = measure(
        load(model),
        moments,
        energy=energy,
        centered=centered,
        selection=selection,
        progress=progress,
    )
    return report(measured, rows)


def analyze_data(
    model: Source,
    data: Any,
    moments: Any = None,
    *,
    energy: float = 0.99,
    centered: bool = False,
    selection: Selection | None = None,
    progress: Progress = silent,
    **how: Any,
) -> Report:
    """Collect and analyze; a model without any linear map is an answer, with its reasons.

    Parameters
    ----------
    model, data, moments, **how
        See `collect.obtain`.
    energy, centered, selection, progress
        See `analyze`.
    """
    found = survey(load(model), selection or Selection())
    if not found.sites:
        return described(found, found.nothing)
    known = obtain(found.model, data, moments, selection=selection, progress=progress, **how)
    return analyze(
        known.model,
        known.moments,
        energy=energy,
        centered=centered,
        selection=selection,
        rows=known.rows,
        progress=progress,
    )


def report(measured: Measured, known: Mapping[str, float] | None = None) -> Report:
    """What was measured, as a report; `known` are rows a sample by site."""
    found, ranks = measured.survey, measured.ranks
    rows = {**rows_a_sample(found, measured.moments), **(known or {})}
    unit_of = {site.name: unit.name for unit in found.units for site in unit.sites}
    return Report(
        model=found.info(rows),
        data=data_report(measured.moments),
        settings=found.settings(energy=measured.energy, centered=measured.centered),
        mean_layer_utilization=measured.mean_utilization,
        mean_layer_utilization_corrected=measured.mean_utilization_corrected,
        sites=tuple(
            _ranked(site, rows.get(site.name), ranks[unit_of[site.name]], measured.energy)
            for site in found.sites
        ),
        units=tuple(unit_report(unit, ranks[unit.name].rank) for unit in found.units),
        skipped=tuple(skip_report(skip) for skip in found.skips),
    )


def rows_a_sample(found: Survey, moments: Moments) -> dict[str, float]:
    """Rows a sample by site: as the model states its shapes, else as the moments saw them."""
    samples = max(moments.data.samples, 1)
    seen = {
        site.name: sum(fold.n for fold in moments.views[site.view]) / samples
        for site in found.sites
        if site.view in moments.views
    }
    return {**seen, **found.rows()}


def data_report(moments: Moments) -> DataReport:
    """The data behind moments, as a report tells them."""
    data = moments.data
    rows = max((first.n + second.n for first, second in moments.views.values()), default=0)
    return DataReport(
        data.source, data.samples, rows, data.provider, data.seconds, data.meaningless
    )


def _ranked(site: Site, rows: float | None, rank: UnitRank, energy: float) -> SiteReport:
    smaller = factor_parameters(site, rank.rank)
    return replace(
        site_report(site, rows),
        rows=rank.rows,
        rows_per_dimension=rank.rows / site.d_in,
        k_in=rank.k_in,
        k_out=rank.k_out,
        rank=rank.rank,
        rank_corrected=rank.corrected,
        utilization=rank.rank / site.full_rank,
        energy=energy,
        factorized_parameters=smaller,
        worthwhile=smaller < site.parameters,
        rank_stable=rank.stable,
        rows_wanted=rank.rows_wanted,
        criteria=dict(rank.criteria),
        spectrum_in=rank.spectrum_in,
        spectrum_out=rank.spectrum_out,
    )

"""Inspect: every node with weights, factorizable or with its reason. No data, no session."""

from __future__ import annotations

from onnxrank.graph.model import load
from onnxrank.graph.sites import Selection
from onnxrank.results import Report
from onnxrank.stages.survey import (
    Source,
    Survey,
    site_report,
    skip_report,
    survey,
    unit_report,
)


def inspect(model: Source, *, selection: Selection | None = None) -> Report:
    """List the linear maps of a model, and the other nodes with weights.

    Parameters
    ----------
    model : path, ModelProto or Model
        What is looked at; nothing is run.
    selection : Selection, optional
        Which nodes are meant; all by default.

    Returns
    -------
    Report
        Its ranks are None.
    """
    return described(survey(load(model), selection or Selection()))


def described(found: Survey, *notes: str) -> Report:
    """A survey as a report without ranks."""
    rows = found.rows()
    return Report(
        model=found.info(rows),
        data=None,
        settings=found.settings(),
        mean_layer_utilization=None,
        mean_layer_utilization_corrected=None,
        sites=tuple(site_report(site, rows.get(site.name)) for site in found.sites),
        units=tuple(unit_report(unit, None) for unit in found.units),
        skipped=tuple(skip_report(skip) for skip in found.skips),
        notes=notes,
    )

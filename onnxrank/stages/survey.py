"""Survey: what a model holds, and how it is told in a report. Shared by the stages."""

from __future__ import annotations

import difflib
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from onnxrank.errors import ModelError
from onnxrank.graph.cost import model_macs, parameters, stored_bytes
from onnxrank.graph.find import find_sites, find_units
from onnxrank.graph.model import Model
from onnxrank.graph.sites import Selection, Site, Skip, Unit
from onnxrank.results import ModelInfo, Setting, SiteReport, SkipReport, UnitReport

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | onnx.ModelProto | Model
Progress = Callable[[int, "int | None", str], None]


def silent(done: int, total: int | None, what: str) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True, eq=False)
class Survey:
    """The sites, skips and units of one model."""

    model: Model
    selection: Selection
    sites: tuple[Site, ...]
    skips: tuple[Skip, ...]
    units: tuple[Unit, ...]

    def info(self, rows: Mapping[str, float]) -> ModelInfo:
        """The model's own line of a report; `rows` a sample by site."""
        model = self.model
        return ModelInfo(
            path=None if model.path is None else str(model.path),
            sha256=model.sha256,
            producer=f"{model.proto.producer_name} {model.proto.producer_version}".strip(),
            opset=model.opsets.get(""),
            parameters=parameters(model),
            bytes=stored_bytes(model),
            macs=model_macs(self.sites, rows),
        )

    def settings(self, **more: Setting) -> dict[str, Setting]:
        """Settings of a report: the selection, and `more`."""
        asked = {key: True for key in ("quantized", "overridable") if getattr(self.selection, key)}
        return {
            "include": list(self.selection.include),
            "exclude": list(self.selection.exclude),
            **asked,
            **more,
        }

    @property
    def nothing(self) -> str:
        """Why there is nothing to measure: the skipped nodes by code."""
        counts = Counter(skip.code for skip in self.skips)
        listed = ", ".join(f"{count} {code}" for code, count in counts.most_common())
        return f"no node with a constant weight can be factorized ({listed or 'no weights at all'})"

    def rows(self) -> dict[str, float]:
        """Rows a sample by site, where the model states its shapes."""
        return {site.name: float(site.rows) for site in self.sites if site.rows is not None}


def survey(model: Model, selection: Selection) -> Survey:
    """Find sites and units.

    Raises
    ------
    ModelError
        An include pattern matches no node with weights.
    """
    sites, skips = find_sites(model, selection)
    _check_patterns(model, selection, [s.name for s in sites] + [s.name for s in skips])
    return Survey(model, selection, tuple(sites), tuple(skips), tuple(find_units(model, sites)))


def site_report(site: Site, rows: float | None) -> SiteReport:
    """A site without ranks; `rows` a sample."""
    return SiteReport(
        name=site.name,
        op=site.op,
        weight=site.weight.name,
        scope=str(site.scope),
        d_in=site.d_in,
        d_out=site.d_out,
        groups=site.groups,
        factorizable=site.hold is None,
        reason=site.hold.reason if site.hold else None,
        parameters=site.parameters,
        macs=None if rows is None else round(rows * site.parameters),
    )


def skip_report(skip: Skip) -> SkipReport:
    """A skipped node as a report tells it."""
    return SkipReport(skip.name, skip.op, str(skip.scope), skip.parameters, skip.code, skip.reason)


def unit_report(unit: Unit, used: int | None) -> UnitReport:
    """A unit, of whose dimensions `used` hold the energy."""
    size = unit.sites[0].full_rank
    share = None if used is None else used / size
    names = tuple(site.name for site in unit.sites)
    return UnitReport(unit.name, unit.kind, names, size, used, share)


def _check_patterns(model: Model, selection: Selection, names: list[str]) -> None:
    for pattern in selection.include:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, 3, 0.4)
            hint = f"did you mean {', '.join(near)}?" if near else "'inspect' lists the nodes"
            raise ModelError(f"--include '{pattern}' matches no node", where=model.name, hint=hint)
    for pattern in selection.exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            logger.warning("--exclude '%s' matches no node of %s", pattern, model.name)

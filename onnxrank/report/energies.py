"""What other energies would give, read from the spectra that a report holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxrank.results import Report, SiteReport

LABELLED = (0.8, 0.9, 0.99, 0.999, 0.9999)
_BETWEEN = (0.85, 0.94, 0.97, 0.98, 0.995, 0.997, 0.9985, 0.9995, 0.9998)
_TINY = 1e-15

Points = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Rung:
    """What one energy in every layer would give.

    Attributes
    ----------
    energy : float
    utilization : float
        Mean over the layers.
    left : float
        Part of the whole model's weights that is left when every layer that pays is split.
    labelled : bool
        One of the round ones.
    """

    energy: float
    utilization: float
    left: float
    labelled: bool


def ladder(report: Report) -> tuple[Rung, ...]:
    """About what other energies would give; empty if a measured site has no spectra.

    The spectra are thinned, so ranks are off by a percent or so; at the report's own energy they
    are the measured ones.
    """
    sites = [site for site in report.sites if site.rank is not None]
    if not sites or not all(site.spectrum_in and site.spectrum_out for site in sites):
        return ()
    own = report.settings.get("energy")
    found = {site.name: (_held(site.spectrum_in), _held(site.spectrum_out)) for site in sites}
    steps = {*LABELLED, *_BETWEEN}
    if isinstance(own, float) and 0.8 <= own <= 0.9999:
        steps.add(own)
    rungs = []
    for energy in sorted(steps):
        ranks = {
            site.name: site.rank or 0
            if energy == own
            else min(_reach(held, energy) for held in found[site.name])
            for site in sites
        }
        rungs.append(_rung(report, sites, ranks, energy))
    return tuple(rungs)


def _rung(report: Report, sites: list[SiteReport], ranks: dict[str, int], energy: float) -> Rung:
    shares = [min(ranks[site.name] / min(site.d_in, site.d_out), 1) for site in sites]
    weights = {(site.scope, site.weight): site for site in sites if site.factorizable}
    gone = sum(max(site.parameters - _pair(site, ranks[site.name]), 0) for site in weights.values())
    total = max(report.model.parameters, 1)
    return Rung(energy, sum(shares) / len(shares), 1 - gone / total, energy in LABELLED)


def _pair(site: SiteReport, rank: int) -> int:
    """Weights of a pair."""
    return site.groups * rank * (site.d_in + site.d_out)


def _held(points: Points) -> NDArray[np.float64]:
    """Energy held by the leading directions, for every number of them."""
    index, share = np.array(points, dtype=np.float64).T
    every = np.arange(1, int(index[-1]) + 1)
    logs = np.interp(every, index, np.log(np.maximum(share, _TINY)))
    held = np.cumsum(np.exp(logs))
    whole: NDArray[np.float64] = held / held[-1]
    return whole


def _reach(held: NDArray[np.float64], energy: float) -> int:
    return int(np.searchsorted(held, energy - 1e-12)) + 1

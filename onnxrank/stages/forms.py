"""Forms: the ways to write a weight with fewer parameters, one table line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from onnxrank.graph.sites import Site
from onnxrank.linalg.channel import channel_errors, channel_pair
from onnxrank.linalg.drift import Cut
from onnxrank.linalg.factorize import cross_tails, output_pair
from onnxrank.linalg.gram import Array, SecondMoment
from onnxrank.linalg.layout import Patches

# Ranks at which a curve without a closed form is computed; between them it is interpolated.
_GRID = 14


@dataclass(frozen=True)
class Form:
    """One way to split a weight.

    Attributes
    ----------
    full : callable
        Rank of a site at which nothing is cut; 0 where the form does not apply.
    parameters : callable
        Of a site at a rank.
    macs : callable
        Multiply-accumulates of a site at a rank for one row of its output, given the positions
        that a convolution reads for each that it makes.
    cut : callable
        Of a site: the function that gives factors of a weight in the metric of a second moment.
    tails : callable
        Squared error at every rank on a second fold: (site, weight, fit, judge).
    """

    full: Callable[[Site], int]
    parameters: Callable[[Site, int], int]
    macs: Callable[[Site, int, float], float]
    cut: Callable[[Site], Cut]
    tails: Callable[[Site, Array, SecondMoment, SecondMoment], Array]


def _pair_parameters(site: Site, rank: int) -> int:
    return site.groups * rank * (site.d_in + site.d_out)


def _pair_macs(site: Site, rank: int, read: float) -> float:
    return _pair_parameters(site, rank)


def _pair_tails(site: Site, weight: Array, fit: SecondMoment, judge: SecondMoment) -> Array:
    return cross_tails(weight, fit, judge, site.centers)


def positions(site: Site) -> int:
    """Entries of a convolution's kernel; 1 for every other map."""
    layout = site.view.layout
    return prod(layout.kernel) if isinstance(layout, Patches) else 1


def _channels(site: Site) -> int:
    return site.d_in // positions(site)


def _channel_full(site: Site) -> int:
    alike = site.op == "Conv" and site.groups == 1 and positions(site) > 1 and site.centers
    return _channels(site) if alike else 0


def _channel_parameters(site: Site, rank: int) -> int:
    return rank * (_channels(site) + positions(site) * site.d_out)


def _channel_macs(site: Site, rank: int, read: float) -> float:
    """The 1x1 runs at every position that is read: strides leave fewer outputs."""
    return rank * (read * _channels(site) + positions(site) * site.d_out)


def _channel_cut(site: Site) -> Cut:
    def cut(weight: Array, gram: Array, rank: int):  # type: ignore[no-untyped-def]
        return channel_pair(weight[0], gram[0], rank, positions(site))

    return cut


def _channel_tails(site: Site, weight: Array, fit: SecondMoment, judge: SecondMoment) -> Array:
    """On a grid of ranks, interpolated in the logarithm."""
    full = _channels(site)
    grid = np.unique(np.geomspace(1, full, min(_GRID, full)).round().astype(int))
    metric = judge.about(fit.mean)[0]
    whole = float(np.sum(weight[0] * (metric @ weight[0])))
    errors = channel_errors(
        weight[0], fit.about(fit.mean)[0], metric, grid.tolist(), positions(site)
    )
    known = np.log(np.minimum.accumulate(errors.clip(min=max(whole * 1e-15, 1e-300))))
    inner = np.exp(np.interp(np.arange(1, full + 1), grid, known))
    inner[-1] = 0.0
    return np.concatenate([[max(whole, float(inner[0]))], inner])


FORMS: dict[str, Form] = {
    "pair": Form(
        full=lambda site: site.full_rank,
        parameters=_pair_parameters,
        macs=_pair_macs,
        cut=lambda site: output_pair,
        tails=_pair_tails,
    ),
    "channel": Form(
        full=_channel_full,
        parameters=_channel_parameters,
        macs=_channel_macs,
        cut=_channel_cut,
        tails=_channel_tails,
    ),
}

__all__ = ["FORMS", "Form", "positions"]

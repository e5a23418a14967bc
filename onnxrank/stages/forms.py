"""Forms: the ways to write a weight with fewer parameters, one table line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from onnxrank.graph.sites import Site
from onnxrank.linalg.drift import Cut
from onnxrank.linalg.factorize import cross_tails, output_pair
from onnxrank.linalg.gram import Array, SecondMoment
from onnxrank.linalg.layout import Patches
from onnxrank.linalg.sliding import sliding_pair, sliding_tails


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
        that a convolution reads for each that it makes, along every axis.
    cut : callable
        Of a site: the function that gives factors of a weight in the metric of a second moment.
    tails : callable
        Squared error at every rank on a second fold: (site, weight, fit, judge).
    """

    full: Callable[[Site], int]
    parameters: Callable[[Site, int], int]
    macs: Callable[[Site, int, Sequence[float]], float]
    cut: Callable[[Site], Cut]
    tails: Callable[[Site, Array, SecondMoment, SecondMoment], Array]


def _pair_parameters(site: Site, rank: int) -> int:
    return site.groups * rank * (site.d_in + site.d_out)


def _pair_macs(site: Site, rank: int, read: Sequence[float]) -> float:
    return _pair_parameters(site, rank)


def _pair_tails(site: Site, weight: Array, fit: SecondMoment, judge: SecondMoment) -> Array:
    return cross_tails(weight, fit, judge, site.centers)


@dataclass(frozen=True)
class _Sliding:
    """A convolution as two: over its first axes, then over the others.

    Attributes
    ----------
    ahead : int
        Axes of the kernel that the first covers.
    """

    ahead: int

    def positions(self, site: Site) -> int:
        """Where the second reads for one row of its output."""
        assert isinstance(site.view.layout, Patches)
        return prod(site.view.layout.kernel[self.ahead :])

    def full(self, site: Site) -> int:
        layout = site.view.layout
        if not isinstance(layout, Patches) or site.groups > 1:
            return 0
        first, positions = layout.kernel[: self.ahead], self.positions(site)
        apart = positions > 1 and (not first or prod(first) > 1)
        return site.d_in // positions if apart else 0

    def parameters(self, site: Site, rank: int) -> int:
        return rank * (self.full(site) + self.positions(site) * site.d_out)

    def macs(self, site: Site, rank: int, read: Sequence[float]) -> float:
        """Along the other axes the first runs wherever is read: strides leave fewer outputs."""
        first = prod(read[self.ahead :]) * self.full(site)
        return rank * (first + self.positions(site) * site.d_out)

    def cut(self, site: Site) -> Cut:
        def cut(weight: Array, gram: Array, rank: int):  # type: ignore[no-untyped-def]
            return sliding_pair(weight[0], gram[0], rank, self.positions(site))

        return cut

    def tails(self, site: Site, weight: Array, fit: SecondMoment, judge: SecondMoment) -> Array:
        own, other = (moment.about(fit.mean)[0] for moment in (fit, judge))
        return sliding_tails(weight[0], own, other, self.positions(site))


def _form(one: _Sliding) -> Form:
    return Form(one.full, one.parameters, one.macs, one.cut, one.tails)


FORMS: dict[str, Form] = {
    "pair": Form(
        full=lambda site: site.full_rank,
        parameters=_pair_parameters,
        macs=_pair_macs,
        cut=lambda site: output_pair,
        tails=_pair_tails,
    ),
    "channel": _form(_Sliding(ahead=0)),
    "separable": _form(_Sliding(ahead=1)),
}

__all__ = ["FORMS", "Form"]

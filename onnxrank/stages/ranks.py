"""Which units are split, at which rank, and why the others are not. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxrank.graph.cost import factor_parameters
from onnxrank.graph.sites import Site, Unit
from onnxrank.results import PlanEntry

SMALL = "too small to matter, and the outputs may hang on it"

# Share of the mean layer below which one is too small to matter.
_SMALL = 0.05


@dataclass(frozen=True)
class UnitRank:
    """What the data say about one unit.

    Attributes
    ----------
    k_in, k_out : int
        Directions that hold the energy on either side.
    corrected : int
        `rank` corrected for the number of rows.
    stable : bool
        The folds agree with the whole.
    rows, rows_wanted : int
        Rows seen by all sites together, and about how many more the rank needs to settle.
    criteria : mapping of str to float
        Other measures of rank, by name.
    spectrum_in, spectrum_out : tuple of (int, float)
        Eigenvalues as shares of the energy, thinned for drawing.
    """

    k_in: int
    k_out: int
    corrected: int
    stable: bool
    rows: int
    rows_wanted: int
    criteria: Mapping[str, float] = field(default_factory=dict)
    spectrum_in: tuple[tuple[float, ...], ...] = ()
    spectrum_out: tuple[tuple[float, ...], ...] = ()

    @property
    def rank(self) -> int:
        """The utilized rank: the smaller of the two sides."""
        return min(self.k_in, self.k_out)


def choose(
    unit: Unit,
    found: UnitRank,
    *,
    form: str,
    align: int = 8,
    allow_unstable: bool = False,
    force: bool = False,
    full: bool = False,
    spare: bool = False,
) -> PlanEntry:
    """Decide one unit: split at the utilized rank, aligned up, or kept with the reason.

    Parameters
    ----------
    unit : Unit
        What is decided.
    found : UnitRank
        Its ranks on data.
    form : str
        Factor form; ``centered`` becomes ``optimal`` where no shift of the output can be written.
    align : int
        Ranks are rounded up to a multiple of this.
    allow_unstable : bool
        Split units whose rank has not settled.
    force : bool
        Split whatever can be split, even where it saves nothing.
    full : bool
        Take the full rank instead of the utilized one.
    spare : bool
        It is too small to be worth a split.
    """
    site = unit.sites[0]
    rank = site.full_rank if full else aligned(found.rank, align, site.full_rank)
    kept = _held(unit)
    if kept is None and not force:
        kept = _no_gain(unit, rank) or (None if allow_unstable else _unsettled(found))
        kept = kept or (SMALL if spare else None)
    if form == "centered" and not all(site.centers for site in unit.sites):
        form = "optimal"
    split = kept is None
    return PlanEntry(
        name=unit.name,
        kind=unit.kind,
        sites=tuple(site.name for site in unit.sites),
        form=form if split else None,
        rank=rank if split else None,
        k_in=found.k_in,
        k_out=found.k_out,
        kept=kept,
        parameters=site.parameters,
        factorized_parameters=factor_parameters(site, rank) if split else site.parameters,
    )


def kept_reason(unit: Unit, found: UnitRank, allow_unstable: bool) -> str | None:
    """Why a unit stays dense whatever the budget; None if it may be cut."""
    tied = _no_gain(unit, 0) if unit.tied else None
    return _held(unit) or tied or (None if allow_unstable else _unsettled(found))


def small(units: Sequence[Unit]) -> set[str]:
    """Units that are a sliver of the model: cutting them saves nothing, and may cost everything.

    A first convolution or a classifier often is one, and the first to break a model.
    """
    sizes = {unit.name: unit.sites[0].parameters for unit in units}
    mean = sum(sizes.values()) / max(len(sizes), 1)
    return {name for name, size in sizes.items() if size < _SMALL * mean}


def _held(unit: Unit) -> str | None:
    return next((site.hold.reason for site in unit.sites if site.hold), None)


def aligned(rank: int, align: int, full_rank: int) -> int:
    """`rank` rounded up to a multiple of `align`, at least 1, at most `full_rank`."""
    return min(max(math.ceil(rank / align) * align, 1), full_rank)


def break_even(site: Site) -> int:
    """Largest rank at which a factor pair is smaller than the dense weight."""
    return (site.d_in * site.d_out - 1) // (site.d_in + site.d_out)


def rows_wanted(rows: int, rank: int, folds: Sequence[int], share: float, d_in: int) -> int:
    """About how many more rows bring the folds within `share` of the whole.

    The error of a rank falls like one over the rows (method: section 1), and at least some 20
    rows a dimension are wanted before a difference says anything.
    """
    gap = max(abs(fold - rank) for fold in folds) / max(rank, 1)
    return max(math.ceil(rows * gap / share), 20 * d_in) - rows


def _no_gain(unit: Unit, rank: int) -> str | None:
    if unit.tied:
        return "does not pay: other nodes still need the dense weight"
    most = break_even(unit.sites[0])
    if rank > most:
        return f"does not pay at rank {rank} (pays up to {most})"
    return None


def _unsettled(found: UnitRank) -> str | None:
    if found.stable:
        return None
    return f"rank not settled: wants about {found.rows_wanted:,} more rows"

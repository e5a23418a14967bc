"""Tasks: the entries of a plan as blocks to be cut, with their factors on the original's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnxrank.errors import PlanError
from onnxrank.graph.model import Model
from onnxrank.graph.sites import Unit
from onnxrank.linalg.drift import Cut
from onnxrank.linalg.factorize import FORMS as PAIRS
from onnxrank.linalg.factorize import Factors, factorize, output_pair
from onnxrank.linalg.gram import Array, SecondMoment
from onnxrank.moments import Moments
from onnxrank.results import Plan, PlanEntry
from onnxrank.stages.blocks import Block
from onnxrank.stages.compensate import Task
from onnxrank.stages.forms import FORMS
from onnxrank.stages.measure import unit_moment


def tasks(model: Model, units: Mapping[str, Unit], plan: Plan, moments: Moments) -> Iterator[Task]:
    """Fit every block of a plan, one at a time.

    Raises
    ------
    PlanError
        A plan asks for a unit, form or rank that there is not.
    """
    entries = {entry.name: entry for entry in plan.split}
    for entry in plan.split:
        if entry.form == "shared" and entry.shares[:1] != (entry.name,):
            if entry.shares[:1] and entry.shares[0] in entries:
                continue  # goes with the first of those that share
            raise _wrong(model, f"unit '{entry.name}' shares a factor with none")
        yield _task(model, units, entries, entry, moments)


def _task(
    model: Model,
    units: Mapping[str, Unit],
    entries: Mapping[str, PlanEntry],
    entry: PlanEntry,
    moments: Moments,
) -> Task:
    members = [entries.get(name) for name in entry.shares] or [entry]
    found = [_unit(model, units, member, entry) for member in members]
    scales = tuple(member.scale if member else 1.0 for member in members)
    if len({unit.sites[0].view for unit in found}) > 1 or min(scales) <= 0:
        raise _wrong(model, f"unit '{entry.name}' shares a factor with one of another input")
    block = Block(tuple(found), scales)
    cut, full = _cut(model, block, entry)
    if entry.rank is None or not 1 <= entry.rank <= full:
        raise _wrong(model, f"rank {entry.rank} of unit '{entry.name}' is not in 1 to {full}")
    weight, moment = block.weight(model), unit_moment(moments, found[0])
    if entry.form in PAIRS:
        sides = None if entry.k_in is None or entry.k_out is None else (entry.k_in, entry.k_out)
        factors = factorize(weight, moment, entry.rank, entry.form, sides)
    else:
        factors = centred(weight, moment, entry.rank, cut)
    return Task(block, cut, entry.rank, factors)


def _unit(
    model: Model, units: Mapping[str, Unit], member: PlanEntry | None, entry: PlanEntry
) -> Unit:
    if member is None or member.rank != entry.rank or member.form != entry.form:
        raise _wrong(model, f"the units that share a factor with '{entry.name}' differ in rank")
    if member.name not in units:
        raise _wrong(model, f"the model has no unit '{member.name}'")
    unit = units[member.name]
    if tuple(site.name for site in unit.sites) != member.sites:
        raise _wrong(model, f"unit '{member.name}' has other sites than planned")
    return unit


def _cut(model: Model, block: Block, entry: PlanEntry) -> tuple[Cut, int]:
    """How a form cuts a block, and its full rank."""
    site = block.site
    if entry.form == "shared":
        return output_pair, min(site.d_in, sum(unit.sites[0].d_out for unit in block.units))
    if entry.form in PAIRS:
        return output_pair, site.full_rank
    if entry.form not in FORMS or not FORMS[entry.form].full(site):
        known = sorted({*PAIRS, *FORMS, "shared"} - {"pair"})
        raise _wrong(
            model, f"form '{entry.form}' of unit '{entry.name}'", f"one of {', '.join(known)}"
        )
    return FORMS[entry.form].cut(site), FORMS[entry.form].full(site)


def centred(weight: Array, moment: SecondMoment, rank: int, cut: Cut) -> Factors:
    """Cut in the metric of the covariance; the bias makes up for the mean."""
    factors = cut(weight, moment.covariance, rank)
    lost = weight - factors.product
    return Factors(factors.parts, (moment.mean[:, None, :] @ lost)[:, 0])


def _wrong(model: Model, what: str, hint: str = "") -> PlanError:
    return PlanError(what, where=f"plan for {model.name}", hint=hint)

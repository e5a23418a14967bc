"""Tasks: the entries of a plan as blocks to be cut, with their factors on the original's rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import replace

from onnxrank.errors import PlanError
from onnxrank.graph.bias import takes_shift
from onnxrank.graph.model import Model
from onnxrank.graph.operators import operator
from onnxrank.graph.sites import Unit
from onnxrank.linalg.drift import Cut
from onnxrank.linalg.factorize import FORMS as PAIRS
from onnxrank.linalg.factorize import Factors, factorize, output_pair
from onnxrank.linalg.gram import Array, SecondMoment
from onnxrank.moments import Moments
from onnxrank.results import REFIT, Plan, PlanEntry
from onnxrank.stages.blocks import Block
from onnxrank.stages.compensate import Task, alone
from onnxrank.stages.forms import FORMS
from onnxrank.stages.measure import unit_moment


def tasks(model: Model, units: Mapping[str, Unit], plan: Plan, moments: Moments) -> Iterator[Task]:
    """Fit every block of a plan, one at a time, in the order of the units.

    Raises
    ------
    PlanError
        A plan asks for a unit, form or rank that there is not.
    """
    entries = {entry.name: entry for entry in plan.split}
    _check(model, units, entries.values())
    for entry in (entries[name] for name in units if name in entries):
        if entry.form == "shared" and entry.shares[:1] != (entry.name,):
            first = entries.get(entry.shares[0]) if entry.shares else None
            if first is None or first.shares != entry.shares or entry.name not in entry.shares:
                raise _wrong(model, f"unit '{entry.name}' shares a factor with none")
            continue  # goes with the first of those that share
        yield _task(model, units, entries, entry, moments)


def _check(model: Model, units: Mapping[str, Unit], entries: Collection[PlanEntry]) -> None:
    """Refuse entries of units that the model has not."""
    for entry in entries:
        if entry.name not in units:
            raise _wrong(model, f"the model has no unit '{entry.name}'")
        if tuple(site.name for site in units[entry.name].sites) != entry.sites:
            raise _wrong(model, f"unit '{entry.name}' has other sites than planned")


def _task(
    model: Model,
    units: Mapping[str, Unit],
    entries: Mapping[str, PlanEntry],
    entry: PlanEntry,
    moments: Moments,
) -> Task:
    shares = entry.shares if entry.form == "shared" else (entry.name,)
    members = [entries[name] for name in shares if name in entries]
    if any((m.form, m.rank, m.shares) != (entry.form, entry.rank, entry.shares) for m in members):
        raise _wrong(model, f"the units that share a factor with '{entry.name}' differ in rank")
    found = [units[member.name] for member in members]
    scales = tuple(member.scale for member in members)
    views = {unit.sites[0].view for unit in found}
    complete = len(set(shares)) == len(found) == len(shares)
    if len(views) > 1 or not complete or not all(0 < scale < math.inf for scale in scales):
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
    fixed = entry.form in ("projection", "svd")
    return Task(block, cut, entry.rank, factors, fixed, shifts=factors.bias is not None)


def refits(model: Model, units: Mapping[str, Unit], plan: Plan) -> list[Task]:
    """The weights that stay dense, but may be fitted anew."""
    entries = [entry for entry in plan.units if entry.form == REFIT]
    _check(model, units, entries)
    wanted = {entry.name for entry in entries}
    return [_refit(model, unit) for name, unit in units.items() if name in wanted]


def _refit(model: Model, unit: Unit) -> Task:
    if not refittable(model, unit):
        raise _wrong(model, f"the weight of unit '{unit.name}' cannot be fitted anew")
    block, site = Block.of(unit), unit.sites[0]
    plain = Factors((block.weight(model),))
    return Task(block, _whole, 0, plain, shifts=takes_shift(model, site))


def _whole(weight: Array, gram: Array, rank: int) -> Factors:
    """Nothing is cut."""
    return Factors((weight,))


def refittable(model: Model, unit: Unit) -> bool:
    """Whether a unit's one node can take another weight, and nothing else needs the old one."""
    site = unit.sites[0]
    node = model.index.producers[site.scope][site.output]
    known = operator(node)
    free = alone(unit) and not unit.tied and site.hold is None
    return free and known is not None and known.refit is not None


def permitted(plan: Plan, model: Model, free: Container[Unit], units: Mapping[str, Unit]) -> Plan:
    """The plan with leave to fit anew what stays dense for no reason of its own."""

    def may(entry: PlanEntry) -> bool:
        unit = units[entry.name]
        return entry.form is None and unit in free and refittable(model, unit)

    return replace(plan, units=tuple(replace(e, form=REFIT) if may(e) else e for e in plan.units))


def settled(plan: Plan, fitted: Container[str]) -> Plan:
    """The plan with those refits alone that came to be."""
    return replace(
        plan,
        units=tuple(
            replace(e, form=None) if e.form == REFIT and e.name not in fitted else e
            for e in plan.units
        ),
    )


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

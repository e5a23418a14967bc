"""Latency: what linear maps, and what could be in their place, take on this machine.

Every distinct map is timed alone, as it is and in every form at a few ranks, on tensors of the
size that a batch gives it. Plans are made with these times; then the whole candidate is timed
beside the original, for what matters is that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx

from onnxrank.errors import OnnxRankError, PlanError
from onnxrank.graph.alone import alone
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import Model, load
from onnxrank.graph.rewrite import rewrite
from onnxrank.graph.scopes import MAIN
from onnxrank.graph.sites import Site, Unit
from onnxrank.graph.weights import weight_matrix
from onnxrank.linalg.gram import Array
from onnxrank.moments import Moments
from onnxrank.results import Plan
from onnxrank.runtime.batch import Batch
from onnxrank.runtime.session import Run
from onnxrank.runtime.timing import shortest, step
from onnxrank.stages.compress import compress
from onnxrank.stages.forms import FORMS, Form
from onnxrank.stages.survey import Progress, silent
from onnxrank.stages.work import shapes_of

LATENCY = "latency"

Planned = TypeVar("Planned")

# Ranks of a form that are timed; between them time is a straight line.
_RANKS = 4
# Rounds in which all forms of a map run in turns, and seconds that a map runs for in each.
_ROUNDS, _LEAST = 12, 1e-3
# Of the model's time, what its linear maps can take at most: timed alone they are a bit slower.
_MOST = 0.97
# Plans that are tried until one holds; one this near to what is asked for is not improved on.
_TRIES, _NEAR = 5, 0.95


@dataclass(frozen=True, eq=False)
class Times:
    """Seconds that one map takes.

    Attributes
    ----------
    dense : float
        As it is.
    forms : mapping of Form to (ndarray, ndarray)
        Ranks and seconds of each.
    """

    dense: float
    forms: Mapping[Form, tuple[Array, Array]]

    def cut(self, form: Form, rank: int) -> float:
        """In a form at a rank; infinite where that could not be timed."""
        if form not in self.forms:
            return float("inf")
        ranks, seconds = self.forms[form]
        beyond = max(rank / float(ranks[-1]), 1.0)  # a shared factor may be wider than a pair
        return beyond * float(np.interp(rank, ranks, seconds))


class LatencyCosts:
    """Costs in seconds a batch, for a `Planner`, as `costs.Costs` has them for what is counted.

    Parameters
    ----------
    model : Model
        The original.
    units : sequence of Unit
        What may be cut.
    batch : Batch
        What is run.
    run : Run
        Provider and threads.
    align : int
        Ranks of convolutions are multiples of this.
    progress : callable
        Called with (done, total, what).
    """

    reserve = 0.0

    def __init__(
        self,
        model: Model,
        units: Sequence[Unit],
        batch: Batch,
        run: Run,
        align: int,
        progress: Progress = silent,
    ) -> None:
        (self.whole,) = shortest([step(model, batch.feeds, run)], run)
        sites = [s for unit in units for s in unit.sites if s.scope == MAIN]
        shapes = shapes_of(model, dict.fromkeys(s.view.tensor for s in sites), batch, run)
        self._times: dict[str, list[Times | None]] = {}
        known: dict[Any, Times | None] = {}
        for done, unit in enumerate(units):
            progress(done, len(units), "timing")
            self._times[unit.name] = []
            for site in unit.sites:
                shape = shapes.get(site.view.tensor) if site.scope == MAIN else None
                key = _alike(model, site, shape)
                if key not in known:
                    known[key] = None if shape is None else _timed(model, site, shape, run, align)
                self._times[unit.name].append(known[key])
        total = sum(self._dense(unit) for unit in units)
        self._scale = min(1.0, _MOST * self.whole / total) if total else 1.0

    def _dense(self, unit: Unit) -> float:
        return sum(times.dense for times in self._times[unit.name] if times is not None)

    def dense(self, unit: Unit) -> float:
        """Of a unit as it is; 0 if it could not be timed, so that no cut of it seems to pay."""
        return self._scale * self._dense(unit)

    def cut(self, unit: Unit, form: Form, rank: int) -> float:
        """Of a unit in a form at a rank; no less than dense where it could not be timed."""
        found = [times.cut(form, rank) for times in self._times[unit.name] if times is not None]
        whole = len(found) == len(unit.sites) and np.isfinite(found).all()
        return self._scale * sum(found) if whole else self.dense(unit)

    def shared(self, units: Sequence[Unit], rank: int) -> float:
        """Of units with a common first factor: what all but one would spend on it is saved."""
        pair = FORMS["pair"]
        total = 0.0
        for place, unit in enumerate(units):
            site = unit.sites[0]
            second = site.d_out / (site.d_in + site.d_out)
            total += self.cut(unit, pair, rank) * (second if place else 1.0)
        return total


def _alike(model: Model, site: Site, shape: Sequence[int] | None) -> Any:
    """What makes two maps take the same time."""
    node = onnx.NodeProto()
    node.CopyFrom(model.index.producers[site.scope][site.output])
    given = tuple(bool(name) for name in node.input)
    for field in ("name", "input", "output", "doc_string", "metadata_props"):
        node.ClearField(field)
    kind = node.SerializeToString(deterministic=True)
    return kind, given, site.operand, site.weight.shape, site.weight.dtype, shape


def _timed(model: Model, site: Site, shape: tuple[int, ...], run: Run, align: int) -> Times | None:
    """Time one map and its forms in turns; None if it does not run by itself."""
    proto = alone(model, site, shape)
    if proto is None:
        return None
    dense = load(proto)
    sites, _ = find_sites(dense)
    if len(sites) != 1 or sites[0].hold is not None:
        return None
    lone = sites[0]
    rng = np.random.default_rng(0)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(lone.weight.dtype)
    feeds = {lone.view.tensor: rng.standard_normal(shape).astype(dtype)}
    try:
        steps = [step(dense, feeds, run)]
        marks: list[tuple[Form, int]] = []
        for form in FORMS.values():
            for rank in _ranks(lone, form, align):
                candidate = load(_split(dense, lone, form, rank))
                steps.append(step(candidate, feeds, run))
                marks.append((form, rank))
        taken = shortest(steps, run, repeats=_ROUNDS, least=_LEAST)
    except OnnxRankError:
        return None
    return Times(taken[0], _by_form(marks, taken[1:]))


def _ranks(site: Site, form: Form, align: int) -> list[int]:
    """A few ranks at which a form saves parameters, from few to many."""
    full = form.full(site)
    most = min((site.parameters - 1) // form.parameters(site, 1), full) if full else 0
    unit = align if site.convolves else 1
    if most < unit:
        return []
    grid = np.geomspace(max(most / 16, unit), most, _RANKS) // unit * unit
    return sorted({max(int(rank), unit) for rank in grid})


def _split(model: Model, site: Site, form: Form, rank: int) -> onnx.ModelProto:
    weight = weight_matrix(model, site)
    metric = np.broadcast_to(np.eye(site.d_in), (site.groups, site.d_in, site.d_in))
    return rewrite(model, [(site, form.cut(site)(weight, metric, rank))])


def _by_form(
    marks: Sequence[tuple[Form, int]], seconds: Sequence[float]
) -> dict[Form, tuple[Array, Array]]:
    """Curves that do not fall as ranks grow."""
    found: dict[Form, tuple[Array, Array]] = {}
    for form in {mark[0] for mark in marks}:
        points = [(r, s) for (f, r), s in zip(marks, seconds, strict=True) if f is form]
        ranks, taken = np.array(points, np.float64).T
        found[form] = ranks, np.maximum.accumulate(taken)
    return found


def within(
    plan: Callable[[float], Planned],
    reach: float,
    share: float,
    measure: Callable[[Planned], float],
) -> Planned:
    """The best plan whose measured share of the latency is at most what is asked for.

    Parameters
    ----------
    plan : callable
        The plan for a share, by the times of single maps.
    reach : float
        The smallest share that it can be asked for.
    share : float
        What is asked for.
    measure : callable
        The share that a plan really takes.

    Raises
    ------
    PlanError
        No plan holds.
    """
    low, high = reach, 1.0  # the plans asked for: one that held, and one that did not
    asked, best, held = min(max(share, reach), 1.0), float("inf"), None
    for left in range(_TRIES - 1, -1, -1):
        found = plan(asked)
        taken = measure(found)
        best = min(best, taken)
        if taken <= share:
            low, held = asked, found
        else:
            high = asked
        if _NEAR * share <= taken <= share or high <= reach or low >= 1:
            break
        # The rest of the model takes its time whatever is cut, so the difference is what counts.
        asked += share - taken
        if not low < asked < high:
            asked = (low + high) / 2 if held else reach
        if left == 1 and not held:
            asked = reach
    if held is None:
        raise PlanError(
            f"a share of {share:g} of the latency is out of reach",
            hint=f"these layers and data reach {best:.2f} on this machine",
        )
    return held


def measured_share(
    model: Model, moments: Moments, batch: Batch, run: Run
) -> Callable[[Plan], float]:
    """A function that times the model of a plan beside the original."""

    def measure(plan: Plan) -> float:
        if not plan.split:
            return 1.0
        candidate = load(compress(model, plan, moments), model.folder)
        steps = [step(one, batch.feeds, run) for one in (model, candidate)]
        before, after = shortest(steps, run)
        return after / before

    return measure

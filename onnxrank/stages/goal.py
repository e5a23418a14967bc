"""Goal: what a user asks of a compressed model, and the plan and factors that meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnxrank.errors import PlanError
from onnxrank.graph.override import override
from onnxrank.graph.sites import Unit
from onnxrank.linalg.factorize import FORMS, Factors
from onnxrank.results import Frontier, Plan
from onnxrank.runtime.batch import Batch, DataSource
from onnxrank.runtime.data import holdout
from onnxrank.runtime.replay import Replay
from onnxrank.runtime.session import Run
from onnxrank.stages.budget import Budget, Planner, free_units
from onnxrank.stages.compensate import affordable, compensate
from onnxrank.stages.judge import Judge, Loss
from onnxrank.stages.measure import Measured
from onnxrank.stages.plan import decide
from onnxrank.stages.search import search
from onnxrank.stages.survey import Progress
from onnxrank.stages.tasks import permitted, refits, settled, tasks

# Samples that decide, of those given to judge by.
_DECIDE = 4096
# Above this many parameters a compensated fit would hold too much at once.
_MOST = 250_000_000


@dataclass(frozen=True)
class Goal:
    """One of an energy, a budget, a largest loss, or a ready plan; none of them is a search.

    Attributes
    ----------
    energy : float or None
        Every layer is cut to the rank that holds this share of its energy.
    budget : Budget or None
        What may be kept.
    max_drop : float or None
        What may be lost: accuracy where there are labels, else agreement, else relative error.
    plan : Plan or None
        A plan to be applied.
    agreement, error : float
        Without any of these: share of top-1 classes that must agree, or, where there are no
        classes, the relative error that is allowed.
    """

    energy: float | None = None
    budget: Budget | None = None
    max_drop: float | None = None
    plan: Plan | None = None
    agreement: float = 0.99
    error: float = 0.01

    def __post_init__(self) -> None:
        given = [self.energy, self.budget, self.max_drop, self.plan]
        if sum(value is not None for value in given) > 1:
            raise PlanError("more than one goal is given", hint="an energy, a budget, or a drop")

    @property
    def searches(self) -> bool:
        """Whether models have to be tried out."""
        return self.energy is None and self.budget is None and self.plan is None

    def tolerance(self, loss: Loss) -> float:
        """What may be lost."""
        if self.max_drop is not None:
            return self.max_drop
        return self.error if loss.kind == "error" else 1 - self.agreement + 1e-9


@dataclass(frozen=True)
class Manner:
    """How a goal is met.

    Attributes
    ----------
    method : str
        ``auto`` or a factor form for an energy.
    align : int
        Ranks of convolutions are multiples of this.
    allow_unstable, force : bool
        See `plan`.
    compensate : bool
        Fit every layer to what the compressed ones before it give, where that can be done.
    """

    method: str = "auto"
    align: int = 8
    allow_unstable: bool = False
    force: bool = False
    compensate: bool = True


@dataclass(frozen=True, eq=False)
class Met:
    """A plan that meets a goal, with the factors that were fitted, if they were already."""

    plan: Plan
    factors: Mapping[str, Factors] | None = None
    frontier: Frontier | None = None
    note: str = ""


def meet(
    goal: Goal,
    manner: Manner,
    measured: Measured,
    rows: Mapping[str, float],
    source: DataSource | None,
    trial: Trial | None,
    run: Run,
    *,
    fits: bool = True,
    progress: Progress,
) -> Met:
    """Find the plan, and the factors where samples are there to fit them to.

    Parameters
    ----------
    goal, manner
        What is wanted, and how.
    measured : Measured
        Units, moments and ranks.
    rows : mapping of str to float
        Rows a sample by site.
    source : DataSource or None
        Calibration samples; without them nothing can be probed, searched or compensated.
    trial : (DataSource, DataSource) or None
        Samples that a search compares its candidates on, and others that decide. Neither is in
        `source`, nor in the moments, if candidates are to be judged on what they have not seen.
    run : Run
        How models are run.
    fits : bool
        Fit factors as well, not only the plan.
    progress : callable
        Called with (done, total, what).

    Raises
    ------
    PlanError
        The goal cannot be met with what is given.
    """
    if goal.energy is not None or goal.plan is not None:
        return _known(goal, manner, measured, source, run, fits, progress)
    if source is None and goal.budget is not None:
        from onnxrank.stages.uniform import uniform

        known = {**measured.survey.rows(), **rows}
        plan = uniform(measured, goal.budget, known, manner.align, manner.allow_unstable)
        return Met(plan, note="no samples to probe with: every layer keeps the same share")
    if source is None:
        raise PlanError(
            "moments alone do not tell what a layer means to the outputs",
            hint="give --data as well, or choose by --energy",
        )
    if manner.method != "auto":
        raise PlanError(
            f"--method {manner.method} goes with --energy", hint="a budget takes the best forms"
        )
    planner = Planner(
        measured,
        source,
        run,
        rows,
        align=manner.align,
        allow_unstable=manner.allow_unstable,
        progress=progress,
    )
    if goal.budget is not None:
        plan = planner.plan(goal.budget)
        if not fits:
            return Met(plan)
        return _met(plan, fit(planner, manner, plan, source, run, progress))
    return _searched(goal, manner, planner, source, trial, run, progress)


def _met(plan: Plan, factors: dict[str, Factors]) -> Met:
    return Met(settled(plan, factors), factors)


def _known(
    goal: Goal,
    manner: Manner,
    measured: Measured,
    source: DataSource | None,
    run: Run,
    fits: bool,
    progress: Progress,
) -> Met:
    """A plan that needs no probes: of an energy, or ready."""
    model = measured.survey.model
    plan = goal.plan or decide(
        measured,
        method=manner.method,
        align=manner.align,
        allow_unstable=manner.allow_unstable,
        force=manner.force,
    )
    if plan.model_sha256 != model.sha256:
        raise PlanError("this plan belongs to another model", hint=f"plan {model.name} again")
    plain = not manner.compensate or manner.method in FORMS or manner.force
    if plain or source is None or not plan.split or measured.survey.info({}).parameters > _MOST:
        return Met(settled(plan, ()))
    free = free_units(measured, bool(plan.settings.get("allow_unstable", manner.allow_unstable)))
    if goal.plan is None:
        plan = permitted(plan, model, free, _units(measured))
    if not fits:
        return Met(plan)
    cut = {entry.name for entry in plan.units if entry.form is not None}
    chosen = [u for u in measured.survey.units if u in free or u.name in cut]
    replay = Replay(override(model, [site for unit in chosen for site in unit.sites]), run)
    batches = affordable(replay, source, run)
    return _met(plan, _compensated(replay, measured, plan, batches, run, progress))


# Samples that candidates are compared on, and samples that decide among them.
Trial = tuple[DataSource, DataSource]


def part_trial(source: DataSource, evaluation: DataSource | None) -> tuple[DataSource, Trial]:
    """Part data into what a search fits to, and what it judges by.

    Raises
    ------
    PlanError
        There are too few samples.
    """
    searched: DataSource | None
    if evaluation is not None:
        searched, deciding = holdout(evaluation, share=1 / 2, most=_DECIDE)
    else:
        source, deciding = holdout(source)
        source, searched = holdout(source)
    if deciding is None or searched is None:
        raise PlanError("too few samples to search with", hint="give more data, or an --energy")
    return source, (searched, deciding)


def _searched(
    goal: Goal,
    manner: Manner,
    planner: Planner,
    source: DataSource,
    trial: Trial | None,
    run: Run,
    progress: Progress,
) -> Met:
    if trial is None:
        source, trial = part_trial(source, None)
    labelled = goal.max_drop is not None
    searched, deciding = (Judge(planner.replay, s.batches(), labelled=labelled) for s in trial)
    batches = affordable(planner.replay, source, run) if manner.compensate else []
    found = search(
        planner,
        lambda plan: _fit(planner, manner, plan, batches, run, lambda *_: None),
        searched,
        deciding,
        goal.tolerance,
        progress=progress,
    )
    if found.chosen is None:
        nothing = planner.plan(Budget("params", 1.0))
        entries = tuple(replace(e, form=None, rank=None, kept=_NOTHING) for e in nothing.units)
        return Met(replace(nothing, units=entries), {}, found.frontier, _NOTHING)
    plan, factors = found.chosen.plan, found.chosen.factors
    return Met(settled(plan, factors), factors, found.frontier)


_NOTHING = "nothing to gain at this tolerance"


def fit(
    planner: Planner,
    manner: Manner,
    plan: Plan,
    source: DataSource,
    run: Run,
    progress: Progress,
) -> dict[str, Factors]:
    """Factors of a plan by unit name, compensated if that is wanted."""
    batches = affordable(planner.replay, source, run) if manner.compensate else []
    return _fit(planner, manner, plan, batches, run, progress)


def _fit(
    planner: Planner,
    manner: Manner,
    plan: Plan,
    batches: Sequence[Batch],
    run: Run,
    progress: Progress,
) -> dict[str, Factors]:
    measured = planner.measured
    if manner.compensate:
        return _compensated(planner.replay, measured, plan, batches, run, progress)
    chosen = tasks(planner.model, _units(measured), plan, measured.moments)
    return {n: f for task in chosen for n, f in task.block.split(task.plain).items()}


def _units(measured: Measured) -> dict[str, Unit]:
    return {unit.name: unit for unit in measured.survey.units}


def _compensated(
    replay: Replay,
    measured: Measured,
    plan: Plan,
    batches: Sequence[Batch],
    run: Run,
    progress: Progress,
) -> dict[str, Factors]:
    model, units = measured.survey.model, _units(measured)
    chosen = [*tasks(model, units, plan, measured.moments), *refits(model, units, plan)]
    return compensate(model, replay, chosen, batches, run, progress=progress)

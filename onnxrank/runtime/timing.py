"""Timing: models in turns, so that whatever else a machine does meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from onnxrank.graph.model import Model
from onnxrank.runtime.session import Run, execute, open_session, provider_for


class Latency(NamedTuple):
    """Medians, in milliseconds a step.

    Attributes
    ----------
    original, candidate : float
        Of each model.
    ratio : float
        Median over rounds of candidate over original.
    """

    original: float
    candidate: float
    ratio: float


def latency(
    original: Model,
    candidate: Model,
    feeds: Mapping[str, Any],
    run: Run,
    *,
    repeats: int = 15,
    warm_up: int = 2,
    seconds: float = 20.0,
) -> Latency:
    """Time one step of two models.

    Parameters
    ----------
    original, candidate : Model
        What is timed, each in a session of its own.
    feeds : mapping of str to array
        Inputs of the step.
    run : Run
        Provider and threads.
    repeats : int
        Rounds; each runs both models, the first one alternating.
    warm_up : int
        Rounds before those that count.
    seconds : float
        Stop early after this time, but not before five rounds.
    """
    steps = [step(model, feeds, run) for model in (original, candidate)]
    rounds = turns(steps, repeats=repeats, warm_up=warm_up, seconds=seconds)
    return Latency(
        1000 * median(first for first, _ in rounds),
        1000 * median(second for _, second in rounds),
        median(second / first for first, second in rounds),
    )


def step(model: Model, feeds: Mapping[str, Any], run: Run) -> Callable[[], object]:
    """A function that runs a model once, in a session of its own."""
    session = open_session(model.proto, model.folder, run, name=model.name)
    names = [info.name for info in model.outputs]
    return lambda: execute(session, names, feeds, where="timing")


def turns(
    steps: Sequence[Callable[[], object]],
    *,
    repeats: int = 15,
    warm_up: int = 2,
    seconds: float = 20.0,
    least: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, ...]]:
    """Seconds that each step takes, in rounds that run all of them, every other one backwards.

    Parameters
    ----------
    steps : sequence of callable
        What is timed.
    repeats, warm_up : int
        Rounds that count, and rounds before them.
    seconds : float
        Stop early after this time, but not before five rounds.
    least : float
        Seconds that the first step is repeated for in a round, and as often the others: a step
        of a few microseconds cannot be timed once.
    clock : callable
        Tells the time, in seconds.
    """
    times = 1
    if least:
        steps[0]()
        times = max(1, round(least / max(_once(steps[0], 1, clock), 1e-7)))
    rounds: list[tuple[float, ...]] = []
    began = time.monotonic()
    for number in range(warm_up + repeats):
        order = range(len(steps)) if number % 2 else range(len(steps) - 1, -1, -1)
        taken = {k: _once(steps[k], times, clock) for k in order}
        if number >= warm_up:
            rounds.append(tuple(taken[k] for k in range(len(steps))))
        if len(rounds) >= 5 and time.monotonic() - began > seconds:
            break
    return rounds


def shortest(
    steps: Sequence[Callable[[], object]], run: Run, *, repeats: int = 15, least: float = 0.0
) -> list[float]:
    """Seconds of each step where nothing else on the machine interrupted it.

    One thread on the CPU is timed by its own clock, which stands still while others run.
    """
    alone = run.threads == 1 and provider_for(run) == "cpu"
    clock = time.thread_time if alone else time.perf_counter
    rounds = turns(steps, repeats=repeats, seconds=10, least=least, clock=clock)
    return [min(taken) for taken in zip(*rounds, strict=True)]


def _once(step: Callable[[], object], times: int, clock: Callable[[], float]) -> float:
    """Seconds that one run takes, mean over some."""
    began = clock()
    for _ in range(times):
        step()
    return (clock() - began) / times

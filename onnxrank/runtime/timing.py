"""Timing: two models in turns, so that whatever else a machine does meets both alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from onnxrank.graph.model import Model
from onnxrank.runtime.session import Run, execute, open_session


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
    sessions = [open_session(m.proto, m.folder, run, name=m.name) for m in (original, candidate)]
    names = [[info.name for info in m.outputs] for m in (original, candidate)]

    def once(which: int) -> float:
        began = time.perf_counter()
        execute(sessions[which], names[which], feeds, where="timing")
        return 1000 * (time.perf_counter() - began)

    rounds: list[tuple[float, float]] = []
    began = time.monotonic()
    for number in range(warm_up + repeats):
        if number % 2:
            second, first = once(1), once(0)
        else:
            first, second = once(0), once(1)
        if number >= warm_up:
            rounds.append((first, second))
        if len(rounds) >= 5 and time.monotonic() - began > seconds:
            break
    return Latency(
        median(first for first, _ in rounds),
        median(second for _, second in rounds),
        median(second / first for first, second in rounds),
    )

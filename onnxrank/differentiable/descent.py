"""Descent: Adam over the factors, each at a rate in proportion to its own size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Loss = Callable[[Mapping[str, Tensor]], None]
Check = Callable[[int, Mapping[str, Tensor]], float]

# A constant of zeros moves too.
_LEAST = 1e-3
# Steps until the full rate, as a share of all.
_WARM = 0.1
# A loss so many times the lowest one means that the rate was too high; what is left of it then.
_TOO_HIGH, _BACK = 1.5, 0.3


def descend(
    values: Mapping[str, Tensor], loss: Loss, steps: int, rate: float, check: Check, checks: int
) -> None:
    """Train factors, and show them several times on the way.

    The rate that a network bears differs by a factor of ten and more. So where a check finds that
    the loss has gone far up, descent goes on from the best factors so far, and slower.

    Parameters
    ----------
    values : mapping of str to Tensor
        Their first values; changed in place.
    loss : callable
        Adds one step's gradients.
    steps : int
    rate : float
        Share of its size that a factor changes by in a step, at most about; it warms up, and
        falls to nothing along a cosine.
    check : callable
        Gets the number of steps done and a copy of the factors, and answers with their loss.
    checks : int
        How often it is called, the last time at the end; and once before.
    """
    for value in values.values():
        value.requires_grad_()
    due = {round(steps * k / checks) for k in range(1, checks + 1)}
    optimizer = _adam(values, rate)
    best, lowest = _copy(values), check(0, _copy(values))
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"] * _pace(step, steps)
        optimizer.zero_grad()
        loss(values)
        optimizer.step()
        if step not in due:
            continue
        now = check(step, _copy(values))
        if now < lowest:
            best, lowest = _copy(values), now
        elif now > _TOO_HIGH * lowest:
            _restore(values, best)
            rate *= _BACK
            optimizer = _adam(values, rate)


def _adam(values: Mapping[str, Tensor], rate: float) -> torch.optim.Adam:
    sizes = [max(float(v.detach().square().mean().sqrt()), _LEAST) for v in values.values()]
    groups = [{"params": [v], "size": s} for v, s in zip(values.values(), sizes, strict=True)]
    return torch.optim.Adam(groups, rate)


def _restore(values: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(kept[name])


def _copy(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


def _pace(step: int, steps: int) -> float:
    warm = max(1, round(steps * _WARM))
    if step <= warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

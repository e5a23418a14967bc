"""Axes of charts: where a value lies, as a part of the axis, and which values are labelled."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxrank.report.text import power


@dataclass(frozen=True)
class Tick:
    """A labelled place, in percent of the axis from its lower end."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis between two different values."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Part of the axis below a value; values outside are on its ends."""
        low, high, here = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return (here - low) / (high - low) if high > low else 0.0

    def ticks(self, most: int) -> list[tuple[float, float]]:
        """Round values with their places in percent, at most about `most`."""
        values = _decades(self, most) if self.log else _steps(self, most)
        return [(value, round(100 * self.place(value), 2)) for value in values]


def numbers(axis: Axis, most: int) -> tuple[Tick, ...]:
    """Ticks with plain numbers."""
    return tuple(Tick(at, f"{value:,.12g}") for value, at in axis.ticks(most))


def percents(axis: Axis, most: int) -> tuple[Tick, ...]:
    """Ticks with percentages."""
    return tuple(Tick(at, f"{100 * value:.9g} %") for value, at in axis.ticks(most))


def powers(axis: Axis, most: int) -> tuple[Tick, ...]:
    """Ticks with powers of ten, of a logarithmic axis."""
    return tuple(Tick(at, _power(value)) for value, at in axis.ticks(most))


def around(values: list[float], log: bool) -> Axis:
    """An axis that holds all values with a little room."""
    low, high = min(values), max(values)
    if log:
        room = max(math.log10(high / low) * 0.06, 0.05)
        return Axis(low / 10**room, high * 10**room, log=True)
    room = max((high - low) * 0.06, 1e-9)
    return Axis(low - room, high + room)


def _power(value: float) -> str:
    exponent = math.log10(value)
    return power(round(exponent)) if abs(exponent - round(exponent)) < 1e-9 else f"{value:g}"


def _steps(axis: Axis, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (axis.high - axis.low) / max(most, 1)
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999999)
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _decades(axis: Axis, most: int) -> list[float]:
    """Powers of ten; with 2 and 5 between where there are hardly any."""
    first = math.ceil(math.log10(axis.low) - 1e-9)
    last = math.floor(math.log10(axis.high) + 1e-9)
    if last - first < 2:
        candidates = [round(m * 10.0**k, 12) for k in range(first - 1, last + 2) for m in (1, 2, 5)]
        return [value for value in candidates if axis.low <= value <= axis.high]
    stride = max(math.ceil((last - first + 1) / most), 1)
    return [10.0**k for k in range(last, first - 1, -stride)][::-1]

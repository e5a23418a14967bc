"""Numbers in words that fit a sentence or a cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Between a number and its unit: they are never parted by a line break.
_GAP = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"
UNKNOWN = "–"


def count(value: float | None) -> str:
    """Three digits and a unit: 10.6 M."""
    if value is None:
        return UNKNOWN
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4) * 0.9995:
            return _three_digits(value / size) + _GAP + unit
    return f"{value:,.0f}".replace("-", _MINUS)


def size(value: float | None) -> str:
    """Bytes: 10.6 MB."""
    if value is None:
        return UNKNOWN
    text = count(value)
    return f"{text}B" if _GAP in text else f"{text}{_GAP}B"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage; what is not all or nothing is not shown as such."""
    if share is None:
        return UNKNOWN
    value = 100 * share
    if 0 < abs(value) < 0.5 * 10**-digits:
        text = _small(value)
    elif 100 - 0.5 * 10**-digits <= value < 100:
        text = f"{math.floor(value * 100) / 100:.2f}" if value < 99.99 else "over 99.99"
    else:
        text = f"{value:.{digits}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", _MINUS) + _GAP + "%"


def rough(share: float) -> str:
    """A percentage for a headline: whole numbers from 10 % up."""
    return percent(share, 0 if abs(share) >= 0.0995 else 1)


def points(change: float) -> str:
    """A difference of two percentages, signed."""
    value = round(100 * change, 2)
    sign = "+" if value > 0 else _MINUS if value < 0 else "±"
    return f"{sign}{abs(value):.3g}{_GAP}points"


def figure(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return UNKNOWN
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", _MINUS)


def plain(value: int | None) -> str:
    """A whole number."""
    return UNKNOWN if value is None else f"{value:,}"


def milliseconds(value: float | None) -> str:
    """A latency."""
    return UNKNOWN if value is None else f"{_three_digits(value)}{_GAP}ms"


def number(amount: int, noun: str) -> str:
    """An amount with its noun, in the plural where it is one."""
    return f"{amount:,}{_GAP}{noun}" + ("" if amount == 1 else "s")


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def power(exponent: int) -> str:
    """A power of ten as a label: 10⁻³."""
    if exponent == 0:
        return "1"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def basename(path: str | None) -> str:
    """The last part of a path, whichever system it comes from."""
    if not path:
        return "a model"
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path


def _three_digits(value: float) -> str:
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{value:.{digits}f}".replace("-", _MINUS)


def _small(value: float) -> str:
    """Two significant digits, in full down to a millionth."""
    if abs(value) < 1e-4:
        return f"{value:.2g}"
    return f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"

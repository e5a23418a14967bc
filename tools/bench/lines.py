"""A chart of lines as SVG: a few points each, the vertical axis logarithmic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

# Distinct also in grey: https://jfly.uni-koeln.de/color/ (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#777777")
_LEFT, _TOP, _WIDE, _HIGH, _LEGEND, _LINE = 64, 34, 400, 270, 200, 20


def chart(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    x_title: str,
    y_title: str,
    main: str,
) -> str:
    """Draw points (share, positive value) of each name; the line of `main` is the thick one."""
    from onnxrank.report.axes import around, percents, powers

    points = [point for line in lines.values() for point in line]
    x, y = around([p[0] for p in points], log=False), around([p[1] for p in points], log=True)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return _LEFT + _WIDE * x.place(point[0]), _TOP + _HIGH * (1 - y.place(point[1]))

    bottom, right = _TOP + _HIGH, _LEFT + _WIDE
    parts = [_text(_LEFT + _WIDE / 2, 20, title, "middle", "bold")]
    for tick in percents(x, 6):
        at = _LEFT + _WIDE * tick.at / 100
        parts.append(f'<path class="g" d="M{at:.1f} {_TOP}V{bottom}"/>')
        parts.append(_text(at, bottom + 16, tick.label, "middle"))
    for tick in powers(y, 6):
        at = bottom - _HIGH * tick.at / 100
        parts.append(f'<path class="g" d="M{_LEFT} {at:.1f}H{right}"/>')
        parts.append(_text(_LEFT - 6, at + 4, tick.label, "end"))
    parts.append(_text(_LEFT + _WIDE / 2, bottom + 36, x_title, "middle"))
    middle = _TOP + _HIGH / 2
    parts.append(
        f'<g transform="rotate(-90 14 {middle})">{_text(14, middle, y_title, "middle")}</g>'
    )
    colours = iter(_COLOURS * (1 + len(lines) // len(_COLOURS)))
    for number, (name, line) in enumerate(lines.items()):
        colour = "#000" if name == main else next(colours)
        width = 2.6 if name == main else 1.3
        spots = [place(point) for point in sorted(line)]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
        style = f'stroke="{colour}" stroke-width="{width}" fill="none"'
        parts.append(f'<path {style} d="{path}"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in spots]
        level = _TOP + 10 + _LINE * number
        parts.append(f'<path {style} d="M{right + 14} {level}h22"/>')
        parts.append(_text(right + 42, level + 4, name, "start"))
    size = f'width="{right + _LEGEND + 20}" height="{bottom + 46}"'
    style = "<style>text{font:12px sans-serif;fill:#222}.g{stroke:#ddd}</style>"
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{ground}'
    return "\n".join([head, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {where}>{escape(text)}</text>"

"""Reports as one HTML file: it opens offline, asks no network for anything, and holds no clock.

The same report gives the same bytes. Charts are SVG, made here; the page follows the reader's
light or dark colours, prints in full, and works without scripts.
"""

from __future__ import annotations

import os
import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnxrank.record import write_text
from onnxrank.report import charts, page, text
from onnxrank.results import Comparison, Report
from onnxrank.version import __version__

__all__ = ["render", "render_comparison", "write"]


def render(report: Report, against: Report | None = None) -> str:
    """Return the page of a report.

    Parameters
    ----------
    report : Report
        From `inspect`, `analyze` or `compress`, or read from JSON.
    against : Report, optional
        Another one to show beside it: before and after training, other data, another model.

    Returns
    -------
    str
        A whole HTML document. The same reports give the same text.
    """
    return _render(page.report_page(report, against))


def render_comparison(comparison: Comparison) -> str:
    """Return the page of a comparison alone; see `render`."""
    return _render(page.comparison_page(comparison))


def write(
    result: Report | Comparison, path: str | os.PathLike[str], against: Report | None = None
) -> None:
    """Write the page of a report or a comparison; an existing file is replaced in one step.

    Raises
    ------
    WriteError
        If the folder does not exist or cannot be written to.
    """
    if isinstance(result, Comparison):
        write_text(path, render_comparison(result))
    else:
        write_text(path, render(result, against))


def _render(found: page.Page) -> str:
    environment = Environment(
        loader=PackageLoader("onnxrank.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "basename": text.basename,
        "breakable": _breakable,
        "count": text.count,
        "figure": text.figure,
        "level": charts.level,
        "number": text.number,
        "percent": text.percent,
        "plain": text.plain,
        "points": text.points,
        "short": "{:g}".format,
        "size": text.size,
        "source": page.source,
    }
    return environment.get_template("page.html.j2").render(page=found, version=__version__)


def _breakable(name: str) -> Markup:
    """A name that may go to the next line after its separators."""
    return Markup("<wbr>").join(re.split(r"(?<=[/.:])(?=[^/.:])", name))

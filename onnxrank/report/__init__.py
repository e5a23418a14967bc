"""Reports as one HTML file: it opens offline, asks no network for anything, and holds no clock.

The same report gives the same bytes. Charts are SVG, made here; the page follows the reader's
light or dark colours, prints in full, and works without scripts.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnxrank.errors import OnnxRankError
from onnxrank.record import write_text
from onnxrank.report import charts, page, text
from onnxrank.results import Comparison, Report
from onnxrank.version import __version__

__all__ = ["Result", "headline", "read", "render", "write"]

Result = Report | Comparison


def render(result: Result, against: Result | None = None) -> str:
    """Return the page of a report, or of a comparison alone.

    Parameters
    ----------
    result : Report or Comparison
        What a command gave, or what `read` found.
    against : Report, optional
        Another one to show beside it: before and after training, other data, another model.

    Returns
    -------
    str
        A whole HTML document. The same reports give the same text.

    Raises
    ------
    OnnxRankError
        One of two is a comparison, which already holds two models.
    """
    if against is None:
        return _render(_page(result))
    if isinstance(result, Comparison) or isinstance(against, Comparison):
        raise OnnxRankError(
            "a comparison cannot be shown beside another result",
            hint="give two reports, of 'analyze' or 'compress'",
        )
    return _render(page.report_page(result, against))


def headline(result: Result) -> str:
    """The first line of the page: what can go at what cost, or that nothing can."""
    return _page(result).verdict.headline


def write(result: Result, path: str | os.PathLike[str], against: Result | None = None) -> None:
    """Write the page that `render` gives; an existing file is replaced in one step.

    Raises
    ------
    WriteError
        If the folder does not exist or cannot be written to.
    """
    write_text(path, render(result, against))


def read(path: str | os.PathLike[str]) -> Result:
    """Read what ``--json`` wrote: a report, or a comparison.

    Raises
    ------
    OnnxRankError
        If it cannot be read, or is something else.
    """
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OnnxRankError(f"cannot be read as JSON: {error}", where=str(path)) from error
    if isinstance(plain, dict) and plain.get("schema") == Comparison.SCHEMA:
        return Comparison.from_dict(plain)
    return Report.from_dict(plain)


def _page(result: Result) -> page.Page:
    if isinstance(result, Comparison):
        return page.comparison_page(result)
    return page.report_page(result, None)


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

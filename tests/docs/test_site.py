"""The site builds without a warning, needs no network, and its reference is complete."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import onnxrank
from onnxrank.cli import main

from .pages import PAGES, ROOT

pytest.importorskip("mkdocs", reason="the site needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(path: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["", *main.commands])
def test_every_option_stands_in_the_reference(site: Path, name: str) -> None:
    text = text_of(site / "reference" / "cli" / "index.html")
    usage = f"Usage: onnxrank {name} ".replace("  ", " ")
    assert usage in text
    shown = text.partition(usage)[2].partition("Usage: ")[0]
    for parameter in (main.commands[name] if name else main).params:
        if isinstance(parameter, click.Option):
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"{option}\b", shown), option


def test_every_public_name_stands_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    anchors = set(re.findall(r'id="onnxrank\.([\w.]+)"', page))
    anchors = {name.removeprefix("results.") for name in anchors}
    assert set(onnxrank.__all__) - {"__version__"} <= anchors


def test_the_schemas_are_there(site: Path) -> None:
    for path in (ROOT / "docs" / "schema").iterdir():
        assert (site / "schema" / path.name).read_bytes() == path.read_bytes()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]* src="([^"]*)"', page)
        loaded += re.findall(r'<link\b(?![^>]*rel="canonical")[^>]* href="([^"]*)"', page)
        assert not [address for address in loaded if "//" in address], path


def test_formulae_are_made_when_the_site_is(site: Path) -> None:
    page = (site / "method" / "index.html").read_text(encoding="utf-8")
    assert page.count("<math ") > 40
    assert "$" not in text_of(site / "method" / "index.html").partition("Method")[2]


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text())
    pages = [page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")]
    assert sorted(named) == sorted(pages)

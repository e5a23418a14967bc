"""The page in a real Chromium: no request, no complaint, readable by everyone everywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from onnxrank.report import render, write

from .reports import HOSTILE, analysis, comparison, compressed, inspection

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
REPORT = compressed(analysis())


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page, and what the browser had to say about it."""

    page: Any
    url: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __call__(self, script: str) -> Any:
        return self.page.evaluate(script)


Open = Callable[..., Seen]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    contexts = []

    def show(text: str, **options: Any) -> Seen:
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        seen = Seen(page, path.as_uri())
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda message: seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("dialog", lambda dialog: seen.complaints.append(dialog.message))
        page.goto(seen.url)
        return seen

    yield show
    for context in contexts:
        context.close()


PAGES = {
    "compressed": render(REPORT),
    "analysis": render(analysis()),
    "inspection": render(inspection(analysis())),
    "against": render(REPORT, analysis(energy=0.999)),
    "random": render(
        replace(REPORT, data=replace(REPORT.data, meaningless=True))  # type: ignore[type-var]
    ),
}


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [*((kind, "light") for kind in PAGES), ("compressed", "dark"), ("random", "dark")],
)
def test_one_request_no_complaint_no_violation(show: Open, kind: str, scheme: str) -> None:
    seen = show(PAGES[kind], color_scheme=scheme)
    assert seen.requests == [seen.url]
    assert seen.complaints == []
    found = axe.Axe().run(seen.page)
    assert found.response["violations"] == [], found.generate_report()


def test_a_comparison_alone_is_accessible(show: Open, tmp_path: Path) -> None:
    path = tmp_path / "comparison.html"
    write(comparison(1000, 600), path)
    seen = show(path.read_text(encoding="utf-8"))
    assert (seen.requests, seen.complaints) == ([seen.url], [])
    assert axe.Axe().run(seen.page).response["violations"] == []


def test_dark_is_dark_and_light_is_light(show: Open) -> None:
    script = "getComputedStyle(document.body).backgroundColor"
    assert show(PAGES["compressed"], color_scheme="dark")(script) == "rgb(15, 18, 21)"
    assert show(PAGES["compressed"], color_scheme="light")(script) == "rgb(247, 247, 245)"


@pytest.mark.parametrize("width", [320, 390, 768])
@pytest.mark.parametrize("kind", PAGES)
def test_nothing_overflows_on_a_phone(show: Open, kind: str, width: int) -> None:
    seen = show(PAGES[kind], viewport={"width": width, "height": 844})
    assert seen("document.documentElement.scrollWidth") == width


def test_text_in_charts_keeps_its_size_on_a_phone(show: Open) -> None:
    seen = show(PAGES["compressed"], viewport={"width": 390, "height": 844})
    height = "document.querySelector('.large .x text').getBoundingClientRect().height"
    assert 10 < seen(height) < 20


def test_a_hostile_name_is_only_a_name(show: Open) -> None:
    sites = tuple(replace(site, name=f"{HOSTILE}{site.name}") for site in REPORT.sites)
    seen = show(render(replace(REPORT, sites=sites)))
    seen.page.select_option("#pick", "3")
    seen.page.fill("#search", "onerror")
    assert seen("document.images.length") == 0
    assert HOSTILE in seen("document.getElementById('large').textContent")
    assert (seen.requests, seen.complaints) == ([seen.url], [])


def test_without_scripts_everything_is_there_but_the_tools(show: Open) -> None:
    seen = show(PAGES["compressed"], java_script_enabled=False)
    assert seen.page.locator("#sites tbody tr").count() == len(REPORT.sites)
    assert seen.page.locator("#large svg[role=img]").is_visible()
    assert seen.page.locator(".small figure").count() == 9
    for tool in seen.page.locator(".scripted").all():
        assert not tool.is_visible()


def test_sorting_says_so_and_sorts(show: Open) -> None:
    seen = show(PAGES["compressed"])
    column = "[...document.querySelectorAll('#sites tbody tr')].map(r => r.cells[{}].textContent)"
    head = seen.page.locator("#sites thead th").nth(3)
    head.locator("button").press("Enter")
    weights = [int(text.replace(",", "")) for text in seen(column.format(3))]
    assert weights == sorted(weights, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    weights = [int(text.replace(",", "")) for text in seen(column.format(3))]
    assert weights == sorted(weights)
    assert head.get_attribute("aria-sort") == "ascending"
    seen.page.locator("#sites thead th button").nth(0).click()
    assert seen(column.format(0)) == [str(i + 1) for i in range(len(REPORT.sites))]
    assert seen.page.locator("#sites [aria-sort]").count() == 1


def test_searching_and_filtering_say_how_many_are_left(show: Open) -> None:
    seen = show(PAGES["compressed"])
    status = seen.page.get_by_role("status")
    assert status.inner_text() == "36 of 36 layers"
    seen.page.fill("#search", "STAGE1 conv")
    assert status.inner_text() == "4 of 36 layers"
    seen.page.fill("#search", "")
    seen.page.select_option("#fate", "fixed")
    assert status.inner_text() == "3 of 36 layers"
    assert seen.page.locator("#sites tbody tr:visible").count() == 3


def test_a_layer_is_picked_in_the_list_the_table_and_the_chart(show: Open) -> None:
    seen = show(PAGES["compressed"])
    shown = seen.page.locator("#large figcaption b")
    seen.page.select_option("#pick", "2")
    assert shown.inner_text() == REPORT.sites[1].name
    seen.page.locator("#sites tbody a").nth(7).click()
    assert shown.inner_text() == REPORT.sites[7].name
    assert seen("document.getElementById('pick').value") == "8"
    box = seen.page.locator(".depth svg svg .grid").bounding_box()
    at = {"x": box["width"] * 30.5 / 36, "y": box["height"] / 2}
    chart = seen.page.locator(".depth svg svg")
    chart.hover(position=at, force=True)
    assert REPORT.sites[30].name in seen.page.locator("#readout").inner_text()
    chart.click(position=at, force=True)
    assert shown.inner_text() == REPORT.sites[30].name
    assert seen.complaints == []


def test_paper_is_white_and_holds_all_rows(show: Open, tmp_path: Path) -> None:
    seen = show(PAGES["compressed"], color_scheme="dark")
    seen.page.fill("#search", "stage1")
    seen.page.emulate_media(media="print")
    assert seen("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.page.locator("#sites tbody tr:visible").count() == len(REPORT.sites)
    assert not seen.page.locator("#search").is_visible()
    assert seen.page.get_by_text("rank", exact=True).first.is_visible()
    closed = seen.page.locator("details:not([open]) .names").first
    assert closed.is_visible()
    printed = seen.page.pdf(format="A4", print_background=True)
    assert printed.startswith(b"%PDF") and 4 <= printed.count(b"/Type /Page\n") <= 10

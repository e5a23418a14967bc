"""Take the pictures of a report that the README shows, in light and dark.

    python tools/screenshots.py [--report REPORT.json] [--output docs/images]

Without a report it compresses the small vision transformer of `models/`. Needs Chromium on the
PATH, and the extra `dev`.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from onnxrank import report

ROOT = Path(__file__).parent.parent
WIDTH, COLOURS = 1100, 256
# The last thing on the picture.
END = "#large"


def main() -> None:
    """Make both pictures, and say how large they and the page are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, help="made by --json; else models/vit.onnx")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--energy", default="0.99", help="for models/vit.onnx")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = options.report or compressed(Path(folder), options.energy)
        page = Path(folder) / "report.html"
        report.write(report.read(source), page)
        print(f"{page.stat().st_size / 1e3:.0f} kB  {report.headline(report.read(source))}")
        with sync_playwright() as tool:
            browser = tool.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            for scheme in ("light", "dark"):
                picture = options.output / f"report-{scheme}.png"
                picture.write_bytes(taken(browser, page, scheme))
                print(f"{picture.stat().st_size / 1e3:.0f} kB  {picture}")
            browser.close()


def compressed(folder: Path, energy: str) -> Path:
    """Return the report of compressing the vision transformer."""
    found = folder / "report.json"
    words = [sys.executable, "-m", "onnxrank", "--quiet", "compress", "models/vit.onnx"]
    words += [str(folder / "small.onnx"), "--energy", energy, "--json", str(found)]
    words += ["--data", "models/fashion_calib.npz", "--eval", "models/fashion_eval.npz"]
    subprocess.run(words, cwd=ROOT, check=True)
    return found


def taken(browser: Browser, page: Path, scheme: str) -> bytes:
    """Return a PNG from the top of the page to the end of the large spectrum, in few colours."""
    context = browser.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": WIDTH, "height": 900},
        offline=True,
    )
    tab = context.new_page()
    tab.goto(page.as_uri())
    box = tab.locator(END).bounding_box()
    assert box is not None
    height = box["y"] + box["height"] + 16
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
    shot = tab.screenshot(full_page=True, clip=clip)  # type: ignore[arg-type]
    context.close()
    picture = (
        Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    )
    few = io.BytesIO()
    picture.save(few, "PNG", optimize=True)
    return few.getvalue()


if __name__ == "__main__":
    main()

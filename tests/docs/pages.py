"""The pages and their code blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
)

_FENCE = re.compile(
    r'^(?P<indent> *)```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?(?P<rest>[^\n]*)\n'
    r"(?P<text>.*?)^(?P=indent)```$",
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """What stands between two fences; `title` is the file it would be saved as."""

    page: str
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    fences = len(re.findall(r"^ *```", text, flags=re.MULTILINE))
    assert fences == 2 * len(found), f"{page}: a fence is not read"
    for match in found:
        assert not match["rest"], f"{page}: '{match['rest']}' behind a fence is not known"
    return [
        Block(page, text.count("\n", 0, m.start()) + 1, m["language"], m["title"], m["text"])
        for m in found
    ]

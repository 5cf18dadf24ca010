"""The README and docs/ as the tests read them: their text, and the blocks of code in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
TEXT = "\n".join(DOCUMENTS.values())

FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?$")


class Block(NamedTuple):
    """A block of code: its language, "" where it is indented, the name of the file that it shows, and its lines."""

    language: str
    title: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def blocks(text: str) -> Iterator[Block]:
    """The fenced and the indented blocks. Raises ValueError for a fence of another form than ```language title="file"."""
    lines = iter(text.splitlines())
    indented: list[str] = []
    before = ""
    for line in lines:
        if line.startswith("    ") and (indented or not before):
            indented.append(line[4:])
            continue
        if indented and line:
            yield Block("", "", tuple(indented))
            indented = []
        if line.startswith("```"):
            opening = FENCE.match(line)
            if not opening or not opening[1]:
                raise ValueError(f"a fence without a language: {line}")
            yield Block(opening[1], opening[2] or "", tuple(iter(lambda: next(lines), "```")))
        before = line
    if indented:
        yield Block("", "", tuple(indented))


def commands(text: str) -> Iterator[str]:
    """What is typed: the lines of indented blocks, of console blocks those after "$ ", and the commands of tables."""
    for block in blocks(text):
        if block.language == "":
            yield from (line for line in block.lines if line)
        elif block.language == "console":
            yield from (line.removeprefix("$ ") for line in block.lines if line.startswith("$ "))
    yield from re.findall(r"^\| [^|]+ \| `(chkpt-channels [^`]+)` \|", text, re.MULTILINE)

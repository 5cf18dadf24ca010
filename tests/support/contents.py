"""The contents list of each page of docs/, made of its headings: `make docs` writes it."""

from __future__ import annotations

import re

from tests.support.documents import ROOT

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
TOP = re.compile(r"\A(# .+\n\n)(?:(?:- \[.+\]\(#.+\)\n)+\n)?")
"""The title, and the list below it."""


def anchors(text: str) -> list[tuple[str, str]]:
    """Each heading below the title, with the anchor that GitHub makes of it."""
    headings = [title for marks, title in HEADING.findall(FENCED.sub("", text)) if len(marks) > 1]
    return [(title, re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")) for title in headings]


def with_contents(text: str) -> str:
    """The page with the list that its headings make, in the place of the one that it has."""
    rows = "".join(f"- [{title}](#{anchor})\n" for title, anchor in anchors(text))
    return TOP.sub(lambda top: f"{top[1]}{rows}\n", text)


if __name__ == "__main__":
    for path in sorted((ROOT / "docs").glob("*.md")):
        path.write_text(with_contents(path.read_text(encoding="utf-8")), encoding="utf-8")

"""Results as GitHub's workflow commands, which a pull request shows beside the file. Source: GitHub Actions' documentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def lines(result: dict[str, Any]) -> Iterator[str]:
    """One annotation for each error, difference and warning of a result (its JSON record); none where all is well."""
    path = result["input"]["path"]
    if error := result["error"]:
        yield _annotation("error", path, error["message"] + (f" (try: {error['hint']})" if error["hint"] else ""))
    for difference in result["differences"]:
        yield _annotation("error", path, f"{difference['key']}: {difference['message']}")
    for warning in result["warnings"]:
        yield _annotation("warning", path, warning["message"])


def _annotation(level: str, path: str, message: str) -> str:
    file = _escaped(path).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} file={file},title=chkpt-channels::{_escaped(message)}"


def _escaped(text: str) -> str:
    """Text in which nothing ends the command, or begins another: what is not printable is spelled out."""
    text = "".join(c if c.isprintable() or c in "\r\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

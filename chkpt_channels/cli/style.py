"""Colour: what a line is, its first word says, and a terminal shows it."""

from __future__ import annotations

import os
from typing import Any

CHOICES = ("auto", "always", "never")
_COLORS = {"error:": "1;31", "warning:": "1;33", "note:": "1;36", "try:": "1;32", "✓": "32", "✗": "31", "=": "36"}
"""ANSI codes (SGR) of the words that a line begins with."""
_choice = "auto"


def choose(choice: str) -> None:
    """What --color says."""
    global _choice
    _choice = choice


def is_colored(stream: Any) -> bool:
    """Whether a stream shows colours: as --color says, else NO_COLOR and FORCE_COLOR, else where it is a terminal. Sources:
    no-color.org, force-color.org."""
    if _choice != "auto":
        return _choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (_is_terminal(stream) and os.environ.get("TERM") != "dumb")


def colored(line: str, stream: Any) -> str:
    """A line with its first word in colour, where the stream shows it."""
    word = line.split(" ", 1)[0]
    code = _COLORS.get(word)
    return f"\x1b[{code}m{word}\x1b[0m{line[len(word) :]}" if code and is_colored(stream) else line


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False

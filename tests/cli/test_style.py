from __future__ import annotations

import io

import pytest

from chkpt_channels.cli import style


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    style.choose("auto")
    yield
    style.choose("auto")


@pytest.mark.parametrize(
    ("choice", "environment", "on_terminal", "elsewhere"),
    [
        ("auto", {}, True, False),
        ("auto", {"NO_COLOR": "1"}, False, False),
        ("auto", {"NO_COLOR": ""}, True, False),
        ("auto", {"FORCE_COLOR": "1"}, True, True),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ("auto", {"TERM": "dumb"}, False, False),
        ("always", {"NO_COLOR": "1"}, True, True),
        ("never", {"FORCE_COLOR": "1"}, False, False),
    ],
)
def test_where_there_is_colour(choice: str, environment: dict, on_terminal: bool, elsewhere: bool, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    style.choose(choice)
    assert (style.is_colored(Terminal()), style.is_colored(io.StringIO()), style.is_colored(None)) == (
        on_terminal,
        elsewhere,
        choice == "always" or (choice == "auto" and elsewhere),
    )


def test_only_the_first_word_is_coloured_and_only_one_that_says_what_the_line_is():
    assert style.colored("error: a.pth: is empty", Terminal()) == "\x1b[1;31merror:\x1b[0m a.pth: is empty"
    assert style.colored("✓ a.pth", Terminal()).startswith("\x1b[32m✓\x1b[0m a")
    assert style.colored("  conv1.weight", Terminal()) == "  conv1.weight"
    assert style.colored("error: x", io.StringIO()) == "error: x"

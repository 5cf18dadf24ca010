"""The progress bar: nothing before there is something to show, and nothing left behind."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from chkpt_channels.cli import progress
from chkpt_channels.cli.progress import Bar

TOTAL = 8 << 20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the bar sees."""
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return now


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


def test_what_is_done_within_a_second_is_not_shown(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with Bar() as bar:
        for _ in range(4):
            bar.update(2 << 20, TOTAL)
        clock[0] += 0.99
        bar.update(0, TOTAL)
    assert capsys.readouterr() == ("", "")


def test_after_a_second_everything_that_is_done_is_shown(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with Bar() as bar:
        bar.update(2 << 20, TOTAL)
        clock[0] += 1
        bar.update(2 << 20, TOTAL)
        (task,) = bar._shown.tasks
        assert (task.completed, task.total) == (4 << 20, TOTAL)
        bar.update(4 << 20, TOTAL)
        assert task.completed == TOTAL
        bar._shown.refresh()
    out, err = capsys.readouterr()
    assert not out
    assert "8.0/8.0 MiB" in plain(err)


@pytest.mark.parametrize("error", [None, KeyError("x"), KeyboardInterrupt()], ids=["done", "an error", "Ctrl-C"])
def test_the_bar_is_taken_away_however_it_ends(
    error: BaseException | None, clock: list[float], capsys: pytest.CaptureFixture[str]
):
    bar = Bar()
    with suppress(KeyError, KeyboardInterrupt), bar:
        clock[0] += 2
        bar.update(1, TOTAL)
        assert bar._shown.live.is_started
        if error:
            raise error
    assert not bar._shown.live.is_started
    assert capsys.readouterr().err.endswith("\x1b[2K"), "the last thing that a transient bar does is to erase its line"


def test_a_bar_that_was_never_shown_ends_too(clock: list[float]):
    with Bar() as bar:
        pass
    assert bar._shown is None
    assert clock == [100.0]


def test_the_library_of_the_bar_is_imported_when_it_is_shown():
    code = "import sys; from chkpt_channels.cli.progress import Bar; Bar().update(1, 2); sys.exit('rich.progress' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

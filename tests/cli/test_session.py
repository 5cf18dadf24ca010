"""A command's output: what goes where, one line for each error, the highest exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path

import pytest

from chkpt_channels import AmbiguousError, Candidate, DamagedError, PostPublishError, UsageError
from chkpt_channels.cli.session import Session, Stdout, progress, session, watching_stdout
from chkpt_channels.core.interrupts import Interrupted

RESULT = {"status": "converted"}


def test_lines_and_messages_for_people(capsys: pytest.CaptureFixture[str]):
    with session("convert", None, as_json=False) as console:
        console.add(RESULT, ["a report"], ["note: a message"])
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("a report\n", "note: a message\n")


def test_what_comes_last_comes_last():
    out = io.StringIO()
    with session("convert", None, as_json=False, report_to=out) as console:
        console.add(RESULT, ["a report"], (), ["the end"])
    assert out.getvalue() == "a report\nthe end\n"


def test_many_are_counted(capsys: pytest.CaptureFixture[str]):
    for form, expected in ((None, "2 converted, 1 would convert (exit 3)\n"), ("jsonl", "")):
        with session("convert", form, as_json=False) as console:
            for status in ("converted", "would_convert", "converted"):
                console.add({"status": status}, [])
            console.exit_code = 3
            capsys.readouterr()
            console.summarize()
            assert capsys.readouterr().out == expected


def test_one_json_object_at_the_end(capsys: pytest.CaptureFixture[str]):
    with session("convert", None, as_json=True) as console:
        console.add(RESULT, ["a report"], ["note: a message"])
        assert capsys.readouterr().out == ""
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert (document["command"], document["exit_code"], document["results"]) == ("convert", 0, [RESULT])
    assert shown.err == ""


def test_one_line_for_each_result():
    out = io.StringIO()
    with session("convert", "jsonl", as_json=False, report_to=out) as console:
        console.add(RESULT, [])
        assert json.loads(out.getvalue()) == RESULT
        console.add(RESULT, [])
    assert out.getvalue().count("\n") == 2


@pytest.mark.parametrize(
    ("command", "error", "line"),
    [
        ("convert", DamagedError("is cut off", file="a.pth", at=7), "error: a.pth: is cut off, at byte 7; nothing was written"),
        ("inspect", DamagedError("is cut off", file="a.pth"), "error: a.pth: is cut off"),
        ("convert", PostPublishError("is there", file="a.pth"), "error: a.pth: is there"),
        ("convert", MemoryError(), "error: a.pth: needs more memory than there is; nothing was written"),
        (
            "convert",
            ImportError("no h5py", name="h5py"),
            "error: a.pth: a library cannot be imported: no h5py; nothing was written",
        ),
    ],
)
def test_an_error_is_one_line(command: str, error: Exception, line: str, capsys: pytest.CaptureFixture[str]):
    console = Session(command, "human", io.StringIO())
    with console.file("a.pth"):
        raise error
    assert capsys.readouterr().err.splitlines()[0] == line
    assert console.exit_code == getattr(error, "exit_code", 5)


def test_candidates_and_a_hint_follow(capsys: pytest.CaptureFixture[str]):
    error = AmbiguousError("two fit", file="a.pth", candidates=[Candidate("k", (8, 3), "fed")], hint="--layer k")
    with Session("inspect", "human", None).file("a.pth"):
        raise error
    assert capsys.readouterr().err.splitlines() == ["error: a.pth: two fit", "  k   8×3   fed", "try: --layer k"]


def test_a_hint_is_safe_to_print(capsys: pytest.CaptureFixture[str]):
    with Session("inspect", "human", None).file("a.pth"):
        raise AmbiguousError("two fit", file="a.pth", hint="--layer \x1b[31m\u202ek\n")
    assert capsys.readouterr().err.splitlines()[1:] == [r"try: --layer \x1b[31m\u202ek\n"]


def test_the_message_of_the_json_has_no_prefix(capsys: pytest.CaptureFixture[str]):
    with session("convert", "json", as_json=False) as console, console.file("a.pth"):
        raise DamagedError("is cut off", file="a.pth")
    document = json.loads(capsys.readouterr().out)
    assert document["results"][0]["error"]["message"] == "a.pth: is cut off"


def test_the_highest_exit_code_wins():
    console = Session("convert", "human", None)
    for error in (DamagedError("x"), AmbiguousError("x"), UsageError("x")):
        with console.file("a"):
            raise error
    assert console.exit_code == 4


def test_a_bug_is_no_error_of_a_file():
    with pytest.raises(ZeroDivisionError), Session("convert", "human", None).file("a"):
        raise ZeroDivisionError


def test_an_import_that_fails_within_the_package_is_a_bug():
    with pytest.raises(ImportError), Session("convert", "human", None).file("a"):
        raise ImportError("gone", name="chkpt_channels.api")


def test_a_report_is_saved(tmp_path: Path):
    console = Session("convert", "human", io.StringIO())
    with console.saving_report(str(tmp_path / "r.json"), force=False):
        console.add(RESULT, [])
    assert json.loads((tmp_path / "r.json").read_text())["results"] == [RESULT]
    with pytest.raises(UsageError, match=r"must name a \.json file"), console.saving_report("r.txt", force=False):
        pass


def test_no_progress_without_a_terminal():
    with progress(quiet=False) as shown:
        assert shown is None
    with progress(quiet=True) as shown:
        assert shown is None


class Failing(io.StringIO):
    """A stream that takes no more."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


def test_what_standard_output_cannot_take():
    with pytest.raises(PostPublishError, match="standard output: cannot be written: no space left on device"):
        Stdout(Failing(errno.ENOSPC)).flush()
    with pytest.raises(Interrupted) as gone:
        Stdout(Failing(errno.EPIPE)).flush()
    assert gone.value.exit_code == 141
    converting = Stdout(Failing(errno.EPIPE))
    converting.ends_work = False
    converting.flush()
    assert converting.write("more") == 4


def test_standard_output_is_itself_again_afterwards(monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with watching_stdout():
        print("x")
        assert isinstance(sys.stdout, Stdout)
        assert sys.stdout.getvalue() == "x\n"
    assert sys.stdout is stream
    monkeypatch.setattr(sys, "stdout", None)  # closed when the command began
    with watching_stdout():
        assert sys.stdout is None

"""Many files checked side by side: the same answers in the same order, and a process that is killed is told by its file."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import Check
from chkpt_channels.api.check import check_among
from chkpt_channels.api.fleet import many
from chkpt_channels.cli.app import run
from chkpt_channels.core.errors import FileSystemError
from chkpt_channels.core.interrupts import Interrupted
from tests.support.files import FIXTURES


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Files that agree, one of four channels, one that is damaged, and one that is none."""
    for n in range(40):
        name = "state_dict_4ch.pth" if n == 17 else "state_dict.pth"
        (tmp_path / f"m{n:02}.pth").write_bytes((FIXTURES / "torch_zip" / name).read_bytes()[: 5000 if n == 29 else None])
    (tmp_path / "m33.pth").write_bytes(b"nothing")
    return tmp_path


def asked(zoo: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any, str]:
    code = run(["check", str(zoo), "--expect", "rgb", "--json"])
    shown = capsys.readouterr()
    return code, json.loads(shown.out), shown.err


def test_several_processes_say_the_same(zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    alone = asked(zoo, capsys)
    before = set(active_children())
    monkeypatch.setattr(many, "PROCESSES_FROM_FILES", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert asked(zoo, capsys) == alone
    assert alone[0] == 3
    assert [result["status"] for result in alone[1]["results"]].count("agrees") == 37
    assert set(active_children()) == before


def deadly(path: Path, expect: str) -> Check:
    """A check that one file ends the process of."""
    if path.name == "m05.pth":
        os.kill(os.getpid(), signal.SIGKILL)
    return check_among(path, expect)


def test_a_file_that_kills_its_process_is_told_alone(zoo: Path):
    questions = [partial(deadly, path, "rgb") for path in sorted(zoo.iterdir())[:20]]
    answers = list(many._side_by_side(questions, 2))
    assert len(answers) == 20
    error = answers[5].error
    assert isinstance(error, FileSystemError)
    assert str(error).endswith("m05.pth: was not checked: its process was killed")
    assert [n for n, answer in enumerate(answers) if answer.error] == [5]
    with pytest.raises(FileSystemError):
        answers[5].get()


def test_nothing_is_left_of_a_command_that_is_ended(zoo: Path):
    before = set(active_children())
    answers = many._side_by_side([partial(check_among, path, "rgb") for path in sorted(zoo.iterdir())], 2)
    next(answers)
    with pytest.raises(Interrupted):
        answers.throw(Interrupted(signal.SIGINT))
    assert set(active_children()) == before

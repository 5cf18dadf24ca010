from __future__ import annotations

import pytest

from chkpt_channels.api.report import Check, FileInfo, Mismatch, failure_record
from chkpt_channels.cli.text import annotation_lines as lines
from chkpt_channels.core.errors import DamagedError
from chkpt_channels.core.tensors import Notice


def test_an_error_a_difference_and_a_warning():
    assert list(lines(failure_record("a.pth", DamagedError("is empty", file="a.pth", hint="download it")))) == [
        "::error file=a.pth,title=chkpt-channels::a.pth: is empty (try: download it)"
    ]
    mismatch, notice = Mismatch("config.json", "num_channels", 3, 1), Notice("odd", "is odd")
    assert list(lines(Check(FileInfo("m/a.pth", "", 0), (), (mismatch,), notices=(notice,)).result())) == [
        "::error file=m/a.pth,title=chkpt-channels::config.json: num_channels: found 3, expected 1",
        "::warning file=m/a.pth,title=chkpt-channels::is odd",
    ]
    assert list(lines(Check(FileInfo("m/a.pth", "", 0), (), ()).result())) == []


@pytest.mark.parametrize("name", ["a\n::error::b", "a,b:c", "50%", "a\x1b[2J", "a\r\nb"])
def test_nothing_in_a_name_ends_the_command_or_begins_another(name: str):
    (line,) = lines(failure_record(name, DamagedError("is empty", file=name)))
    assert line.startswith("::error file=")
    assert line.isprintable()
    assert line.split(",title=", 1)[0].count(":") == 2

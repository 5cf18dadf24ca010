"""The ledger: whole lines or none, one writer, and rows that are not done again only where nothing has changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from chkpt_channels import DamagedError, FileSystemError, OutputExistsError, PostPublishError, UnsupportedError
from chkpt_channels.api.fleet import ledger as module
from chkpt_channels.api.fleet.ledger import Ledger, Line, error_record, merged, read, stamp
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
ROWS = [("a", "a.pth"), ("b", "b.pth"), ("c", "c.pth")]
LINE = Line("a", "/a.pth", "/a_gray.pth", "converted", 0, "1 1", "1 2", 1, None, "host", 0.1, "0.1.0")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "zoo.jsonl")


def written(path: str, *lines: Line, shard: str | None = None, resume: bool = False) -> dict[str, Line]:
    with Ledger(path, ROWS, shard, resume=resume) as ledger:
        for line in lines:
            ledger.add(line)
        return ledger.lines


def test_lines_come_back(path: str):
    error = UnsupportedError("is odd", file="b.pth", where="conv1", at=3, hint="--layer x")
    failed = LINE._replace(id="b", status="failed", exit=4, error=error_record(error))
    assert written(path, LINE, failed, LINE._replace(status="current")) == {}
    found = written(path, resume=True)
    assert found == {"a": LINE._replace(status="current"), "b": failed}
    again = found["b"].failure()
    assert (type(again), str(again), again.hint) == (UnsupportedError, str(error), "--layer x")
    assert Path(path).read_text().count('"ledger": 1') == 1  # the same rows are listed once


def test_cuts_of_a_ledger_lose_the_torn_line_alone(path: str):
    """As a crash leaves it: whole lines are kept, what is cut off is dropped from the file too, and the next line is whole."""
    written(path, LINE, LINE._replace(id="b"), LINE._replace(id="c"))
    whole = Path(path).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in sorted(
        {*range(0, len(whole), 41), *(end + by for end in ends for by in (-2, -1, 0, 1) if end + by <= len(whole))}
    ):
        for torn in (whole[:cut], whole[:cut] + b"\0" * 7 if cut in ends else whole[:cut]):
            Path(path).write_bytes(torn)
            expected = sum(end <= cut for end in ends[1:])
            assert len(read(path).lines) == expected, cut
            assert len(written(path, LINE._replace(id="x"), resume=True)) == expected, cut
            assert Path(path).read_bytes().endswith(json.dumps(LINE._replace(id="x")._asdict()).encode() + b"\n")
            assert len(read(path).lines) == expected + 1


@pytest.mark.parametrize("content", [RGB.read_bytes(), b"\0" * 100, b"{}\n", b"no newline", b'{"ledger": 2, "rows": []}\n'])
def test_a_file_that_is_no_ledger_is_left_alone(content: bytes, path: str):
    Path(path).write_bytes(content)
    with pytest.raises(DamagedError, match="is no ledger"):
        Ledger(path, ROWS, None, resume=True)
    assert Path(path).read_bytes() == content


@pytest.mark.parametrize("odd", ["{}", "[]", "null", '{"id": "b"}', "[" * 100_000, json.dumps(LINE._asdict() | {"error": {}})])
def test_a_line_in_the_middle_that_is_none(odd: str, path: str):
    written(path, LINE)
    whole = Path(path).read_text()
    Path(path).write_text(whole + odd + "\n" + json.dumps(LINE._asdict()) + "\n")
    with pytest.raises(DamagedError, match="line 3 is no line of a ledger"):
        read(path)


def test_a_ledger_that_is_there_is_gone_on_with_only_where_that_is_said(path: str):
    written(path, LINE)
    with pytest.raises(OutputExistsError) as error:
        written(path)
    assert error.value.hint == "--resume goes on with it"
    os.truncate(path, 0)
    assert written(path) == {}


def test_one_process_writes(path: str):
    with Ledger(path, ROWS, None, resume=False), pytest.raises(FileSystemError, match="is being written by another run"):
        Ledger(path, ROWS, None, resume=True)
    written(path, resume=True)


@pytest.mark.parametrize("name", ["none/zoo.jsonl", "."])
def test_a_ledger_that_cannot_be_opened(name: str, tmp_path: Path):
    with pytest.raises(FileSystemError, match="cannot be opened"):
        Ledger(str(tmp_path / name), ROWS, None, resume=True)
    with pytest.raises(FileSystemError, match="cannot be read"):
        read(tmp_path / name)


def test_a_full_disk_is_told_and_the_outputs_are_there(path: str, monkeypatch: pytest.MonkeyPatch):
    def full(fd: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    with Ledger(path, ROWS, None, resume=False) as ledger:
        monkeypatch.setattr(module.os, "write", full)
        with pytest.raises(PostPublishError, match="cannot be written: no space left"):
            ledger.add(LINE)


def test_a_line_is_synced_before_the_next(path: str, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    for name in ("write", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(module.os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    with Ledger(path, ROWS, None, resume=False) as ledger:
        calls.clear()
        ledger.add(LINE)
        ledger.add(LINE)
    assert calls == ["write", "fsync"] * 2


def test_a_row_is_final_where_both_files_are_as_they_were(tmp_path: Path):
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    shutil.copy(RGB, source)
    target.write_bytes(b"made")
    line = LINE._replace(src=str(source), dst=str(target), source_stamp=stamp(source), target_stamp=stamp(target))
    assert line.holds(force=False)
    assert line.holds(force=True)
    assert not line._replace(source_stamp=None).holds(force=False)
    refused = line._replace(error=error_record(UnsupportedError("is odd")))
    assert refused.holds(force=False)
    assert not refused.holds(force=True)
    assert not line._replace(error=error_record(FileSystemError("no space"))).holds(force=False)
    missing = line._replace(dst=str(tmp_path / "none"), target_stamp=None)
    assert not missing.holds(force=False)
    assert missing._replace(error=error_record(UnsupportedError("is odd"))).holds(force=False)
    os.utime(target, ns=(1, 1))
    assert not line.holds(force=False)
    line = line._replace(target_stamp=stamp(target))
    source.write_bytes(source.read_bytes() + b"x")
    assert not line.holds(force=False)


def test_the_stamp_of_a_folder_is_that_of_all_its_files(tmp_path: Path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a").write_bytes(b"a")
    (tmp_path / "in" / "b").write_bytes(b"b")
    first = stamp(tmp_path / "in")
    assert first == stamp(tmp_path / "in")
    os.utime(tmp_path / "in" / "deep" / "a", ns=(1, 1))
    second = stamp(tmp_path / "in")
    (tmp_path / "in" / "deep" / "c").touch()
    assert len({first, second, stamp(tmp_path / "in"), stamp(tmp_path / "none"), stamp("a\0b")}) == 4


def test_ledgers_of_shards_are_one_sum(tmp_path: Path):
    """A row counts once, as it was done; the shards that have no ledger are named."""
    first, third = str(tmp_path / "1.jsonl"), str(tmp_path / "3.jsonl")
    failed = LINE._replace(status="failed", exit=5, error=error_record(FileSystemError("no space")))
    written(first, LINE, failed._replace(id="b"), LINE._replace(id="of an older list"), shard="1/3")
    written(third, failed, LINE._replace(id="b"), shard="3/3")
    rows, missing = merged([first, third])
    assert {row.id: row.status for row in rows} == {"a": "converted", "b": "converted", "c": "left"}
    assert missing == ["2/3"]
    assert rows[2].result()["status"] == "left"
    assert rows[2].result()["input"]["path"] == "c.pth"
    assert failed.result()["error"]["message"] == "no space"


def test_the_record_of_what_was_done():
    assert LINE.result()["output"] == {"path": "/a_gray.pth", "bytes": 1, "sha256": None}

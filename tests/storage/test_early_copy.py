"""A copy made ahead is edited in place, or given up without a trace."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import chkpt_channels
from chkpt_channels.core.errors import ChkptChannelsError, FileSystemError, Location
from chkpt_channels.storage import early_copy as ahead
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice, spliced
from tests.support.files import FIXTURES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there is a copy made ahead")
PLACE = Location("out")
DATA = os.urandom(3 << 20)
FIXTURE = FIXTURES / "keras_h5" / "functional.h5"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    (tmp_path / "source").write_bytes(DATA)
    with Source(tmp_path / "source") as source:
        yield source


@pytest.fixture
def out(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


IN_PLACE = {
    "nothing": [],
    "a span": [(5, 8, b"abc")],
    "many": [(0, 1, b"a"), (1 << 20, (1 << 20) + 4, b"bcde")],
    "behind the end": [(5, 8, b"abc"), (len(DATA), len(DATA), b"more")],
    "a longer end": [(len(DATA) - 2, len(DATA), b"more")],
    "a shorter end": [(len(DATA) - 9, len(DATA), b"x")],
}


def nothing() -> None:
    """What is done meanwhile."""


def splices(*edits: tuple[int, int, bytes]) -> list[Splice]:
    return [Splice.of(*edit) for edit in edits]


@pytest.mark.parametrize("name", IN_PLACE)
def test_splices_in_place_are_written_into_the_copy(name: str, source: Source, out: int, tmp_path: Path):
    done: list[int] = []
    assert ahead.copy(source, out, nothing)
    assert (tmp_path / "out").read_bytes() == DATA
    assert ahead.overwrite(source, splices(*IN_PLACE[name]), out, PLACE, done.append)
    assert (tmp_path / "out").read_bytes() == spliced(DATA, IN_PLACE[name])
    assert done == [len(DATA)]


@pytest.mark.parametrize("edit", [(5, 8, b"abcd"), (5, 8, b""), (5, 5, b"a")])
def test_a_splice_that_moves_what_follows_is_not_written(edit: tuple[int, int, bytes], source: Source, out: int, tmp_path: Path):
    assert ahead.copy(source, out, nothing)
    assert not ahead.overwrite(source, splices(edit), out, PLACE)
    assert (tmp_path / "out").read_bytes() == b""


@pytest.mark.parametrize("name", ["copy_file_range", "posix_fallocate"])
def test_a_copy_that_failed_is_given_up(name: str, source: Source, out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    os.write(out, b"something")
    monkeypatch.setattr(os, name, fail)
    assert not ahead.copy(source, out, nothing)
    assert (tmp_path / "out").read_bytes() == b""


def test_a_source_cut_short_is_given_up(source: Source, out: int, tmp_path: Path):
    os.truncate(tmp_path / "source", 100)
    assert not ahead.copy(source, out, nothing)
    assert (tmp_path / "out").read_bytes() == b""


def test_what_is_raised_meanwhile_ends_the_copy(source: Source, out: int, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    may_go_on = threading.Event()

    def slow(*_: object) -> int:
        calls.append(1)
        may_go_on.wait()
        return 1

    def interrupted() -> None:
        while not calls:
            time.sleep(0.01)
        threading.Timer(0.2, may_go_on.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "copy_file_range", slow)
    with pytest.raises(KeyboardInterrupt):
        ahead.copy(source, out, interrupted)
    assert calls == [1]


def test_an_output_that_takes_no_more_is_the_systems_problem(source: Source, out: int, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Broken disk")

    assert ahead.copy(source, out, nothing)
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(FileSystemError, match="out: cannot be written: broken disk"):
        ahead.overwrite(source, splices((5, 8, b"abc")), out, PLACE)


def test_it_pays_where_files_are_neither_small_nor_large(source: Source):
    assert ahead.worthwhile(source)
    for size in (ahead.SMALL_BYTES - 1, ahead.DIRECT_FROM_BYTES):
        source.size = size
        assert not ahead.worthwhile(source)


@pytest.fixture
def overwritten(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What became of the copies that were made ahead, of files of any size."""
    found: list[bool] = []
    overwrite = ahead.overwrite

    def watched(*arguments: Any) -> bool:
        found.append(overwrite(*arguments))
        return found[-1]

    monkeypatch.setattr(ahead, "SMALL_BYTES", 0)
    monkeypatch.setattr(ahead, "overwrite", watched)
    return found


def test_the_output_is_the_same(overwritten: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chkpt_channels.convert(FIXTURE, tmp_path / "ahead.h5", to=4)
    assert overwritten == [True]
    monkeypatch.setattr(ahead, "worthwhile", lambda _: False)
    chkpt_channels.convert(FIXTURE, tmp_path / "not.h5", to=4)
    assert overwritten == [True]
    assert (tmp_path / "ahead.h5").read_bytes() == (tmp_path / "not.h5").read_bytes()


def test_without_the_copy_the_output_is_the_same(overwritten: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chkpt_channels.convert(FIXTURE, tmp_path / "ahead.h5")
    monkeypatch.setattr(ahead, "_copy", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    chkpt_channels.convert(FIXTURE, tmp_path / "again.h5")
    assert overwritten == [True]
    assert (tmp_path / "ahead.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()


def test_a_refusal_leaves_nothing(overwritten: list[bool], tmp_path: Path):
    with pytest.raises(ChkptChannelsError):
        chkpt_channels.convert(FIXTURE, tmp_path / "new.h5", layers=["no such layer"])
    assert overwritten == []
    assert not list(tmp_path.iterdir())


def test_a_source_that_changes_meanwhile_is_refused(overwritten: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "source.h5"
    source.write_bytes(FIXTURE.read_bytes())
    copy = ahead.copy

    def change(*arguments: Any) -> bool:
        os.utime(source, (1, 1))
        return copy(*arguments)

    monkeypatch.setattr(ahead, "copy", change)
    with pytest.raises(FileSystemError, match="changed"):
        chkpt_channels.convert(source, tmp_path / "new.h5")
    assert overwritten == [True]
    assert os.listdir(tmp_path) == ["source.h5"]

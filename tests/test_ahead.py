"""A copy begun ahead is finished, or given up without a trace."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import chkpt_channels
from chkpt_channels import ahead
from chkpt_channels.errors import ChkptChannelsError, Place, SystemProblem
from chkpt_channels.source import Source
from chkpt_channels.splice import Splice, spliced

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there is a copy begun ahead")
PLACE = Place("out")
DATA = os.urandom(3 << 20)
FIXTURE = Path(__file__).resolve().parents[1] / "fixtures/keras_h5/functional.h5"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runner may have threads of its own, which touch none of this. Afterwards no child is left."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


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


@pytest.mark.parametrize("name", IN_PLACE)
def test_splices_in_place_are_written_into_the_copy(name: str, source: Source, out: int, tmp_path: Path):
    done: list[int] = []
    with ahead.Ahead(source, out) as begun:
        assert begun.finish([Splice.of(*edit) for edit in IN_PLACE[name]], PLACE, done.append)
    assert (tmp_path / "out").read_bytes() == spliced(DATA, IN_PLACE[name])
    assert done == [len(DATA)]


@pytest.mark.parametrize("wait", [0, 0.5])
@pytest.mark.parametrize("edit", [(5, 8, b"abcd"), (5, 8, b""), (5, 5, b"a")])
def test_a_copy_that_would_have_to_move_is_given_up(
    edit: tuple[int, int, bytes], wait: float, source: Source, out: int, tmp_path: Path
):
    with ahead.Ahead(source, out) as begun:
        time.sleep(wait)
        assert not begun.finish([Splice.of(*edit)], PLACE)
    assert (tmp_path / "out").read_bytes() == b""


@pytest.mark.parametrize("name", ["copy_file_range", "posix_fallocate", "fsync"])
def test_a_copy_that_failed_is_given_up(name: str, source: Source, out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        begun = ahead.Ahead(source, out)
    with begun:
        assert not begun.finish([Splice.of(5, 8, b"abc")], PLACE)
    assert (tmp_path / "out").read_bytes() == b""


def test_a_source_cut_short_is_no_complete_copy(source: Source, out: int, tmp_path: Path):
    os.truncate(tmp_path / "source", 100)
    with ahead.Ahead(source, out) as begun:
        assert not begun.finish([], PLACE)


def test_an_output_that_takes_no_more_is_the_systems_problem(source: Source, out: int, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Broken disk")

    monkeypatch.setattr(os, "pwrite", fail)
    with ahead.Ahead(source, out) as begun, pytest.raises(SystemProblem, match="out: cannot be written: broken disk"):
        begun.finish([Splice.of(5, 8, b"abc")], PLACE)


def test_it_pays_where_files_are_neither_small_nor_large(source: Source, monkeypatch: pytest.MonkeyPatch):
    assert ahead.pays(source)
    for size in (ahead.SMALL - 1, ahead.DIRECT_FROM):
        source.size = size
        assert not ahead.pays(source)
    source.size = ahead.SMALL
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not ahead.pays(source)


class _Watched(ahead.Ahead):
    """Counts the copies that were finished."""

    finished: list[bool]

    def finish(self, *arguments: object) -> bool:
        self.finished.append(super().finish(*arguments))  # type: ignore[arg-type] # passed on as they are
        return self.finished[-1]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[_Watched]:
    monkeypatch.setattr(ahead, "SMALL", 0)
    monkeypatch.setattr(ahead, "Ahead", _Watched)
    _Watched.finished = []
    return _Watched


def test_the_output_is_the_same(watched: type[_Watched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chkpt_channels.convert(FIXTURE, tmp_path / "ahead.h5", to=4)
    assert watched.finished == [True]
    monkeypatch.setattr(ahead, "pays", lambda _: False)
    chkpt_channels.convert(FIXTURE, tmp_path / "not.h5", to=4)
    assert watched.finished == [True]
    assert (tmp_path / "ahead.h5").read_bytes() == (tmp_path / "not.h5").read_bytes()


def test_a_refusal_leaves_nothing(watched: type[_Watched], tmp_path: Path):
    with pytest.raises(ChkptChannelsError):
        chkpt_channels.convert(FIXTURE, tmp_path / "new.h5", layers=["no such layer"])
    assert watched.finished == []
    assert not list(tmp_path.iterdir())


def test_a_source_that_changes_meanwhile_is_refused(watched: type[_Watched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "source.h5"
    source.write_bytes(FIXTURE.read_bytes())
    finish = _Watched.finish

    def change(self: _Watched, *arguments: object) -> bool:
        os.utime(source, (1, 1))
        return finish(self, *arguments)

    monkeypatch.setattr(_Watched, "finish", change)
    with pytest.raises(SystemProblem, match="changed"):
        chkpt_channels.convert(source, tmp_path / "new.h5")
    assert os.listdir(tmp_path) == ["source.h5"]

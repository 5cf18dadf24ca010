"""A copy that begins before its output: the output is the same to the byte, whatever becomes of the process that copies."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from chkpt_channels import convert
from chkpt_channels.core import interrupts
from chkpt_channels.core.errors import ChkptChannelsError, DamagedError, FileSystemError, Location, UnknownFormatError
from chkpt_channels.storage import atomic, copy_ahead, isolation, stream_copy
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice, spliced
from chkpt_channels.storage.stream_copy import writing
from tests.storage.test_stream_copy import Watched
from tests.support.files import FIXTURES

DATA = bytes(range(251)) * 100
PLACE = Location("out")
KERAS = sorted((FIXTURES / "keras_h5").glob("*.h5"))
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not atomic.UNNAMED, reason="only Linux has unnamed files")


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> list[copy_ahead.CopyAhead]:
    """The copies that began: of small files too, and although the test runner may have threads of its own."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(copy_ahead, "AHEAD_FROM_BYTES", 1)
    monkeypatch.setattr(copy_ahead, "RANGE_BYTES", 1000)
    copies: list[copy_ahead.CopyAhead] = []
    real = copy_ahead.CopyAhead

    def counted(source: Source, folder: Path, fd: int) -> copy_ahead.CopyAhead:
        copies.append(real(source, folder, fd))
        return copies[-1]

    monkeypatch.setattr(copy_ahead, "CopyAhead", counted)
    return copies


@pytest.fixture
def copied_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that this process copied."""
    sizes, real = list[int](), stream_copy._Copy._follow

    def follow(self: stream_copy._Copy, start: int, size: int, *rest: int) -> None:
        sizes.append(size)
        real(self, start, size, *rest)

    monkeypatch.setattr(stream_copy._Copy, "_follow", follow)
    return sizes


def outcome(source: Path, output: Path) -> bytes | str:
    try:
        convert(source, output, to=4)
    except ChkptChannelsError as error:
        return error.what
    return output.read_bytes()


@pytest.mark.parametrize("source", KERAS, ids=lambda path: path.name)
def test_the_output_is_the_same(
    source: Path, tmp_path: Path, begun: list[object], copied_here: list[int], monkeypatch: pytest.MonkeyPatch
):
    output, other = (tmp_path / f"{name}{''.join(source.suffixes)}" for name in ("ahead", "behind"))
    with_process = outcome(source, output)
    assert len(begun) == 1
    assert not copied_here
    monkeypatch.setattr(copy_ahead, "AHEAD_FROM_BYTES", 1 << 60)
    assert outcome(source, other) == with_process
    assert len(begun) == 1


def moved(source: Source, folder: Path, splices: list[Splice], progress: Callable[[int], None] | None = None) -> bytes:
    source.ahead = copy_ahead.begin(source, folder)
    with atomic.Output(folder / "out", source) as out:
        with writing(source, splices, out.fd, PLACE, progress=progress):
            pass
        out.publish()
    return (folder / "out").read_bytes()


@pytest.mark.parametrize(
    "change", [(0, 0, b""), (5, 9, b"abcd"), (5, 9, b"longer"), (25000, 25100, b""), (25100, 25100, b"tail")]
)
def test_what_moves_is_copied_after_it(change: tuple[int, int, bytes], tmp_path: Path):
    path, steps = tmp_path / "in", list[int]()
    path.write_bytes(DATA)
    with Source(path) as source:
        assert moved(source, tmp_path, [Splice.of(*change)], steps.append) == spliced(DATA, [change])
    assert sum(steps) >= len(DATA) - 100


@pytest.mark.parametrize("call", ["posix_fallocate", "copy_file_range", "write"])
def test_where_the_process_fails_this_one_copies(
    call: str, tmp_path: Path, copied_here: list[int], monkeypatch: pytest.MonkeyPatch
):
    path, here, real = tmp_path / "in", os.getpid(), getattr(os, call)
    path.write_bytes(DATA)

    def fails_there(*arguments: int) -> int:
        if os.getpid() != here:
            raise OSError
        return int(real(*arguments) or 0)

    monkeypatch.setattr(os, call, fails_there)
    with Source(path) as source:
        assert moved(source, tmp_path, [Splice.of(25000, 25100, b"")]) == DATA[:25000]
    assert sum(copied_here) == 25000


def test_a_killed_process_is_one_that_failed(tmp_path: Path, begun: list[copy_ahead.CopyAhead], monkeypatch: pytest.MonkeyPatch):
    path, here, real = tmp_path / "in", os.getpid(), os.write
    path.write_bytes(DATA)
    monkeypatch.setattr(
        os, "write", lambda fd, data: os.kill(os.getpid(), signal.SIGKILL) if os.getpid() != here else real(fd, data)
    )
    with Source(path) as source:
        assert moved(source, tmp_path, [Splice.of(0, 1, b"x")]) == b"x" + DATA[1:]
    with pytest.raises(ChildProcessError):
        os.waitpid(begun[0]._child, 0)


def test_nothing_is_left_of_what_is_refused(tmp_path: Path, begun: list[copy_ahead.CopyAhead]):
    import h5py

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1.0]
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ChkptChannelsError, match="not one that Keras wrote"):
        convert(tmp_path / "other.h5", tmp_path / "out.h5")
    assert os.listdir(tmp_path) == ["other.h5"]
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(begun[0]._child, 0)


def test_a_missing_folder_is_told_as_ever(tmp_path: Path, begun: list[object]):
    with pytest.raises(FileSystemError, match="cannot be written"):
        convert(KERAS[0], tmp_path / "missing" / "out.h5")
    assert not begun


def test_what_needs_no_copy_begins_none(tmp_path: Path, begun: list[object], monkeypatch: pytest.MonkeyPatch):
    convert(KERAS[0], tmp_path / "dry.h5", dry_run=True)
    convert(FIXTURES / "torch_zip" / "state_dict.pth", tmp_path / "out.pth")
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(UnknownFormatError):
        convert(tmp_path / "text.h5", tmp_path / "out.h5")
    monkeypatch.setattr(isolation, "may_fork", lambda: False)
    convert(KERAS[0], tmp_path / "out.h5")
    assert not begun


def test_what_is_checked_passes_by(tmp_path: Path, copied_here: list[int]):
    path = tmp_path / "in"
    path.write_bytes(DATA)
    with Source(path) as source:
        source.ahead = copy_ahead.begin(source, tmp_path)
        check = Watched(100, 20000, "a sum")
        with (
            atomic.Output(tmp_path / "out", source) as out,
            pytest.raises(DamagedError, match="a sum"),
            writing(source, [], out.fd, PLACE, [check]),
        ):
            pass
    assert check.seen == DATA[100:20000]
    assert copied_here


def test_an_interrupt_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, steps = tmp_path / "in", list[int]()
    path.write_bytes(DATA)

    def progress(count: int) -> None:
        steps.append(count)
        monkeypatch.setattr(interrupts, "_received", signal.SIGTERM)

    with Source(path) as source, pytest.raises(interrupts.Interrupted):
        moved(source, tmp_path, [], progress)
    assert len(steps) == 1

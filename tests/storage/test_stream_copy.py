"""The streaming copy: the same bytes as splicing in memory, whatever the block size and the way of writing."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings

from chkpt_channels import DamagedError, FileSystemError
from chkpt_channels.core import interrupts
from chkpt_channels.core.errors import Location
from chkpt_channels.storage import stream_copy
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice, output_size, spliced
from chkpt_channels.storage.stream_copy import writing
from tests.storage.test_splice import edits
from tests.support.files import Failing

PLACE = Location("out")
DATA = bytes(range(251)) * 100


class Watched:
    """A check that remembers what passed by."""

    def __init__(self, start: int, stop: int, verdict: str = "") -> None:
        self.start, self.stop, self.verdict, self.seen, self.finished = start, stop, verdict, b"", False

    def update(self, data: memoryview) -> None:
        self.seen += bytes(data)

    def finish(self) -> None:
        self.finished = True
        if self.verdict:
            raise PLACE.damaged(self.verdict)


def copied(
    data: bytes, splices: Sequence[Splice], checks: Sequence[Watched] = (), progress: Callable[[int], None] | None = None
) -> bytes:
    with tempfile.TemporaryDirectory() as folder, Path(folder, "out").open("w+b") as out:
        path = Path(folder, "in")
        path.write_bytes(data)
        with Source(path) as source:
            with writing(source, splices, out.fileno(), PLACE, checks, progress):
                assert os.fstat(out.fileno()).st_size == output_size(source, splices)
            assert os.fstat(out.fileno()).st_size == output_size(source, splices)
        return out.read()


@pytest.mark.parametrize("block", [1, 7, 64, 4 << 20])
def test_streamed_is_spliced(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream_copy, "BLOCK_BYTES", block)

    @settings(max_examples=60)
    @given(edits())
    def run(drawn: tuple[bytes, list[tuple[int, int, bytes]]]) -> None:
        data, changes = drawn
        assert copied(data, [Splice.of(*change) for change in changes]) == spliced(data, changes)

    run()


def test_the_disk_writes_while_the_kernel_copies(way: str, monkeypatch: pytest.MonkeyPatch):
    """Without threads after each range; in a thread while the following ones are copied."""
    monkeypatch.setattr(stream_copy, "WRITE_EARLY_FROM_BYTES", 0)
    monkeypatch.setattr(stream_copy, "RANGE_BYTES", 1000)
    synced = Failing(os.fsync)
    monkeypatch.setattr(os, "fsync", synced)
    copied(DATA, [])
    at_the_end = 1 if "without threads" in way else 2
    assert (synced.calls > at_the_end) == ("kernel" in way)
    assert synced.calls == len(DATA) // 1000 + 1 + at_the_end or way != "by the kernel, without threads"


def test_what_the_disk_refuses_meanwhile_is_told(way: str, monkeypatch: pytest.MonkeyPatch):
    """The system tells of an error once: the fsync at the end may succeed after it."""
    monkeypatch.setattr(stream_copy, "WRITE_EARLY_FROM_BYTES", 0)
    monkeypatch.setattr(stream_copy, "RANGE_BYTES", len(DATA))
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, 0, errno.EIO))
    with pytest.raises(FileSystemError, match="cannot be written: input/output error"):
        copied(DATA, [])


def test_nothing_is_written_for_nothing():
    assert copied(b"", []) == b""


def test_every_byte_is_checked_once_but_for_what_is_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream_copy, "BLOCK_BYTES", 1000)
    spans = [(0, 300), (300, 301), (301, 9000), (9500, 12000), (12000, 12500), (12500, len(DATA))]
    checks = [Watched(*span) for span in spans]
    copied(DATA, [Splice.of(10000, 10001, b"ab"), Splice.of(12000, 12500, b"")], checks[::-1])
    replaced = {(9500, 12000), (12000, 12500)}
    for check, span in zip(checks, spans, strict=True):
        assert check.seen == (b"" if span in replaced else DATA[slice(*span)])
        assert check.finished == (span not in replaced)


def test_an_insertion_in_a_span_leaves_its_check():
    check = Watched(100, 200)
    copied(DATA, [Splice.of(200, 200, b"new")], [check])
    assert check.finished


@pytest.fixture(
    params=["by the kernel", "by blocks", "by the kernel, without threads", "by blocks, without threads"], autouse=True
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here holds for both ways of copying, of which macOS has only the second, in threads and without."""
    way, without, _ = request.param.partition(", without threads")
    if way == "by blocks":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr(stream_copy, "THREADS_FROM_BYTES", 1 << 30 if without else 0)
    return way


def test_progress_counts_what_is_copied(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream_copy, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(stream_copy, "RANGE_BYTES", 1000)
    steps: list[int] = []
    copied(DATA, [Splice.of(500, 1700, b"x" * 5000)], progress=steps.append)
    assert sum(steps) == len(DATA) - 1200
    assert len(steps) > 20


def broken() -> bytes:
    raise DamagedError("the kernel")


@pytest.mark.parametrize(
    ("splices", "checks", "error"),
    [
        ([Splice(0, 1, 5, lambda: b"four")], [], ValueError),
        ([Splice.of(0, 10, b""), Splice.of(9, 12, b"")], [], ValueError),
        ([Splice.of(0, len(DATA) + 1, b"")], [], ValueError),
        ([Splice(5, 6, 7, broken)], [], DamagedError),
        ([], [Watched(0, 10, "a sum")], DamagedError),
        ([], [Watched(25000, len(DATA), "a sum")], DamagedError),
    ],
    ids=["size", "overlap", "end", "data", "first check", "last check"],
)
@pytest.mark.parametrize("block", [1000, 4 << 20])
def test_what_goes_wrong_surfaces(
    splices: list[Splice], checks: list[Watched], error: type[Exception], block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream_copy, "BLOCK_BYTES", block)
    with pytest.raises(error):
        copied(DATA, splices, checks)


@pytest.mark.parametrize("call", ["write", "posix_fallocate", "fsync"])
def test_a_full_disk_names_the_output(call: str, way: str, monkeypatch: pytest.MonkeyPatch):
    call = {"write": "copy_file_range" if way == "by the kernel" else "pwrite"}.get(call, call)
    monkeypatch.setattr(os, call, Failing(getattr(os, call), 0, errno.ENOSPC))
    with pytest.raises(FileSystemError, match=r"^out: cannot be written: no space left on device$"):
        copied(DATA, [])


def test_short_writes_are_continued(monkeypatch: pytest.MonkeyPatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: max(1, len(data) // 2)], at))
    assert copied(DATA, [Splice.of(3, 4, b"abc")]) == spliced(DATA, [(3, 4, b"abc")])


def test_an_interrupt_that_was_lost_ends_the_copy(way: str, monkeypatch: pytest.MonkeyPatch):
    """CPython drops an exception that is raised in a callback: the threads see that a signal came."""
    monkeypatch.setattr(stream_copy, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(stream_copy, "RANGE_BYTES", 1000)
    steps: list[int] = []

    def progress(count: int) -> None:
        steps.append(count)
        if len(steps) == 2:
            monkeypatch.setattr(interrupts, "_received", signal.SIGTERM)

    with pytest.raises(interrupts.Interrupted):
        copied(DATA, [], progress=progress)
    assert len(steps) < 20

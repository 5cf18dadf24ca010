"""The input: opened read-only, read by position, expected to stay as it is."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chkpt_channels import DamagedError, FileSystemError
from chkpt_channels.core.errors import Location
from chkpt_channels.storage import source as source_module
from chkpt_channels.storage.opening import open_listed, open_source
from chkpt_channels.storage.source import Source, check_link, resolved, status
from tests.support.files import Failing


def test_reads_by_position(source: Callable[..., Source]):
    opened = source(b"0123456789")
    assert (opened.size, opened.read(3, 7), opened.read(10, 10)) == (10, b"3456", b"")


class Halves:
    """Bytes of an object, of which a read gives about half."""

    name = "s3"

    def __init__(self, content: bytes) -> None:
        self.content, self.size = content, len(content)

    def readinto(self, buffer: memoryview, offset: int) -> int:
        data = self.content[offset : offset + (len(buffer) + 1) // 2]
        buffer[: len(data)] = data
        return len(data)


def test_an_object_is_read_by_position():
    with open_source(Halves(b"0123456789")) as opened:
        assert (opened.name, opened.size, opened.read(2, 9), opened.is_alone, opened.made_here) == (
            "s3", 10, b"2345678", True, False,
        )  # fmt: skip
        opened.check_unchanged()
    short = Halves(b"0123")
    short.size = 9
    with open_source(short) as opened, pytest.raises(FileSystemError, match="s3: was cut short while it was read"):
        opened.read(2, 9)


def test_what_is_kept_with_an_object_must_not_change(put: Callable[..., Path]):
    path = put(b"0123")
    with open_source(Halves(b"0")) as opened:
        opened.keep(Source(path))
        opened.check_unchanged()
        path.write_bytes(b"012345")
        with pytest.raises(FileSystemError, match="was changed while it was read"):
            opened.check_unchanged()


@pytest.mark.parametrize(
    ("span", "pieces"),
    [((), [b"0123", b"4567", b"89"]), ((2,), [b"2345", b"6789"]), ((3, 9), [b"3456", b"78"]), ((5, 5), [])],
)
def test_a_span_comes_in_pieces(
    span: tuple[int, ...], pieces: list[bytes], source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(source_module, "CHUNK_BYTES", 4)
    assert list(source(b"0123456789").chunks(*span)) == pieces


@pytest.mark.parametrize("size", [0, 10, 16, 17, 40])
def test_head_and_tail_are_read_once(size: int, source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source_module, "END_BYTES", 16)
    data = bytes(range(size))
    opened = source(data)
    reads = []
    monkeypatch.setattr(opened, "read", lambda *span, read=opened.read: reads.append(span) or read(*span))
    for _ in range(2):
        assert (opened.head, opened.tail) == (data[:16], data[-16:])
    assert reads == [(0, min(size, 16)), *([(size - 16, size)] if size > 16 else [])]


@pytest.mark.parametrize(("start", "stop"), [(8, 11), (-1, 3), (5, 4), (1 << 62, (1 << 62) + 1)])
def test_what_is_not_there_is_damage(source: Callable[..., Source], start: int, stop: int):
    with pytest.raises(DamagedError) as caught:
        source(b"0123456789").read(start, stop)
    assert caught.value.at == start


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "is a folder"),
        (os.mkfifo, "is a FIFO"),
        (lambda path: path.symlink_to("/dev/null"), "is a device"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["missing", "folder", "FIFO", "device", "loop"],
)
def test_what_is_no_file(make: Callable[[Path], object], words: str, tmp_path: Path):
    make(tmp_path / "a.pth")
    with pytest.raises(FileSystemError, match=words) as caught:
        Source(tmp_path / "a.pth")
    assert str(caught.value).startswith(f"{tmp_path / 'a.pth'}: ")


def test_a_name_with_a_nul_is_refused():
    with pytest.raises(FileSystemError, match="embedded null"):
        Source("a\0b")


LOOPS = pytest.mark.skipif(sys.version_info >= (3, 13), reason="Path.resolve leaves loops as they are")


@pytest.mark.parametrize("name", ["a\0b", pytest.param("loop", marks=LOOPS), pytest.param("loop/b", marks=LOOPS)])
def test_a_path_that_cannot_be_resolved(name: str, tmp_path: Path):
    (tmp_path / "loop").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "loop")
    with pytest.raises(FileSystemError, match=r"null|loop") as caught:
        resolved(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)
    for link, folder in ((tmp_path / name, tmp_path), (tmp_path, tmp_path / name)):
        with pytest.raises(FileSystemError):
            check_link(Location("a"), link, folder, "is")


def test_a_path_is_resolved(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    assert resolved(tmp_path / "link" / ".." / "a") == tmp_path.resolve() / "a"


def test_many_short_reads_are_one(source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch):
    opened, real = source(b"0123456789"), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: real(fd, [buffers[0][:3]], at))
    assert opened.read(0, 10) == b"0123456789"


@pytest.mark.parametrize(("failure", "words"), [(errno.EIO, "input/output error"), (lambda *_: 0, "was cut short")])
def test_a_read_that_fails(failure: object, words: str, source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch):
    opened = source(b"0123456789")
    monkeypatch.setattr(os, "preadv", Failing(os.preadv, 0, failure))
    with pytest.raises(FileSystemError, match=words):
        opened.read(0, 10)


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"longer than before"), lambda p: os.utime(p, ns=(0, 0))])
def test_a_change_is_seen(change: Callable[[Path], object], put: Callable[..., Path]):
    path = put(b"0123456789")
    with Source(path) as opened:
        opened.check_unchanged()
        change(path)
        with pytest.raises(FileSystemError, match="was changed"):
            opened.check_unchanged()


def test_the_same_file_by_another_name(put: Callable[..., Path], tmp_path: Path):
    path = put(b"a")
    other = put(b"a", "other")
    (tmp_path / "link").hardlink_to(path)
    with Source(path) as opened:
        assert opened.is_same_file((tmp_path / "link").stat())
        assert not opened.is_same_file(other.stat())


def test_a_stream_is_spooled():
    with Source.spooled(io.BytesIO(b"x" * 3_000_000), "standard input") as opened:
        assert (opened.name, opened.size, opened.read(2_999_999, 3_000_000)) == ("standard input", 3_000_000, b"x")


def test_a_descriptor_stays_open(put: Callable[..., Path]):
    with put(b"abc").open("rb") as file:
        with Source.of_descriptor(file.fileno(), "out") as opened:
            assert opened.read(0, 3) == b"abc"
        assert file.read() == b"abc"


def test_what_is_kept_with_it_is_closed_and_checked_with_it(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"model")
    (tmp_path / "b").write_bytes(b"its data")
    with Source(tmp_path / "a") as source:
        other = source.keep(Source(tmp_path / "b"))
        source.check_unchanged()
        (tmp_path / "b").write_bytes(b"its other data")
        with pytest.raises(FileSystemError, match="b: was changed while it was read"):
            source.check_unchanged()
    assert other.fd == -1


def test_what_took_the_place_of_a_file_is_not_opened(tmp_path: Path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"a")
    other.write_bytes(b"b")
    listed = status(path)
    with open_listed(path, listed) as source:
        assert source.read(0, 1) == b"a"
    path.unlink()
    path.symlink_to(other)
    with pytest.raises(FileSystemError, match=f"^{path}: was replaced while the folder was read$"):
        open_listed(path, listed)
    with open_listed(path, status(path)) as source:
        assert source.read(0, 1) == b"b"

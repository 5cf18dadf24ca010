"""One input file: opened read-only, read by position, never mapped (a mapped file that shrinks is a SIGBUS)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from chkpt_channels.core.errors import DamagedError, FileSystemError, Location, UnsupportedError, reason

STDIO = "-"
"""Names standard input and standard output."""
BROWSER = "emscripten"
"""The platform of Python in a browser, which has no threads, processes or hard links. Source: PEP 776."""
CHUNK_BYTES = 4 << 20
"""How much of a long span is read, checked or written at once: large enough for any disk, small beside any memory."""

END_BYTES = 1 << 16
"""The size of `head` and `tail`: an archive's end record is in the tail, unless its comment is longer."""


REPLACED = "was replaced while the folder was read"


class RandomAccess(Protocol):
    """Bytes that are read by position, of an object that is no file of this machine: a Blob of a browser, an object of a store.

    `name` begins the messages, `size` is in bytes. `readinto` fills the buffer from `offset` on, at least in part, and returns
    how many bytes that were. It raises OSError where it cannot, and where they are no longer what they were.
    """

    name: str
    size: int

    def readinto(self, buffer: memoryview, offset: int, /) -> int:
        """As above."""


Readable = str | os.PathLike[str] | RandomAccess
"""What a source is opened of."""


class Ahead(Protocol):
    """A copy of a whole source that began before its output: an unnamed file in `folder`, open as `fd`."""

    folder: Path
    fd: int

    def is_complete(self, progress: Callable[[int], None] | None, is_stopped: Callable[[], bool]) -> bool:
        """Wait until all is copied, and call `progress` with bytes. False where that failed or was stopped."""

    def close(self) -> None:
        """End it, and give the descriptors back."""


class Source:
    """An open regular file.

    `size` is in bytes; messages begin with `location`; `made_here` marks a file that this package wrote. The file must not change
    while it is open: a short read and `check_unchanged` raise FileSystemError.
    """

    is_remote = False
    """Whether it is an object of a store: it has no descriptor, and far reads cost a request each."""
    ahead: Ahead | None = None
    """What copies it already."""
    _kept: tuple[Source, ...] = ()
    is_alone = False
    """Whether no other file can be beside it."""

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        self.name = name if name is not None else os.fsdecode(path)
        self.location, self.made_here, self.fd = Location(self.name), False, -1
        try:
            # O_NONBLOCK: opening a FIFO would wait for its writer, forever if there is none
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
            self._look()
        except (OSError, ValueError) as error:
            self.close()
            raise self.location.system(reason(error)) from error
        if not stat.S_ISREG(self._stat.st_mode):
            self.close()
            raise self.location.system(f"is {_kind(self._stat.st_mode)}, not a file")

    def _look(self) -> None:
        self._stat = os.fstat(self.fd)
        self.size = self._stat.st_size

    @classmethod
    def of_descriptor(cls, fd: int, name: str, *, made_here: bool = False) -> Source:
        """The file behind an open descriptor, which stays open when this Source is closed."""
        self = cls.__new__(cls)
        self.name, self.location, self.made_here, self.fd = name, Location(name), made_here, -1
        try:
            self.fd = os.dup(fd)  # shares the file's position, which nothing here uses: all reads are by offset
            self._look()
        except OSError as error:
            self.close()
            raise self.location.system(reason(error)) from error
        return self

    @classmethod
    def spooled(cls, stream: BinaryIO, name: str) -> Source:
        """A stream that cannot be read by position, copied to an unnamed temporary file first."""
        import shutil
        import tempfile

        try:
            with tempfile.TemporaryFile() as spool:
                shutil.copyfileobj(stream, spool, CHUNK_BYTES)
                spool.flush()
                return cls.of_descriptor(spool.fileno(), name)
        except OSError as error:
            raise Location(name).system(reason(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if isinstance(error, DamagedError | UnsupportedError):
                self.check_unchanged()  # a file that is being written looks like that: the change is the better message
        except FileSystemError as changed:
            raise changed from error
        finally:
            self.close()

    @property
    def folder(self) -> Path:
        """Where what it names is looked for."""
        return Path(self.name).parent

    def keep(self, other: Source) -> Source:
        """`other`, which is closed with this one."""
        self._kept = (*self._kept, other)
        return other

    def close(self) -> None:
        """Give the descriptor back; reading afterwards is an error."""
        for other in self._kept:
            other.close()
        if self.ahead:
            self.ahead.close()
            self.ahead = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop). Raises DamagedError if the file ends before `stop`."""
        if not 0 <= start <= stop <= self.size:
            raise self.location.damaged(f"ends at byte {self.size}; {stop - start} bytes are expected here", at=start)
        out = bytearray(stop - start)
        self.readinto(memoryview(out), start)
        return bytes(out)

    @cached_property
    def head(self) -> bytes:
        """The first bytes, at most END_BYTES: every format looks at them."""
        return self.read(0, min(END_BYTES, self.size))

    @cached_property
    def tail(self) -> bytes:
        """The last bytes, at most END_BYTES."""
        return self.head if self.size <= END_BYTES else self.read(self.size - END_BYTES, self.size)

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes [start, stop), to the end without it, in pieces of CHUNK_BYTES. Raises as `read`."""
        stop = self.size if stop is None else stop
        for at in range(start, stop, CHUNK_BYTES):
            yield self.read(at, min(at + CHUNK_BYTES, stop))

    def is_alike(self, other: Source, start: int, stop: int) -> bool:
        """Whether both hold the same bytes [start, stop)."""
        return all(a == b for a, b in zip(self.chunks(start, stop), other.chunks(start, stop), strict=True))

    def readinto(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes from `start` on. Raises FileSystemError if they are no longer there."""
        done = 0
        while done < len(buffer):
            try:
                count = self._read_some(buffer[done:], start + done)
            except OSError as error:
                raise self.location.system(reason(error)) from error
            if count == 0:
                raise self.location.system("was cut short while it was read")
            done += count

    def _read_some(self, buffer: memoryview, start: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.fd, [buffer], start)
        data = os.pread(self.fd, len(buffer), start)  # Python in a browser has no preadv
        buffer[: len(data)] = data
        return len(data)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Announce spans [start, stop) that will be read. For a file that is nothing to do."""

    def check_unchanged(self) -> None:
        """Raise FileSystemError if the file, or one that is kept with it, was written to since it was opened."""
        for other in self._kept:
            other.check_unchanged()
        try:
            now = os.fstat(self.fd)
        except OSError as error:
            raise self.location.system(reason(error)) from error
        # size and time, not the content: reading 4 GB once more would double the time
        if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
            raise self.location.system("was changed while it was read")

    def is_same_file(self, other: os.stat_result) -> bool:
        """Whether `other` describes this very file, by whatever name."""
        return os.path.samestat(self._stat, other)


class RangeSource(Source):
    """The same of an object that is read by position, which sees to it that it does not change, and is no file; `made_here` as of
    one."""

    is_alone = True

    def __init__(self, opened: RandomAccess, *, made_here: bool = False) -> None:
        self.name, self.size, self.fd, self._opened = opened.name, opened.size, -1, opened
        self.location, self.made_here = Location(opened.name), made_here

    def _read_some(self, buffer: memoryview, start: int) -> int:
        return self._opened.readinto(buffer, start)

    def check_unchanged(self) -> None:
        """As of a file, of those that are kept with it."""
        for other in self._kept:
            other.check_unchanged()

    def is_same_file(self, other: os.stat_result) -> bool:
        """Never."""
        return False


def is_same_content(fd: int, path: Path) -> bool:
    """Whether a file of this package's own, open as `fd`, and the one called `path` hold the same bytes."""
    with Source.of_descriptor(fd, str(path), made_here=True) as new, Source(path) as old:
        return new.size == old.size and new.is_alike(old, 0, old.size)


def status(path: Path) -> os.stat_result:
    """What a name in a folder stands for: of a link, the file behind it. Raises FileSystemError."""
    try:
        return path.stat() if path.is_symlink() else path.lstat()
    except OSError as error:
        raise Location(str(path)).system(reason(error)) from error


def _kind(mode: int) -> str:
    names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return names.get(stat.S_IFMT(mode), "a special file")


def resolved(path: Path) -> Path:
    """The path without links. Raises FileSystemError for links in a circle, and for what no path may hold."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a circle, before Python 3.13
        raise Location(str(path)).system(reason(error)) from error


def check_link(location: Location, path: Path, folder: Path, what: str) -> None:
    """Raise UnsupportedError where `path` is reached through a link that leaves the model's folder, or the cached repository
    around it; `what` begins the message. Source: huggingface_hub's cache, whose snapshots/<revision>/<name> are links to
    blobs/<hash> of the same repository."""
    home = resolved(folder)
    homes = [home, *(outer.parent / "blobs" for outer in (home, *home.parents) if outer.name == "snapshots")]
    target = resolved(path)
    if not any(target.is_relative_to(home) for home in homes):
        raise location.unsupported(f"{what} a link that leaves the model's folder", hint="--follow-links")

"""System calls that go wrong on demand: all through which the package touches files are counted, and the k-th of a name fails."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

READS = ("preadv", "pread", "readinto")
WRITES = ("pwrite", "write", "copy_file_range")
OTHERS = ("posix_fallocate", "fsync", "ftruncate", "fchmod", "link", "replace", "rename", "mkdir", "dup")
LOOKS = ("open", "stat", "lstat", "fstat", "scandir")
PROCESSES = ("read", "pipe2", "fork")
LOCKS = ("flock", "fcntl", "ioctl")
FILES = ("file", "raw_write")
"""open() and what is written to its files; what is read from them counts as readinto."""
EVERY = (*READS, *WRITES, *OTHERS, *LOOKS, *PROCESSES, *LOCKS, *FILES)


REAL: dict[str, Callable[..., Any]] = {"fsync": lambda fd: None}
"""What stands for a call that would only take time: nothing here is switched off."""


class Fault(NamedTuple):
    """The k-th call of this name, from 0, goes wrong: with an errno, by doing only half of its work (SHORT), or because something
    else is done first."""

    call: str
    k: int
    kind: int | Callable[[], object]

    def __str__(self) -> str:
        kind = self.kind.__name__ if callable(self.kind) else errno.errorcode.get(self.kind, "short")
        return f"{self.call} {self.k} {kind}"


SHORT = 0
NEVER = Fault("", -1, SHORT)


class Shim:
    """Stands in for the system calls of this process, and of its forks, from `armed` on."""

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * len(EVERY))).cast("Q")  # shared with forks
        self._lock = threading.Lock()
        self._fault = NEVER

    @contextmanager
    def armed(self, fault: Fault = NEVER) -> Iterator[None]:
        """Count from 0, and let one call go wrong."""
        for i in range(len(EVERY)):
            self._counts[i] = 0
        with pytest.MonkeyPatch.context() as patch:
            self._fault = fault
            for name in EVERY:
                home = fcntl if name in LOCKS else os
                if hasattr(home, name):
                    patch.setattr(home, name, self._stand_in(name, REAL.get(name, getattr(home, name))))
            opening = self._stand_in("file", io.open)
            for module in (io, builtins):
                patch.setattr(module, "open", lambda *args, **more: self._watched(opening, *args, **more))
            yield

    @property
    def counts(self) -> dict[str, int]:
        """How often each call was made since `armed`."""
        return {name: count for name, count in zip(EVERY, self._counts, strict=True) if count}

    def strikes(self, name: str) -> int | None:
        """Count a call: the errno with which it is to fail, SHORT, or None where nothing is wrong with it."""
        with self._lock:
            index = EVERY.index(name)
            k = self._counts[index]
            self._counts[index] = k + 1
        if (name, k) != self._fault[:2]:
            return None
        if callable(self._fault.kind):
            self._fault.kind()
            return None
        return self._fault.kind

    def _stand_in(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            kind = self.strikes(name)
            if kind:
                raise OSError(kind, os.strerror(kind))
            return real(*(args if kind is None else halved(name, *args)), **more)

        return call

    def _watched(self, opening: Callable[..., Any], file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        """As open(), but for what is read and written in binary through a file that fails, too."""
        if "b" not in mode or args[:1] == (0,):
            return opening(file, mode, *args, **more)
        kept = {key: value for key, value in more.items() if key in ("closefd", "opener")}
        opened = opening(file, mode, 0, **kept)
        raw = Raw(opened.fileno(), mode.replace("b", "").replace("x", "w"), shim=self, keep=opened)
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)


def halved(name: str, *args: Any) -> tuple[Any, ...]:
    """The arguments of a call that is to do less than it is asked to, but something."""
    match name, args:
        case "preadv", (fd, [buffer], at):
            return fd, [buffer[: max(1, len(buffer) // 2)]], at
        case "pread" | "read", (fd, count, *rest):
            return fd, max(1, count // 2), *rest
        case "pwrite" | "write", (fd, data, *rest):
            return fd, data[: max(1, len(data) // 2)], *rest
        case "copy_file_range", (source, out, count, *rest):
            return source, out, max(1, count // 2), *rest
    raise TypeError(f"{name} cannot do half of its work")


CAN_BE_SHORT = ("preadv", "pread", "read", "readinto", "pwrite", "write", "copy_file_range", "raw_write")


class Raw(io.FileIO):
    """The raw end of a file that open() gave."""

    def __init__(self, fd: int, mode: str, *, shim: Shim, keep: Any) -> None:
        super().__init__(fd, mode, closefd=False)
        self._shim, self._keep = shim, keep

    def _half(self, name: str, data: Any) -> Any:
        kind = self._shim.strikes(name)
        if kind:
            raise OSError(kind, os.strerror(kind))
        return data if kind is None else data[: max(1, len(data) // 2)]

    def readinto(self, buffer: Any) -> int | None:
        return super().readinto(self._half("readinto", memoryview(buffer)))

    def write(self, data: Any) -> int | None:
        return super().write(self._half("raw_write", memoryview(data)))

    def close(self) -> None:
        super().close()
        self._keep.close()

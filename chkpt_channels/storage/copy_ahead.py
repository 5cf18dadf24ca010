"""A copy of a whole file that begins before it is known what will change in it: for formats whose edits leave all else in place.

HDF5's library takes longer to be imported, and to read an index, than a disk to write a model. So a forked process copies the
file meanwhile; a thread would keep this process from forking the workers in which the library works.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from chkpt_channels.core.errors import FileSystemError
from chkpt_channels.storage import isolation
from chkpt_channels.storage.atomic import UNNAMED
from chkpt_channels.storage.source import Source

AHEAD_FROM_BYTES = 32 << 20
"""Smaller files are copied before a process has started."""
RANGE_BYTES = 8 << 20
"""Of each such range that is copied the process tells."""


class CopyAhead:
    """An unnamed file in `folder`, open as `fd`, and the process that copies a file into it."""

    def __init__(self, source: Source, folder: Path, fd: int) -> None:
        self.folder, self.fd, self._size = folder, fd, source.size
        self._child, self._reading = isolation.forked(source.location, partial(_copy, source, fd))

    def is_complete(self, progress: Callable[[int], None] | None, is_stopped: Callable[[], bool]) -> bool:
        """Wait until all is copied, and call `progress` with the bytes of each range. False where the process could not."""
        done = 0
        while done < self._size and not is_stopped() and os.read(self._reading, 1):
            size = min(RANGE_BYTES, self._size - done)
            done += size
            if progress:
                progress(size)
        return done == self._size

    def close(self) -> None:
        """End the process, and give the descriptors back."""
        isolation.end(self._child)
        os.close(self._reading)
        os.close(self.fd)


def begin(source: Source, folder: Path) -> CopyAhead | None:
    """Begin to copy a file of this machine to where an output in `folder` will be; None where that is not worth it, or not
    possible: then it is copied when it is known what changes, and what is wrong with the folder is told."""
    if source.fd < 0 or source.size < AHEAD_FROM_BYTES or not (UNNAMED and isolation.may_fork()):
        return None
    with contextlib.suppress(OSError, FileSystemError):
        fd = os.open(folder, os.O_RDWR | UNNAMED | os.O_CLOEXEC, 0o666)
        try:
            return CopyAhead(source, folder, fd)
        except BaseException:
            os.close(fd)
            raise
    return None


def _copy(source: Source, out: int, reading: int, writing: int) -> NoReturn:
    """The child's whole life: a byte into the pipe for each range that is copied, and the end of it after the last one, or after
    what went wrong."""
    try:
        for fd in (reading, 0, 1, 2):  # whoever reads the last two would wait for this process too
            with contextlib.suppress(OSError):
                os.close(fd)
        os.posix_fallocate(out, 0, source.size)
        for start in range(0, source.size, RANGE_BYTES):
            at, stop = start, min(start + RANGE_BYTES, source.size)
            while at < stop and (count := os.copy_file_range(source.fd, out, stop - at, at, at)):
                at += count
            if at < stop:
                break
            os.write(writing, b".")
        # opened anew: the system tells each opening of a failed write once, and the parent is to be told
        os.fsync(os.open(f"/proc/self/fd/{out}", os.O_WRONLY))
    finally:
        os._exit(0)

"""A copy that is begun before it is known what will change: while the libraries that find it out are still being imported.

It pays where edits replace spans in place, so that all the rest may be copied blindly. The copy runs in a child process: the
index of an HDF5 file is made in another one, and a process with threads cannot be forked.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import NoReturn

from .errors import Place
from .forking import fork, may_fork
from .source import Source
from .splice import DIRECT_FROM, Progress, Splice, output_size, write_at

SMALL = 1 << 20
"""Files below are copied before a child has begun."""


def pays(source: Source) -> bool:
    """Whether a copy is to be begun: not of small files, nor of those that are written past the page cache."""
    return may_fork() and hasattr(os, "copy_file_range") and SMALL <= source.size < DIRECT_FROM


class Ahead:
    """A whole copy of `source` to the empty file `out`, begun at once. As a context it leaves no child behind."""

    def __init__(self, source: Source, out: int) -> None:
        self._source, self._out = source, out
        self._child = fork(source.place)
        if not self._child:
            _copy(source, out)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            self._join()

    def _join(self) -> bool:
        """Whether the copy is complete."""
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        return status == 0

    def finish(self, splices: Sequence[Splice], place: Place, progress: Progress | None = None) -> bool:
        """Write the splices into the copy, and fsync it. False, and the file is empty again, where a splice moves what stands
        behind it, and where the copy failed: the next attempt will tell why."""
        size = self._source.size
        fits = all(s.size == s.stop - s.start or s.stop == size for s in splices)
        copied = fits and self._join()
        self._stop()
        try:
            if not copied:
                os.ftruncate(self._out, 0)
                return False
            for splice in splices:
                write_at(self._out, memoryview(splice.data()), splice.start)
            os.ftruncate(self._out, output_size(self._source, splices))
            os.fsync(self._out)
        except OSError as error:
            raise place.system(f"cannot be written: {(error.strerror or str(error)).lower()}") from error
        if progress:
            progress(size)
        return True


def _copy(source: Source, out: int) -> NoReturn:
    """The child's whole life; it ends with 0 where the copy is complete."""
    code = 1
    try:
        os.posix_fallocate(out, 0, source.size)
        done = 0
        while count := os.copy_file_range(source.fd, out, source.size - done, done, done):
            done += count
        os.fsync(out)
        code = int(done != source.size)
    finally:
        os._exit(code)

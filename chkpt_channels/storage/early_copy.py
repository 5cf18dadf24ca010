"""Speculative copy: start copying while h5py is imported, then patch in place.

It pays where edits replace spans in place, so that all the rest may be copied blindly.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from chkpt_channels.core.errors import Location
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Progress, Splice, output_size
from chkpt_channels.storage.stream_copy import DIRECT_FROM_BYTES, RANGE_BYTES, submit, write_at

SMALL_BYTES = 1 << 20
"""Files below are copied before a thread has begun."""


def worthwhile(source: Source) -> bool:
    """Whether a copy is to be made: not of small files, nor of those that are written past the page cache."""
    return hasattr(os, "copy_file_range") and SMALL_BYTES <= source.size < DIRECT_FROM_BYTES


def copy(source: Source, out: int, meanwhile: Callable[[], object]) -> bool:
    """Copy `source` to the empty file `out` while `meanwhile` runs. False, and the file is empty again, where that failed: the
    next attempt will tell why."""
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            copying = submit(pool, _copy, source, out, stopped)
            try:
                meanwhile()
            except BaseException:
                stopped.set()
                raise
            return copying.result()
        except OSError:
            os.ftruncate(out, 0)
            return False


def _copy(source: Source, out: int, stopped: threading.Event) -> bool:
    os.posix_fallocate(out, 0, source.size)
    done = 0
    while done < source.size and not stopped.is_set():
        count = os.copy_file_range(source.fd, out, min(RANGE_BYTES, source.size - done), done, done)
        if not count:
            raise OSError(errno.EIO, "cut short")
        done += count
    os.posix_fadvise(out, 0, 0, os.POSIX_FADV_DONTNEED)  # Linux begins to write what is not on the disk, and waits for nothing
    return done == source.size


def overwrite(source: Source, splices: Sequence[Splice], out: int, location: Location, progress: Progress | None = None) -> bool:
    """Write the splices into `out`, a copy of `source`, and fsync it. False, and the file is empty again, where one of them would
    move what stands behind it."""
    with location.wrapping_os_errors("cannot be written"):
        if any(s.size != s.stop - s.start and s.stop != source.size for s in splices):
            os.ftruncate(out, 0)
            return False
        for splice in splices:
            write_at(out, memoryview(splice.data()), splice.start)
        os.ftruncate(out, output_size(source, splices))
        os.fsync(out)
    if progress:
        progress(source.size)
    return True

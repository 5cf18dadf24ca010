"""A source and its splices written to a file: streamed, each byte read once.

The copy of all but small files runs in threads beside the caller, who meanwhile computes what the splices put in (and imports
numpy for it). The kernel copies, and the disk is told to write from the first megabytes on: left to itself it begins when
gigabytes wait, or at the end. What the kernel cannot copy (an object of a store) passes through a ring of buffers.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chkpt_channels.core import interrupts
from chkpt_channels.core.errors import Location
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Checksum, Move, Progress, Splice, moves_around, output_size, passing_checks
from chkpt_channels.storage.threads import Done, pool, submit

if TYPE_CHECKING:
    from concurrent.futures import Future

BLOCK_BYTES = 2 << 20
"""The size of a buffer."""
BUFFERS = 4
"""One is read into, one written from and one checked."""
THREADS_FROM_BYTES = 1 << 20
"""Smaller outputs are written before a thread would have started."""
WRITE_EARLY_FROM_BYTES = 32 << 20
"""Of smaller outputs all is copied before the disk has begun."""
RANGE_BYTES = 8 << 20
"""The size of one copy_file_range: between two of them progress is reported, and the copy can be stopped."""
RANGES_AHEAD = 4
"""By how many ranges the copy goes ahead of the checks."""
_NO_COPY_FILE_RANGE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


def apply(source: Source, splices: Sequence[Splice], out: int, location: Location, progress: Progress | None = None) -> None:
    """Write the source with `splices` applied to the empty file `out`, and fsync it. Raises as `writing` does."""
    with writing(source, splices, out, location, progress=progress):
        pass


@contextmanager
def writing(
    source: Source,
    splices: Sequence[Splice],
    out: int,
    location: Location,
    checks: Sequence[Checksum] = (),
    progress: Progress | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Write the source with `splices` applied to the empty file `out`; on exit it is on the disk.

    Within, the file is complete and may be read, and the disk is at work. `location` names the output in messages. `meanwhile`
    is called once, for imports that are needed afterwards. Raises what a check or a splice's data raises, FileSystemError for the
    rest.
    """
    ordered = sorted(splices, key=lambda s: (s.start, s.stop))
    moves, targets = moves_around(source.size, ordered)
    total = output_size(source, ordered)
    with location.wrapping_os_errors("cannot be written"):
        if total and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(out, 0, total)  # takes no time, and a full disk shows before the first byte
        copying = _Copy(source, moves, out, total, passing_checks(checks, ordered), progress)
    try:
        with location.wrapping_os_errors("cannot be written"):
            contents = [splice.made() for splice in ordered]
            if meanwhile:
                meanwhile()
            copying.join()
            for at, data in zip(targets, contents, strict=True):
                write_at(out, memoryview(data), at)
        yield
        with location.wrapping_os_errors("cannot be written"):
            copying.sync()
    finally:
        copying.stop()


def write_at(out: int, data: memoryview, at: int) -> None:
    """Write all of `data` at `at`."""
    while data:
        count = os.pwrite(out, data, at)
        data, at = data[count:], at + count


class Checker:
    """Feeds passing bytes to the checks they belong to; runs in one thread."""

    def __init__(self, checks: Sequence[Checksum]) -> None:
        self.waiting = deque(checks)

    def feed(self, data: memoryview, start: int) -> None:
        """Take the bytes of the source from `start` on; raises what a check raises."""
        stop = start + len(data)
        while self.waiting and self.waiting[0].start < stop:
            check = self.waiting[0]
            check.update(data[max(check.start - start, 0) : check.stop - start])
            if check.stop > stop:
                return
            check.finish()
            self.waiting.popleft()


class _Buffer:
    """One block in memory, and the threads' jobs that still use it."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(BLOCK_BYTES))
        self.users: list[Future[None] | Done[None]] = []

    def wait(self) -> None:
        """Until nobody uses the block; raises what went wrong in a job."""
        for user in self.users:
            user.result()
        self.users.clear()


class _Copy:
    """The streaming copy: one thread copies and one checks; or one reads, one writes and one checks, over a ring of buffers."""

    def __init__(
        self,
        source: Source,
        moves: Sequence[Move],
        out: int,
        total: int,
        checks: Sequence[Checksum],
        progress: Progress | None,
    ) -> None:
        self._source, self._moves, self._out, self._total = source, moves, out, total
        self._checker, self._progress = Checker(checks), progress
        self._checked_to = max((check.stop for check in checks), default=0)
        self._stopped = threading.Event()
        self._is_alone = total < THREADS_FROM_BYTES
        # threads do: reads, writes and CRC-32 (1.8 GB/s) release the interpreter
        self._reading, self._checking, self._writing = (None if self._is_alone else pool(1) for _ in range(3))
        self._is_complete = False
        self._buffer = _Buffer()
        self._checks: deque[Future[None] | Done[None]] = deque()
        self._early: Future[None] | Done[None] = Done(None)
        self._copied = submit(self._reading, self._run)
        # behind it in the same thread, beside what the caller does: the last fsync finds little to do
        self._synced = submit(self._reading, self._sync_early)

    def stop(self) -> None:
        """Give up, or clear away: returns when no thread works any more."""
        self._stopped.set()
        for thread in filter(None, (self._reading, self._writing, self._checking)):
            thread.shutdown(wait=True)

    def join(self) -> None:
        """Wait until all is copied; raise what went wrong in a thread, and Interrupted where that was lost and ended the copy."""
        self._copied.result()
        interrupts.check()

    def sync(self) -> None:
        """Wait until all is on the disk."""
        self._synced.result()
        os.fsync(self._out)

    def _sync_early(self) -> None:
        if self._is_complete and not (self._is_alone or self._is_stopped()):
            os.fsync(self._out)

    def _is_stopped(self) -> bool:
        return self._stopped.is_set() or interrupts.exit_code() > 0

    def _run(self) -> None:
        if left := self._by_kernel():
            self._by_blocks(left)
        for checking in self._checks:
            checking.result()
        self._early.result()
        self._is_complete = True

    def _by_kernel(self) -> Sequence[Move]:
        """The kernel copies in calls for which no thread waits for the interpreter that the caller keeps busy; another thread
        reads for the checks what was just copied. Returns what the system cannot copy so."""
        left = deque(self._not_ahead())
        while left and not (self._source.is_remote or self._is_stopped()) and hasattr(os, "copy_file_range"):
            move = left.popleft()
            try:
                count = os.copy_file_range(self._source.fd, self._out, min(move.size, RANGE_BYTES), move.start, move.at)
            except OSError as error:
                if error.errno not in _NO_COPY_FILE_RANGE:
                    raise
                return [move, *left]
            if count == 0:
                raise self._source.location.system("was cut short while it was read")
            self._follow(move.start, count)
            if count < move.size:
                left.appendleft(Move(move.start + count, move.size - count, move.at + count))
        return left

    def _not_ahead(self) -> Sequence[Move]:
        """What is to be copied: but for what keeps its place, where another process has copied the whole file and no bytes are
        to be checked."""
        ahead = self._source.ahead
        if not ahead or not os.path.sameopenfile(ahead.fd, self._out):
            return self._moves
        is_complete = ahead.is_complete(self._progress, self._is_stopped)
        os.ftruncate(self._out, self._total)  # it has the size of the source, also where the copy failed
        return [move for move in self._moves if not is_complete or self._checked_to or move.start != move.at]

    def _follow(self, start: int, size: int) -> None:
        """Behind the copy of a range: the disk writes what is copied so far, unless it is at it, and the range is checked. What
        these raise is raised by a later call, or by `_run`."""
        if self._total >= WRITE_EARLY_FROM_BYTES and (isinstance(self._early, Done) or self._early.done()):
            self._early.result()
            self._early = submit(self._writing, os.fsync, self._out)
        if start < self._checked_to:
            self._checks.append(submit(self._checking, self._check, start, size))
        if len(self._checks) > RANGES_AHEAD:  # what is checked late has left the page cache, and is read from the disk again
            self._checks.popleft().result()
        if self._progress:
            self._progress(size)

    def _check(self, start: int, size: int) -> None:
        view = self._buffer.view
        for at in range(start, start + size, len(view)):
            piece = view[: start + size - at]
            self._source.readinto(piece, at)
            self._checker.feed(piece, at)

    def _by_blocks(self, moves: Iterable[Move]) -> None:
        """Each byte is read once, into buffers that one thread writes from and another one checks."""
        ring: deque[_Buffer] = deque()
        for at, pieces in _blocks(moves):
            if self._is_stopped():
                break
            buffer = _Buffer() if len(ring) < BUFFERS else ring.popleft()
            buffer.wait()
            self._pass(buffer, at, pieces)
            ring.append(buffer)
        for buffer in ring:
            buffer.wait()

    def _pass(self, buffer: _Buffer, at: int, pieces: Sequence[Move]) -> None:
        """Read one block of the output, and hand it to the writer and the checker.

        Where a block leaves room for a splice, the buffer's old bytes are written there first, and the splice later.
        """
        for piece in pieces:
            view = buffer.view[piece.at - at : piece.at - at + piece.size]
            self._source.readinto(view, piece.start)
            buffer.users.append(submit(self._checking, self._checker.feed, view, piece.start))
        first, last = pieces[0].at, pieces[-1].at + pieces[-1].size
        buffer.users.append(submit(self._writing, write_at, self._out, buffer.view[first - at : last - at], first))
        if self._progress:
            self._progress(sum(piece.size for piece in pieces))


def _blocks(moves: Iterable[Move]) -> Iterator[tuple[int, list[Move]]]:
    """The moves cut at every BLOCK_BYTES of the output, grouped by block: (offset of the block, its pieces)."""
    at = 0
    pieces: list[Move] = []
    for move in moves:
        done = 0
        while done < move.size:
            here = move.at + done
            block = here // BLOCK_BYTES * BLOCK_BYTES
            if pieces and block != at:
                yield at, pieces
                pieces = []
            at = block
            size = min(move.size - done, block + BLOCK_BYTES - here)
            pieces.append(Move(move.start + done, size, here))
            done += size
    if pieces:
        yield at, pieces

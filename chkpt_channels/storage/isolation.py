"""Work on a hostile file in a forked worker: where a library crashes on it or does not end, only the worker dies.

libhdf5 crashes on some files that are cut off. Where the process may not be forked the work is done in place.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, cast

from chkpt_channels.core.errors import (
    ChkptChannelsError,
    DamagedError,
    FileSystemError,
    LimitExceeded,
    Location,
    UnsupportedError,
)
from chkpt_channels.core.gc_pause import stop_collecting
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage.source import Source

if TYPE_CHECKING:
    from chkpt_channels.storage.stores.remote import RemoteSource

FRAME = struct.Struct("<cQ")
"""A message in the pipe: its kind, the number of bytes that follow, and the bytes."""
DATA, ERROR, END, ASK = b"D", b"E", b".", b"?"
SPAN = struct.Struct("<QQ")
"""A span [start, stop) of an object in a store: what a worker asks for, and what was fetched."""
READ_BYTES = 1 << 20
"""Bytes of one read from the pipe: a child that a hostile file has taken over may announce any size, and gets no more memory than
it fills."""
NO_PROCESS = "no process can be started for it"


def run_isolated(work: Callable[[], Iterator[bytes]], location: Location, source: Source | None = None) -> Iterator[bytes]:
    """What `work`, which reads `source`, yields. What it raises is raised here; DamagedError if it crashes, or takes too long for
    one piece."""
    if not may_fork():
        yield from work()
        return
    with contextlib.ExitStack() as stack:
        answers = _Answers(cast("RemoteSource", source), location) if source and source.is_remote else None
        if answers:
            stack.callback(answers.close)
        child, reading = forked(location, lambda _, writing: _serve(work, writing, answers))
        stack.callback(end, child)
        stack.callback(os.close, reading)
        with location.wrapping_os_errors("its worker process cannot be read"):
            yield from _received(reading, location, answers)


def _received(reading: int, location: Location, answers: _Answers | None) -> Iterator[bytes]:
    while True:
        kind, size = FRAME.unpack(_read(reading, FRAME.size, location))
        if kind == END:
            return
        content = _read(reading, size, location)
        if kind == ERROR:
            raise _decoded(content)
        if kind == ASK and answers:
            answers.answer(content)
        else:
            yield content


class _Answers:
    """What a worker asks its parent to fetch: the library that reads stores does not work in a forked process. What was fetched
    is in a file that both have open."""

    def __init__(self, source: RemoteSource, location: Location) -> None:
        self._source, self._location = source, location
        with location.wrapping_os_errors(NO_PROCESS):
            self._reading, self._writing = os.pipe2(os.O_CLOEXEC)

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._reading)
        os.close(self._writing)

    def answer(self, asked: bytes) -> None:
        """In the parent: fetch a span."""
        os.write(self._writing, SPAN.pack(*self._source.fetch(*SPAN.unpack(asked))))

    def begin_asking(self, writing: int) -> None:
        """In the worker: fetch nothing from now on."""

        def ask(start: int, stop: int) -> tuple[int, int]:
            _send(writing, ASK, SPAN.pack(start, stop))
            start, stop = SPAN.unpack(_read(self._reading, SPAN.size, self._location))
            return start, stop

        os.close(self._writing)  # or the end of the parent would not be seen
        self._source.read_through(ask)


def may_fork() -> bool:
    """Whether that does no harm: locks that other threads hold would stay held in the child.

    Threads that libraries start outside of Python do not count: the child calls none of those libraries.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def forked(location: Location, live: Callable[[int, int], NoReturn]) -> tuple[int, int]:
    """A child, and the end of a pipe that is read from it. `live` is the child's whole life: it gets both ends, and closes the
    first where it must not keep it. FileSystemError where the system cannot start a process."""
    with location.wrapping_os_errors(NO_PROCESS):
        reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        child = _fork(location)
        if not child:
            live(reading, writing)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return child, reading


def end(child: int) -> None:
    """End a child that was forked, and forget it."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # a host that ignores SIGCHLD has no child left to wait for
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _fork(location: Location) -> int:
    """os.fork, with a child that ignores SIGINT: the parent gets it too, and ends the child."""
    # blocked until the child has its own handlers: the parent's would remove the parent's files in the child
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings(), location.wrapping_os_errors(NO_PROCESS):
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about the threads of libraries
            child = os.fork()
        if not child:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return child


def _serve(work: Callable[[], Iterator[bytes]], writing: int, answers: _Answers | None) -> NoReturn:
    """The child's whole life: its time is limited, and a crash leaves no file."""
    import resource

    stop_collecting()
    try:
        try:
            if answers:
                answers.begin_asking(writing)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the weights
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            _limit()
            for piece in work():
                _send(writing, DATA, piece)
                _limit()
            _send(writing, END, b"")
        except BaseException as error:
            _send(writing, ERROR, _encoded(error))
    finally:
        os._exit(0)


def _limit() -> None:
    """End this process when the next piece takes more of the processor's time than any honest one."""
    import resource

    soft, hard = math.ceil(time.process_time()) + LIMITS.apart_seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _send(writing: int, kind: bytes, content: bytes) -> None:
    """Write a message to the pipe. Ends the process if that fails: after half a message nothing more may follow."""
    try:
        for part in (FRAME.pack(kind, len(content)), content):
            view = memoryview(part)
            while view:
                view = view[os.write(writing, view) :]
    except OSError:
        os._exit(os.EX_IOERR)


def _read(reading: int, size: int, location: Location) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = os.read(reading, min(size - len(received), READ_BYTES))
        if not piece:
            raise location.damaged("the library that reads it crashes or does not end")
        received += piece
    return bytes(received)


def _encoded(error: BaseException) -> bytes:
    """An error as it goes through the pipe."""
    fields: dict[str, Any] = {"kind": type(error).__name__, "what": str(error)}
    if isinstance(error, ChkptChannelsError):
        fields |= {name: getattr(error, name) for name in ("what", "file", "where", "hint", "at", "excess")}
    return json.dumps(fields).encode()


def _decoded(content: bytes) -> BaseException:
    fields = json.loads(content)
    kinds = {kind.__name__: kind for kind in (DamagedError, FileSystemError, UnsupportedError)}
    kind, what = fields.pop("kind"), fields.pop("what")
    if fields.get("excess"):
        fields["excess"] = LimitExceeded(*fields["excess"])
    if kind == MemoryError.__name__:
        return MemoryError(what)
    return kinds[kind](what, **fields) if kind in kinds else RuntimeError(f"{kind}: {what}")

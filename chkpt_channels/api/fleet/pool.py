"""Processes of this machine as an Executor: one that dies fails the call in its hands alone, and another takes its place.

concurrent.futures' own pool ends as a whole when one of its processes dies.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from chkpt_channels.core import interrupts

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Value = TypeVar("Value")

_counts: tuple[Any, int] | None = None
"""In a process of a pool: the bytes that each process did, shared with the parent, and its own place among them."""


class ProcessDied(Exception):
    """The process of a call ended before it had an answer: by a signal where the code is below 0."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def count_bytes(more: int, _: int) -> None:
    """Count progress, in a process of a pool."""
    if _counts:
        _counts[0][_counts[1]] += more


class Pool(Executor):
    """A number of processes, each with a thread that hands it one call after the other."""

    def __init__(self, workers: int) -> None:
        import multiprocessing

        # spawn, not fork: a fork copies locks that other threads of the parent hold, and nobody releases them
        self._context = multiprocessing.get_context("spawn")
        self._done = self._context.RawArray("Q", workers)
        self._lock, self._ended = threading.Lock(), False
        self._crew = [_Worker(self._context, self._done, place) for place in range(workers)]
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._crew:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(workers, initializer=interrupts.left_to_main_thread)

    @property
    def bytes_done(self) -> int:
        """What all processes counted."""
        return sum(self._done)

    def submit(self, fn: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Future[Value]:
        """Call it in a process. The Future raises ProcessDied where that is killed."""
        return self._threads.submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., Value], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        worker = self._free.get()
        try:
            with suppress(EOFError, OSError):  # OSError: it died in the middle of its answer, or before it had a call
                worker.connection.send((fn, args, kwargs))
                return worker.connection.recv()  # type: ignore[no-any-return]
            with self._lock:  # one thread at a time may start and collect processes
                worker.process.join()
                died = ProcessDied(worker.process.exitcode or 0)
                if not self._ended:
                    worker = self._crew[worker.place] = _Worker(self._context, self._done, worker.place)
            raise died
        finally:
            self._free.put(worker)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; with `cancel_futures` in the middle of a call, which removes what it was making."""
        if not cancel_futures:
            self._threads.shutdown(wait=True)
        with self._lock:
            self._ended = True
        for worker in self._crew if cancel_futures else ():
            worker.process.terminate()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._crew:
            worker.connection.close()
            worker.process.join()


class _Worker:
    """A process that answers one call after the other; `place` is its own among those of the pool."""

    def __init__(self, context: Any, done: Any, place: int) -> None:
        self.place = place
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, done, place), daemon=True)
        # the child begins with it alone blocked: Ctrl-C reaches the whole process group, and would print a traceback there
        before = signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()  # only the process may hold its end: then its death is seen as the end of the pipe


def _work(connection: Connection, done: Any, place: int) -> None:
    """The loop of a process: answer calls until the pipe is closed."""
    global _counts
    _counts = done, place
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group: the command ends its workers itself
    try:
        with interrupts.listening(once=True), suppress(EOFError):
            while True:
                fn, args, kwargs = connection.recv()
                answer = fn(*args, **kwargs)
                interrupts.check()
                connection.send(answer)
    except interrupts.Interrupted:  # what the call was making in a store is removed; then it dies as it was told to
        os.kill(os.getpid(), signal.SIGTERM)

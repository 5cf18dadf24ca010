"""Many conversions: one after the other, or in several processes; one that fails does not stop the others."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from chkpt_channels.api import convert as flow
from chkpt_channels.api.manifest import Job
from chkpt_channels.api.output.naming import Progress, Settings
from chkpt_channels.api.report import Report
from chkpt_channels.core.errors import Place, SystemProblem, UsageError

POLL = 0.1


def into(folder: str, jobs: Sequence[Job]) -> list[Job]:
    """The same conversions with outputs in one folder. Raises UsageError where two would get one name."""
    found: dict[Path, str] = {}
    for job in jobs:
        path = Path(folder) / flow.derived_path(job.src, job.to, job.options).name
        if path in found:
            raise UsageError(f"{found[path]} and {job.src} would both become {path}", hint="-o names each, or a manifest does")
        found[path] = job.src
    with Place(folder).trying("cannot be made"):
        os.makedirs(folder, exist_ok=True)
    return [job._replace(dst=str(path)) for job, path in zip(jobs, found, strict=True)]


def run(jobs: Sequence[Job], settings: Settings, workers: int, progress: Progress | None) -> Iterator[Callable[[], Report]]:
    """For each job, in their order, what gives its report, or raises what was wrong with it. `progress(bytes, all bytes)` is
    called over all of them."""
    if workers < 1:
        raise UsageError(f"-j is a number of processes, not {workers}")
    if len(jobs) > 1:
        gc.enable()  # the command does without for one file; what many leave behind adds up
    total = sum(_size(job.src) for job in jobs) if progress else 0
    shown = (lambda count, _: progress(count, total)) if progress else None
    if workers == 1 or len(jobs) < 2:
        yield from (partial(_converted, job, settings, shown) for job in jobs)
    else:
        yield from _in_processes(jobs, settings, min(workers, len(jobs)), shown)


def _converted(job: Job, settings: Settings, progress: Progress | None) -> Report:
    return flow.convert(job.src, job.dst, job.to, progress=progress, **settings._asdict(), **job.options)


_done: Any = None
"""In a worker: how many bytes each job has done, shared with the process that shows them."""
_begun: Any = None
"""In a worker: which jobs were begun, shared with the process that hears no more of them when their worker dies."""


def _begin(done: Any, begun: Any) -> None:
    global _done, _begun
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts the whole group: the command alone answers, and ends us
    _done, _begun = done, begun


def _one(number: int, job: Job, settings: Settings) -> Report:
    def count(more: int, _: int) -> None:
        _done[number] += more

    _begun[number] = 1
    return _converted(job, settings, count)


class _Workers:
    """The processes of one run. A worker that dies takes its pool down with it: the pool is then made anew, what was in hand is
    tried once more in a process of its own, and what was not begun goes on in the new pool."""

    def __init__(self, jobs: Sequence[Job], settings: Settings, workers: int, progress: Progress | None) -> None:
        import multiprocessing

        self._context = multiprocessing.get_context("spawn")
        self._jobs, self._settings, self._workers, self._progress = jobs, settings, workers, progress
        self._shared = self._context.RawArray("Q", len(jobs)), self._context.RawArray("b", len(jobs))
        self._before = 0
        self._outcomes: dict[int, Callable[[], Report]] = {}
        self._start(range(len(jobs)))

    def _start(self, numbers: Iterable[int]) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self._pool = ProcessPoolExecutor(self._workers, self._context, _begin, self._shared)
        self._futures = {i: self._pool.submit(_one, i, self._jobs[i], self._settings) for i in numbers}

    def outcome(self, number: int) -> Callable[[], Report]:
        """What gives the report of a job, or raises what was wrong with it, when it is done."""
        from concurrent.futures import wait
        from concurrent.futures.process import BrokenProcessPool

        while number not in self._outcomes:
            future = self._futures[number]
            while wait([future], POLL if self._progress else None).not_done:
                self._show()
            self._show()
            if not isinstance(future.exception(), BrokenProcessPool):
                return future.result
            self._recover(number)
        return self._outcomes.pop(number)

    def _recover(self, number: int) -> None:
        from concurrent.futures.process import BrokenProcessPool

        self._pool.shutdown()  # when it has ended every future knows of it
        lost = [i for i, future in self._futures.items() if i >= number and isinstance(future.exception(), BrokenProcessPool)]
        in_hand = [i for i in lost if self._shared[1][i]] or [number]  # at least one, so that this comes to an end
        finished = {i: future for i, future in self._futures.items() if i not in lost}
        self._start(i for i in lost if i not in in_hand)
        self._futures |= finished
        for i in in_hand:
            self._outcomes[i] = self._alone(i)

    def _alone(self, number: int) -> Callable[[], Report]:
        """A job tried in a process of its own: what it gives, or that its process was killed."""
        receiver, sender = self._context.Pipe(duplex=False)
        task = (sender, self._shared, number, self._jobs[number], self._settings)
        process = self._context.Process(target=_send_one, args=task)
        process.start()
        sender.close()
        with receiver:
            while not receiver.poll(POLL if self._progress else None):
                self._show()
            try:
                value: Report | BaseException = receiver.recv()
            except EOFError:
                process.join()
                value = _killed(self._jobs[number].src, process.exitcode or 0)
        process.join()
        return partial(_given, value)

    def _show(self) -> None:
        now = sum(self._shared[0])
        if self._progress and now > self._before:
            self._progress(now - self._before, 0)
            self._before = now

    def end(self, *, at_once: bool) -> None:
        """Give the processes back. What is half done when they end `at_once` has no name yet, and vanishes with its process."""
        import multiprocessing

        for child in multiprocessing.active_children() if at_once else ():
            child.terminate()
        self._pool.shutdown(cancel_futures=True)


def _send_one(sender: Any, shared: tuple[Any, Any], number: int, job: Job, settings: Settings) -> None:
    _begin(*shared)
    try:
        value: Report | Exception = _one(number, job, settings)
    except Exception as error:
        value = error
    sender.send(value)


def _given(value: Report | BaseException) -> Report:
    if isinstance(value, BaseException):
        raise value
    return value


def _killed(path: str, exit_code: int) -> SystemProblem:
    """Signal 9 is what the system sends where memory runs out."""
    if exit_code < 0:
        return SystemProblem(f"its process was killed (signal {-exit_code}); memory?", file=path, hint="-j 1, or more memory")
    return SystemProblem(f"its process ended with code {exit_code}", file=path, hint="-j 1 shows more")


def _in_processes(
    jobs: Sequence[Job], settings: Settings, workers: int, progress: Progress | None
) -> Iterator[Callable[[], Report]]:
    crew = _Workers(jobs, settings, workers, progress)
    try:
        yield from map(crew.outcome, range(len(jobs)))
    except BaseException:  # interrupted, or terminated
        crew.end(at_once=True)
        raise
    crew.end(at_once=False)


def _size(path: str) -> int:
    """The bytes of a file, or of all files in a folder; 0 where there is none."""
    try:
        if Path(path).is_dir():
            return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        return Path(path).stat().st_size
    except OSError:
        return 0

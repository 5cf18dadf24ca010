"""Many conversions, one after the other or in several processes; a failure does not stop the others."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chkpt_channels.api.convert import convert
from chkpt_channels.api.manifest import Job
from chkpt_channels.api.output.naming import Progress, derived_path
from chkpt_channels.api.output.publish import Settings
from chkpt_channels.api.report import Report
from chkpt_channels.core import gc_pause
from chkpt_channels.core.errors import FileSystemError, Location, UsageError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnContext

POLL_SECONDS = 0.1
"""Time between two updates of a progress bar."""


def with_output_dir(folder: str, jobs: Sequence[Job]) -> list[Job]:
    """The same conversions with outputs in one folder. Raises UsageError where two would get the same name, or where names need a
    target that only a look into each source gives."""
    sources: dict[Path, str] = {}
    for job in jobs:
        if len(jobs) > 1 and _needs_source(job):
            raise UsageError("--output-dir names outputs by their target: --to is needed beside --like", hint="--to gray")
        path = Path(folder) / derived_path(job.src, job.to, job.options).name
        if path in sources:
            raise UsageError(f"{sources[path]} and {job.src} would both become {path}", hint="-o names each, or a manifest does")
        sources[path] = job.src
    return [job._replace(dst=str(path), makes_folder=True) for job, path in zip(jobs, sources, strict=True)]


def run(jobs: Sequence[Job], settings: Settings, workers: int, progress: Progress | None) -> Iterator[Callable[[], Report]]:
    """For each job, in order, a function that returns its report or raises its error. `progress(bytes, all bytes)` counts over
    all jobs. Raises UsageError for less than one worker."""
    if workers < 1:
        raise UsageError(f"-j takes a number of processes from 1 on, not {workers}")
    if len(jobs) > 1:
        gc_pause.collect_again()
    if not settings.dry_run:
        _make_folders(jobs)
    total = sum(_size(job.src) for job in jobs) if progress else 0
    advance = (lambda count, _: progress(count, total)) if progress else None
    if workers == 1 or len(jobs) < 2:
        yield from (partial(_convert, job, settings, advance) for job in jobs)
    else:
        yield from _in_processes(jobs, settings, min(workers, len(jobs)), advance)


def _make_folders(jobs: Sequence[Job]) -> None:
    for folder in {os.path.dirname(job.dst) for job in jobs if job.dst and job.makes_folder} - {""}:
        with Location(folder).wrapping_os_errors("cannot be created"):
            os.makedirs(folder, exist_ok=True)


def _convert(job: Job, settings: Settings, progress: Progress | None) -> Report:
    return convert(job.src, job.dst, job.to, progress=progress, **settings._asdict(), **job.options)


def _in_processes(
    jobs: Sequence[Job], settings: Settings, workers: int, progress: Progress | None
) -> Iterator[Callable[[], Report]]:
    crew = _Crew(jobs, settings, workers, progress)
    try:
        yield from map(crew.outcome, range(len(jobs)))
    except BaseException:  # interrupted, or terminated
        crew.end(at_once=True)
        raise
    crew.end(at_once=False)


class _Worker:
    """A process that runs one job after the other; `number` is the current one."""

    def __init__(self, context: SpawnContext, done: Any) -> None:
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, done))
        self.process.start()
        other.close()  # only the process may hold its end: then its death is seen as the end of the pipe
        self.number: int | None = None

    def give(self, number: int, job: Job, settings: Settings) -> None:
        """Start a job."""
        self.number = number
        with suppress(OSError):  # it died while it had nothing to do: `result` says so
            self.connection.send((number, job, settings))

    def result(self) -> Report | Exception | None:
        """The report or error of the current job; None where the process has died."""
        try:
            value: Report | Exception = self.connection.recv()
            return value
        except (EOFError, OSError):  # OSError: it died in the middle of its answer
            self.process.join()
            return None


class _Crew:
    """The processes of one run. Where one dies, its job is tried once more when nothing else runs: most likely the system had too
    little memory for two. A job whose process dies twice is reported, and all others are done."""

    def __init__(self, jobs: Sequence[Job], settings: Settings, workers: int, progress: Progress | None) -> None:
        import multiprocessing

        # spawn, not fork: a fork copies locks that other threads of the parent hold, and nobody releases them
        self._context = multiprocessing.get_context("spawn")
        self._jobs, self._settings, self._progress = jobs, settings, progress
        self._done = self._context.RawArray("Q", len(jobs))
        self._shown_bytes = 0
        self._waiting = deque(range(len(jobs)))
        self._retries: deque[int] = deque()
        self._retried: set[int] = set()
        self._new = {i for i, job in enumerate(jobs) if not _needs_source(job) and not os.path.lexists(_output(job))}
        self._workers = [_Worker(self._context, self._done) for _ in range(workers)]
        self._outcomes: dict[int, Callable[[], Report]] = {}

    def outcome(self, number: int) -> Callable[[], Report]:
        """A function that returns the report of a job or raises its error; waits until the job is done."""
        while number not in self._outcomes:
            self._hand_out()
            self._collect()
        return self._outcomes.pop(number)

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.number is not None:
                continue
            if not self._retries and self._waiting:
                number = self._waiting.popleft()
                worker.give(number, self._jobs[number], self._settings)
            elif self._retries and all(other.number is None for other in self._workers):
                number = self._retries.popleft()
                self._retried.add(number)
                # the first process may have died after it published: its own output must not stop the second
                settings = self._settings._replace(force=self._settings.force or number in self._new)
                worker.give(number, self._jobs[number], settings)

    def _collect(self) -> None:
        from multiprocessing.connection import wait

        busy = {worker.connection: worker for worker in self._workers if worker.number is not None}
        for connection in wait([*busy], POLL_SECONDS if self._progress else None):
            worker = busy[connection]  # type: ignore[index] # what was waited for comes back
            number, result = worker.number, worker.result()
            worker.number = None
            if number is None:
                continue
            if result is not None:
                self._outcomes[number] = partial(_report_or_raise, result)
                continue
            self._workers[self._workers.index(worker)] = _Worker(self._context, self._done)
            if number in self._retried:
                error = _worker_death(self._jobs[number].src, worker.process.exitcode or 0)
                self._outcomes[number] = partial(_report_or_raise, error)
            else:
                self._retries.append(number)
        self._show_progress()

    def _show_progress(self) -> None:
        now = sum(self._done)
        if self._progress and now > self._shown_bytes:
            self._progress(now - self._shown_bytes, 0)
            self._shown_bytes = now

    def end(self, *, at_once: bool) -> None:
        """End the processes; with `at_once` in the middle of a job, whose unnamed output vanishes with its process."""
        for worker in self._workers:
            if at_once:
                worker.process.terminate()
            worker.connection.close()
        for worker in self._workers:
            worker.process.join()


def _work(connection: Connection, done: Any) -> None:
    """The loop of a worker: run each job until the pipe is closed. `done` counts bytes by job, for the progress bar."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group: the command ends its workers itself
    with suppress(EOFError):
        while True:
            number, job, settings = connection.recv()
            connection.send(_try_convert(number, job, settings, done))


def _try_convert(number: int, job: Job, settings: Settings, done: Any) -> Report | Exception:
    def count(more: int, _: int) -> None:
        done[number] += more

    try:
        return _convert(job, settings, count)
    except Exception as error:
        return error


def _report_or_raise(result: Report | Exception) -> Report:
    if isinstance(result, Exception):
        raise result
    return result


def _worker_death(path: str, exit_code: int) -> FileSystemError:
    """The error for a worker that died twice. Linux's out-of-memory killer sends signal 9."""
    if exit_code < 0:
        return FileSystemError(
            f"its process was killed by signal {-exit_code}, as the system does when memory runs out", file=path, hint="-j 1"
        )
    return FileSystemError(f"its process ended with code {exit_code}", file=path, hint="-j 1 prints the reason")


def _needs_source(job: Job) -> bool:
    """Whether the name of its output is known only when the source was compared with LIKE."""
    return job.dst is None and job.to is None and job.options.get("like") is not None


def _output(job: Job) -> Path:
    """The output of a job, before --hash-name renames it."""
    return Path(job.dst) if job.dst is not None else derived_path(job.src, job.to, job.options)


def _size(path: str) -> int:
    """The bytes of a file, or of all files in a folder; 0 where there is none."""
    try:
        if Path(path).is_dir():
            return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        return Path(path).stat().st_size
    except OSError:
        return 0

"""Many conversions, in this process, in several, or on a cluster; a failure does not stop the others.

A conversion may be done twice: its output appears whole, and the second finds what the first has made. So a row whose process
dies is tried once more, and a run that was ended is run again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chkpt_channels import __version__
from chkpt_channels.api.fleet.ledger import Ledger, Line
from chkpt_channels.api.fleet.row import absolute, identity
from chkpt_channels.api.fleet.work import Answer, first_line, line_of, task
from chkpt_channels.api.manifest import Job
from chkpt_channels.api.output.naming import Progress
from chkpt_channels.api.output.target import Settings
from chkpt_channels.api.report import Report
from chkpt_channels.core import gc_pause
from chkpt_channels.core.errors import FileSystemError, Location, PostPublishError, UsageError
from chkpt_channels.core.records import NamedTuple

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from queue import SimpleQueue

POLL_SECONDS = 0.1
"""Time between two updates of a progress bar, and two looks for a signal."""
_MOST_AHEAD = 1000
"""How many rows an executor has at once: enough for any cluster, and the reports of as many fit any memory."""


class Outcome(NamedTuple):
    """What became of a row: its report, or its error, or neither where the `line` of the ledger says that it was done before."""

    job: Job
    report: Report | None
    error: Exception | None
    line: Line | None = None

    def get(self) -> Report | Line:
        """The report, or the line of a row that was done before; both have a `result()`. Raises its error."""
        if self.error:
            raise self.error
        if (result := self.report or self.line) is None:
            raise ValueError("an outcome is a report, an error or a line")
        return result


def run(
    rows: Sequence[Job],
    executor: Executor | None = None,
    *,
    workers: int = 1,
    ledger: str | None = None,
    resume: bool = False,
    shard: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Iterator[Outcome]:
    """Do the conversions, and give the outcome of each, in order: on any `executor` of concurrent.futures, or in so many
    processes of this machine as there are `workers`.

    `ledger` is a file that remembers each result; with `resume` it may be there, and rows that are final in it are not done
    again. It names the `shard` whose rows these are. `progress(bytes, all bytes)` counts over all rows, `settings` are the
    keywords of `convert` that are no options. Raises UsageError, what opening the ledger raises, and PostPublishError where the
    executor ends: the rows that are left are not in the ledger."""
    how = Settings(**settings)
    _check(how, executor, workers, ledger, resume=resume)
    if len(rows) > 1:
        gc_pause.collect_again()
    with ExitStack() as stack:
        keys = [identity(job, how) for job in rows] if ledger is not None else []
        named = [(key, job.src) for key, job in zip(keys, rows, strict=False)]
        memory = stack.enter_context(Ledger(ledger, named, shard, resume=resume)) if ledger is not None else None
        known = dict(_known(rows, keys, memory, force=how.force)) if memory else {}
        jobs = {n: absolute(job) if executor else job for n, job in enumerate(rows) if n not in known}
        _make_folders(() if how.dry_run else jobs.values())
        words = {"settings": how, "stamped": memory is not None}
        answers = stack.enter_context(closing(_begun(jobs, words, executor, workers, progress, stack)))
        for number in range(len(rows)):
            while number not in known:
                n, answer = next(answers)
                line = line_of(keys[n], jobs[n], answer) if memory else None
                if memory and line:
                    memory.add(line)
                report, error = (answer.result, None) if isinstance(answer.result, Report) else (None, answer.result)
                known[n] = Outcome(rows[n], report, error, line)
            yield known.pop(number)


def _check(settings: Settings, executor: Executor | None, workers: int, ledger: str | None, *, resume: bool) -> None:
    if workers < 1:
        raise UsageError(f"-j takes a number of processes from 1 on, not {workers}")
    if executor and workers != 1:
        raise UsageError("-j is for processes of this machine: a cluster has its own")
    if resume and ledger is None:
        raise UsageError("--resume goes on with a ledger", hint="--ledger FILE.jsonl")
    if ledger is not None and settings.dry_run:
        raise UsageError("--ledger remembers what was written, and nothing is to be written")


def _known(rows: Sequence[Job], keys: Sequence[str], memory: Ledger, *, force: bool) -> Iterator[tuple[int, Outcome]]:
    """What need not be done again."""
    for number, key in enumerate(keys):
        line = memory.lines.get(key)
        if line and line.holds(force=force):
            yield number, Outcome(rows[number], None, line.failure(), line._replace(status="skipped"))


def _make_folders(jobs: Iterable[Job]) -> None:
    for folder in {os.path.dirname(job.dst) for job in jobs if job.dst and job.makes_folder} - {""}:
        with Location(folder).wrapping_os_errors("cannot be created"):
            os.makedirs(folder, exist_ok=True)


class _Crew(NamedTuple):
    """Who does the work: an executor, which gets these `words` with each row, at most so many calls `ahead`; `tick` shows
    progress, or raises where nobody answers any more, `told` when a row is done. One that `is_own` ends with the run."""

    executor: Executor
    words: Mapping[str, Any]
    ahead: int
    tick: Callable[[], None] | None = None
    told: Callable[[Job], None] | None = None
    is_own: bool = False


def _begun(
    jobs: Mapping[int, Job],
    words: Mapping[str, Any],
    given: Executor | None,
    workers: int,
    progress: Progress | None,
    stack: ExitStack,
) -> Generator[tuple[int, Answer], None, None]:
    """The answers as they come; `words` are the keywords of `task`."""
    total = sum(_size(job.src) for job in jobs.values()) if progress else 0
    if given:
        told = (lambda job: progress(_size(job.src), total)) if progress else None
        return _answers(jobs, _Crew(given, words, _MOST_AHEAD, getattr(given, "check", None), told))
    if workers == 1 or len(jobs) < 2:
        advance = (lambda more, _: progress(more, total)) if progress else None
        return ((number, task(job, "", progress=advance, **words)) for number, job in jobs.items())
    from chkpt_channels.api.fleet.pool import Pool, count_bytes

    pool, shown = stack.enter_context(Pool(min(workers, len(jobs)))), 0

    def tick() -> None:
        nonlocal shown
        before, shown = shown, pool.bytes_done
        if progress and shown > before:
            progress(shown - before, total)

    words = {**words, "progress": count_bytes}
    return _answers(jobs, _Crew(pool, words, 2 * workers, tick if progress else None, is_own=True))


def _answers(jobs: Mapping[int, Job], crew: _Crew) -> Generator[tuple[int, Answer], None, None]:
    """The answers as they come. Where a worker dies, its row is tried once more when nothing else runs: most likely the system
    had too little memory for two. A row whose worker dies twice is an error, and all others are done."""
    from queue import SimpleQueue

    waiting, again, retried = deque(jobs), deque[int](), set[int]()
    flying: dict[Future[Answer], int] = {}
    done: SimpleQueue[Future[Answer]] = SimpleQueue()
    try:
        while waiting or again or flying:
            while waiting and not again and len(flying) < crew.ahead:
                _launch(waiting.popleft(), jobs, crew, flying, done)
            if again and not flying:
                retried.add(again[0])
                _launch(again.popleft(), jobs, crew, flying, done)
            if not (future := _next(done, crew.tick)):
                continue
            number = flying.pop(future)
            try:
                answer = future.result()
            except Exception as death:
                if number not in retried:
                    again.append(number)
                    continue
                answer = Answer(_death(jobs[number].src, death), None, None, "", 0.0, __version__)
            if crew.told:
                crew.told(jobs[number])
            yield number, answer
    except BaseException:  # interrupted, or terminated
        for future in flying:
            future.cancel()
        if crew.is_own:
            crew.executor.shutdown(cancel_futures=True)
        raise


def _launch(
    number: int, jobs: Mapping[int, Job], crew: _Crew, flying: dict[Future[Answer], int], done: SimpleQueue[Future[Answer]]
) -> None:
    try:
        future = crew.executor.submit(partial(task, **crew.words), jobs[number], os.urandom(8).hex())
    except Exception as error:
        what = f"was not begun: the executor takes no more work: {first_line(error)}"
        raise PostPublishError(what, file=jobs[number].src, hint="--resume, which does what is left") from error
    flying[future] = number
    future.add_done_callback(done.put)


def _next(done: SimpleQueue[Future[Answer]], tick: Callable[[], None] | None) -> Future[Answer] | None:
    """What is done next; None after a while: progress is shown, and a signal that an executor's thread took is heard."""
    from queue import Empty

    try:
        return done.get(timeout=POLL_SECONDS)
    except Empty:
        return None
    finally:
        if tick:
            tick()


def _death(path: str, death: Exception) -> FileSystemError:
    """The error for a row whose worker died twice. Linux's out-of-memory killer sends signal 9."""
    from chkpt_channels.api.fleet.pool import ProcessDied

    if not isinstance(death, ProcessDied):
        return FileSystemError(f"its process was killed, or gave no answer: {first_line(death)}", file=path)
    if death.exit_code < 0:
        what = f"its process was killed by signal {-death.exit_code}, as the system does when memory runs out"
        return FileSystemError(what, file=path, hint="-j 1")
    return FileSystemError(f"its process ended with code {death.exit_code}", file=path, hint="-j 1 prints the reason")


def _size(path: str) -> int:
    """The bytes of a file, or of all files in a folder; 0 where there is none."""
    try:
        if Path(path).is_dir():
            return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        return Path(path).stat().st_size
    except OSError:
        return 0

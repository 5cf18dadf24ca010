"""Many conversions: one after the other, or in several processes; one that fails does not stop the others."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import flow
from .errors import Place, UsageError
from .manifests import Job
from .outputs import Progress, Settings
from .report import Report

POLL = 0.1


def into(folder: str, jobs: Sequence[Job]) -> list[Job]:
    """The same conversions with outputs in one folder. Raises UsageError where two would get one name."""
    found: dict[Path, str] = {}
    for job in jobs:
        path = Path(folder) / flow.derived_path(job.src, job.to, job.words).name
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
    return flow.convert(job.src, job.dst, job.to, progress=progress, **settings._asdict(), **job.words)


_done: Any = None
"""In a worker: how many bytes each job has done, shared with the process that shows them."""


def _begin(done: Any) -> None:
    global _done
    _done = done


def _one(number: int, job: Job, settings: Settings) -> Report:
    def count(more: int, _: int) -> None:
        _done[number] += more

    return _converted(job, settings, count)


def _in_processes(
    jobs: Sequence[Job], settings: Settings, workers: int, progress: Progress | None
) -> Iterator[Callable[[], Report]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, wait

    context = multiprocessing.get_context("spawn")
    done = context.RawArray("Q", len(jobs))
    pool = ProcessPoolExecutor(workers, context, _begin, (done,))
    before = 0
    try:
        futures = [pool.submit(_one, i, job, settings) for i, job in enumerate(jobs)]
        for future in futures:
            while wait([future], POLL if progress else None).not_done:
                before = _shown(sum(done), before, progress)
            before = _shown(sum(done), before, progress)
            yield future.result
    except BaseException:  # interrupted, or terminated: what is half done has no name yet, and vanishes with its process
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _shown(now: int, before: int, progress: Progress | None) -> int:
    if progress and now > before:
        progress(now - before, 0)
    return now


def _size(path: str) -> int:
    """The bytes of a file, or of all files in a folder; 0 where there is none."""
    try:
        if Path(path).is_dir():
            return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        return Path(path).stat().st_size
    except OSError:
        return 0

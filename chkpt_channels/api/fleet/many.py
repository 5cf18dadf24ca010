"""Many files checked, in several processes where there are many: it is mostly arithmetic on indexes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chkpt_channels.api.check import check_among
from chkpt_channels.api.report import Check
from chkpt_channels.core.errors import FileSystemError
from chkpt_channels.core.gc_pause import gc_paused
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.opening import is_mirrored

if TYPE_CHECKING:
    from concurrent.futures import Future

    from chkpt_channels.api.fleet.pool import Pool

PROCESSES_FROM_FILES = 64
"""Fewer files take less time than processes take to start."""
MOST_PROCESSES = 8
FILES_A_CALL = 16
"""An answer is as quickly told for several files as for one."""
_AHEAD = 2
"""Calls that wait for each process."""
_Question = partial[Check]
"""The check of one file."""


class Checked(NamedTuple):
    """What came of one file."""

    result: Check | None
    error: Exception | None

    def get(self) -> Check:
        """The check. Raises its error."""
        if self.result is None:
            raise self.error or ValueError("an answer is a check or an error")
        return self.result


def checks(files: Mapping[Path | str, bool], expect: str | int | None, lfs_pointers: str) -> Iterator[Checked]:
    """The check of each file, in order; `files` says of each whether a path names it."""
    asked = partial(check_among, expect=expect, lfs_pointers=lfs_pointers)
    questions = [partial(asked, file, is_named=is_named) for file, is_named in files.items()]
    processes = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_PROCESSES)
    # a folder in a store is mirrored for this process alone
    if len(files) < PROCESSES_FROM_FILES or processes == 1 or any(map(is_mirrored, files)):
        yield from map(_answer, questions)
        return
    with closing(_side_by_side(questions, processes)) as answers:
        yield from answers


def _answer(question: _Question) -> Checked:
    try:
        return Checked(question(), None)
    except Exception as error:
        return Checked(None, error)


def _answers(questions: Sequence[_Question]) -> list[Checked]:
    with gc_paused():
        return [_answer(question) for question in questions]


def _side_by_side(questions: Sequence[_Question], processes: int) -> Generator[Checked, None, None]:
    from chkpt_channels.api.fleet.pool import Pool, ProcessDied

    waiting = deque(questions[n : n + FILES_A_CALL] for n in range(0, len(questions), FILES_A_CALL))
    flying: deque[tuple[Sequence[_Question], Future[list[Checked]]]] = deque()
    with Pool(processes) as pool:
        try:
            while waiting or flying:
                while waiting and len(flying) < processes * _AHEAD:
                    asked = waiting.popleft()
                    flying.append((asked, pool.submit(_answers, asked)))
                asked, future = flying.popleft()
                try:
                    yield from future.result()
                except ProcessDied:
                    yield from (_alone(pool, question) for question in asked)
        except BaseException:  # interrupted, or terminated
            pool.shutdown(cancel_futures=True)
            raise


def _alone(pool: Pool, question: _Question) -> Checked:
    """The answer of a process that nothing else is asked of."""
    from chkpt_channels.api.fleet.pool import ProcessDied

    try:
        return pool.submit(_answers, [question]).result()[0]
    except ProcessDied:
        return Checked(None, FileSystemError("was not checked: its process was killed", file=str(question.args[0])))

"""Work in threads; or here and now, where there are none (a browser) and where a thread takes longer to start than the work."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from threading import Thread
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from chkpt_channels.core.interrupts import left_to_main_thread
from chkpt_channels.storage.source import BROWSER

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Done(Generic[Result]):
    """A Future whose work is done."""

    def __init__(self, value: Result) -> None:
        self._value = value

    def result(self) -> Result:
        """What the work gave."""
        return self._value


class Here:
    """In the place of a pool: it does the work when it is handed it, and raises what that raises."""

    def submit(self, work: Callable[Arguments, Result], *args: Arguments.args, **more: Arguments.kwargs) -> Done[Result]:
        """The work's result."""
        return Done(work(*args, **more))

    def shutdown(self, wait: bool = True) -> None:
        """There is nothing to end."""


def pools(*counts: int, wanted: bool = True) -> tuple[ThreadPoolExecutor | Here, ...]:
    """A pool of each number of threads; none of threads where they are not wanted, or where the system has none."""
    if not wanted or sys.platform == BROWSER:
        return tuple(Here() for _ in counts)
    from concurrent.futures import ThreadPoolExecutor

    return tuple(ThreadPoolExecutor(count, initializer=left_to_main_thread) for count in counts)


def undisturbed(work: Callable[[], Result]) -> Result:
    """What `work` gives, which ends before a signal is heard: what is being made must be known to be removed. Raises OSError
    where the system cannot start a thread."""
    if sys.platform == BROWSER:
        return work()
    from concurrent.futures import Future, wait

    future = Future[Result]()
    thread = Thread(target=_answer, args=(future, work))
    try:
        thread.start()
        return future.result()
    except BaseException as error:
        # a thread that the signal met while it was started may run, and cannot be joined
        if not future.cancel():
            wait([future])
        if isinstance(error, RuntimeError) and future.cancelled():
            raise OSError(errno.EAGAIN, str(error)) from error
        raise


def _answer(future: Future[Result], work: Callable[[], Result]) -> None:
    left_to_main_thread()
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


def submit(
    pool: ThreadPoolExecutor | Here, work: Callable[Arguments, Result], *args: Arguments.args, **more: Arguments.kwargs
) -> Future[Result] | Done[Result]:
    """`work` in a pool. Raises OSError where the system cannot start a thread: the pool raises RuntimeError, which would look
    like a bug."""
    if isinstance(pool, Here):
        return pool.submit(work, *args, **more)
    try:
        return pool.submit(work, *args, **more)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error

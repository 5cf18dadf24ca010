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


def pool(count: int) -> ThreadPoolExecutor | None:
    """A pool of threads; None where the system has none."""
    if sys.platform == BROWSER:
        return None
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(count, initializer=left_to_main_thread)


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
    pool: ThreadPoolExecutor | None, work: Callable[Arguments, Result], *args: Arguments.args, **more: Arguments.kwargs
) -> Future[Result] | Done[Result]:
    """`work` in a pool, without one done here and now. Raises OSError where the system cannot start a thread: the pool raises
    RuntimeError, which would look like a bug."""
    if pool is None:
        return Done(work(*args, **more))
    try:
        return pool.submit(work, *args, **more)
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error

"""SIGINT and SIGTERM of a command: raised where it works, and remembered.

An exception that a signal handler raises can be lost: CPython drops it inside a callback (importlib has one for every import),
and numpy turns it into an ImportError while it is imported. So `check` looks for it once more before anything is published, and
before anything is reported as a bug.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user, or the system, wants the command to end; `exit_code` is what shells make of it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


_received = 0


def _receive(number: int, frame: FrameType | None, *, once: bool = False) -> NoReturn:
    global _received
    _received = number
    if once:
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted(number)


def exit_code() -> int:
    """The exit code for the signal that was received since the command began to listen; 0 where none was."""
    return 128 + _received if _received else 0


def check() -> None:
    """Raise Interrupted for a signal that was received and lost. Does nothing in a program that only calls the library."""
    if _received:
        raise Interrupted(_received)


def left_to_main_thread() -> None:
    """For the beginning of every other thread. The system may hand a signal to any that takes it; Python acts on it in the main
    thread alone, which that does not wake: what it waits for would go on to its end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def _lost(unraisable: sys.UnraisableHookArgs) -> None:
    """An unraisable hook that prints all but Interrupted, which `check` raises later."""
    if not issubclass(unraisable.exc_type, Interrupted):
        sys.__unraisablehook__(unraisable)


@contextmanager
def listening(*, once: bool = False) -> Iterator[None]:
    """Raise Interrupted for what asks the command to end, unless the caller had it ignored (nohup, or a shell's background). With
    `once` the same signal is not heard again: who ends a process group and each of its processes sends it twice."""
    global _received
    _received = 0
    before = {number: signal.getsignal(number) for number in ENDING}
    handled = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, partial(_receive, once=once))
    hook, sys.unraisablehook = sys.unraisablehook, _lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number in handled:
            signal.signal(number, before[number])
        _received = 0

"""SIGINT and SIGTERM of a command: raised where it works, and remembered.

What is raised inside a callback or while a library is imported may be lost on its way: CPython drops the one (importlib has a
callback for every import), numpy makes an ImportError of the other. So it is looked for once more before anything gets its name,
and before anything is called a bug.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user, or the system, wants the command to end; `exit_code` is what shells make of it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


_received = 0


def _receive(number: int, frame: FrameType | None) -> NoReturn:
    global _received
    _received = number
    raise Interrupted(number)


def exit_code() -> int:
    """That of what was received since the command began to listen; 0 where nothing was."""
    return 128 + _received if _received else 0


def check() -> None:
    """Raise what was received and has not come through. Where the library is called by another program nobody listens."""
    if _received:
        raise Interrupted(_received)


def _lost(unraisable: sys.UnraisableHookArgs) -> None:
    """What a callback raises is printed, but for what `check` will raise."""
    if not issubclass(unraisable.exc_type, Interrupted):
        sys.__unraisablehook__(unraisable)


@contextmanager
def listening() -> Iterator[None]:
    """Raise Interrupted for what asks the command to end, unless the caller had it ignored (nohup, or a shell's background)."""
    global _received
    _received = 0
    before = {number: signal.getsignal(number) for number in ENDING}
    heard = [number for number, how in before.items() if how != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, _receive)
    hook, sys.unraisablehook = sys.unraisablehook, _lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number in heard:
            signal.signal(number, before[number])
        _received = 0

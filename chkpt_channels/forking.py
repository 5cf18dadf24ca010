"""When this process may be doubled, and how."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings

from .errors import Place


def may_fork() -> bool:
    """Whether that does no harm: locks that other threads hold would stay held in the child.

    Threads that libraries start outside of Python do not count: the child calls none of those libraries.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def fork(place: Place) -> int:
    """As os.fork, but the child leaves an interrupt from the keyboard to its parent, which ends it; SystemProblem about `place`
    where the system has no room for a process."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about the threads of libraries
            child = os.fork()
    except OSError as error:
        raise place.system(f"no process can be started for it: {(error.strerror or str(error)).lower()}") from error
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return child

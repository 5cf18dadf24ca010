"""When this process may be doubled, and how."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings


def may_fork() -> bool:
    """Whether that does no harm: locks that other threads hold would stay held in the child.

    Threads that libraries start outside of Python do not count: the child calls none of those libraries.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def fork() -> int:
    """As os.fork, but the child leaves an interrupt from the keyboard to its parent, which ends it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about the threads of libraries
        child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return child

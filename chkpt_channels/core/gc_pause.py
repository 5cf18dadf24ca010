"""When Python's collector of cyclic garbage runs: not while many small objects are made, and not in a command with one file.

Opening a file, the search and planning make many small objects and few cycles, and collecting doubles their time (a state dict
of 10,000 tensors: 6.1 s instead of 2.2), so they pause it; copying, which may take minutes of a program, does not. A command
with one file does without to its end. The garbage of many conversions adds up, so a batch collects between these. A worker that
was forked never collects: a collection writes to every page that it shares with its parent.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """No collections here; afterwards as before."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def stop_collecting() -> None:
    """No collections from now on: in a command, and in a forked worker."""
    gc.disable()


def collect_again() -> None:
    """Collections as usual: in a command with many files."""
    gc.enable()


def skip_last_collection() -> None:
    """At the end of a command: without this the interpreter looks at every object once more while it exits."""
    gc.freeze()

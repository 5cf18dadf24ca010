"""Work in a process of its own: what it makes arrives, what it raises is raised, and its end is no end of ours."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chkpt_channels.core.errors import DamagedError, FileSystemError, LimitExceeded, Location, UnsupportedError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage import isolation

PLACE = Location("a.h5", "b")
forks = pytest.mark.skipif(sys.platform != "linux", reason="only there is work done in a process of its own")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runner may have threads of its own, which touch none of this."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def made(*parts: bytes, error: BaseException | None = None) -> Iterator[bytes]:
    yield from parts
    if error:
        raise error


def test_the_pieces_arrive_as_they_were_made():
    parts = [b"a", b"", os.urandom(3 << 20), b"z"]
    assert list(isolation.run_isolated(lambda: made(*parts), PLACE)) == parts


@forks
def test_it_is_another_process():
    assert list(isolation.run_isolated(lambda: made(str(os.getpid()).encode()), PLACE)) != [str(os.getpid()).encode()]


@pytest.mark.parametrize("kind", [DamagedError, UnsupportedError, FileSystemError])
def test_our_errors_arrive_whole(kind: type):
    error = kind("is bad", file="f", where="w", at=7, hint="try", excess=LimitExceeded("axes", 64, 65))
    with pytest.raises(kind) as caught:
        list(isolation.run_isolated(lambda: made(b"x", error=error), PLACE))
    assert (caught.value.what, caught.value.file, caught.value.where, caught.value.at) == ("is bad", "f", "w", 7)
    assert (caught.value.hint, caught.value.excess) == ("try", ("axes", 64, 65))


@forks
def test_other_errors_are_bugs():
    with pytest.raises(RuntimeError, match="ZeroDivisionError: odd"):
        list(isolation.run_isolated(lambda: made(error=ZeroDivisionError("odd")), PLACE))


@forks
def test_a_crash_is_damage():
    def crash() -> Iterator[bytes]:
        yield b"x"
        os.kill(os.getpid(), 9)

    with pytest.raises(DamagedError, match=r"a\.h5: b: the library that reads it crashes or"):
        list(isolation.run_isolated(crash, PLACE))


@forks
def test_endless_work_is_damage(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isolation, "LIMITS", LIMITS._replace(apart_seconds=1))

    def endless() -> Iterator[bytes]:
        yield b"x"
        while True:
            pass

    with pytest.raises(DamagedError, match="crashes or does not end"):
        list(isolation.run_isolated(endless, PLACE))


@forks
def test_every_piece_has_its_own_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isolation, "LIMITS", LIMITS._replace(apart_seconds=1))

    def long() -> Iterator[bytes]:
        for _ in range(4):
            began = time.process_time()
            while time.process_time() < began + 0.6:
                pass
            yield b"x"

    assert list(isolation.run_isolated(long, PLACE)) == [b"x"] * 4


@forks
def test_an_interrupt_is_left_to_the_parent():
    def interrupted() -> Iterator[bytes]:
        os.kill(os.getpid(), signal.SIGINT)
        yield b"x"

    assert list(isolation.run_isolated(interrupted, PLACE)) == [b"x"]


@forks
def test_a_crash_leaves_no_core_file():
    import resource

    answer = isolation.run_isolated(lambda: made(str(resource.getrlimit(resource.RLIMIT_CORE)).encode()), PLACE)
    assert list(answer) == [b"(0, 0)"]


@forks
def test_no_room_for_a_process_is_the_systems_problem(monkeypatch: pytest.MonkeyPatch):
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, "Try again")

    monkeypatch.setattr(os, "fork", fail)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileSystemError, match=r"a\.h5: b: no process can be started for it: try again"):
        list(isolation.run_isolated(lambda: made(b"x"), PLACE))
    assert os.listdir("/proc/self/fd") == before


@forks
def test_threads_of_libraries_are_no_reason_to_warn(recwarn: pytest.WarningsRecorder):
    """numpy starts some where it multiplies; Python 3.12 counts them."""
    a = np.ones((500, 500)) @ np.ones((500, 500))
    assert list(isolation.run_isolated(lambda: made(str(a[0, 0]).encode()), PLACE)) == [b"500.0"]
    assert not recwarn.list


def children() -> set[str]:
    """The processes of this one; other tests may have left some that serve them."""
    found: set[str] = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        found |= set(listed.read_text().split())
    return found


def test_no_child_and_no_descriptor_is_left():
    others = children()
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for _ in range(3):
        next(isolation.run_isolated(lambda: made(b"a", b"b"), PLACE))  # not read to its end
        with pytest.raises(DamagedError):
            list(isolation.run_isolated(lambda: made(error=DamagedError("x")), PLACE))
    assert before == (set(os.listdir("/proc/self/fd")) if before else set())
    assert children() == others


def test_with_threads_it_is_done_in_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert list(isolation.run_isolated(lambda: made(str(os.getpid()).encode()), PLACE)) == [str(os.getpid()).encode()]

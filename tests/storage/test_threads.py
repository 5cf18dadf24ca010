"""Work is done in threads, or at once; either way its result and its errors are the same."""

from __future__ import annotations

import sys
import threading

import pytest

from chkpt_channels.storage.source import BROWSER
from chkpt_channels.storage.threads import pool, submit, undisturbed


def test_work_is_done():
    threads = pool(1)
    assert threads
    with threads:
        for where in (threads, None):
            assert submit(where, divmod, 7, 2).result() == (3, 1)
            is_here = submit(where, threading.get_ident).result() == threading.get_ident()
            assert is_here is (where is None)
            with pytest.raises(ZeroDivisionError):
                submit(where, divmod, 1, 0).result()


def test_a_browser_has_no_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", BROWSER)
    assert pool(8) is None


def test_a_thread_that_cannot_start_is_the_systems_error(monkeypatch: pytest.MonkeyPatch):
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = pool(1)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(OSError, match="can't start new thread"):
        submit(threads, abs, 1)
    with pytest.raises(OSError, match="can't start new thread"):
        undisturbed(lambda: 1)


def test_a_signal_while_the_thread_starts_waits_for_the_work(monkeypatch: pytest.MonkeyPatch):
    begun, made, start = threading.Event(), [], threading.Thread.start

    def work() -> None:
        begun.set()
        sum(range(1_000_000))
        made.append(1)

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        undisturbed(work)
    assert made == [1]


def test_a_signal_before_the_thread_starts_leaves_nothing_to_run(monkeypatch: pytest.MonkeyPatch):
    made, threads, start = [], list[threading.Thread](), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        threads.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        undisturbed(lambda: made.append(1))
    start(threads[0])  # the signal came between the decision and the start
    threads[0].join()
    assert made == []


def test_what_the_work_raises_is_raised():
    assert undisturbed(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        undisturbed(lambda: 1 // 0)

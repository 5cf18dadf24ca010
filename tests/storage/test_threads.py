"""Work is done in threads, or at once; either way its result and its errors are the same."""

from __future__ import annotations

import sys
import threading

import pytest

from chkpt_channels.storage.source import BROWSER
from chkpt_channels.storage.threads import Here, pools, submit


@pytest.mark.parametrize("wanted", [True, False])
def test_work_is_done(wanted: bool):
    first, second = pools(1, 2, wanted=wanted)
    assert submit(first, divmod, 7, 2).result() == (3, 1)
    is_here = submit(second, threading.get_ident).result() == threading.get_ident()
    assert is_here is not wanted
    with pytest.raises(ZeroDivisionError):
        submit(first, divmod, 1, 0).result()
    for pool in (first, second):
        pool.shutdown(wait=True)


def test_a_browser_has_no_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", BROWSER)
    assert all(isinstance(pool, Here) for pool in pools(1, 8))


def test_a_thread_that_cannot_start_is_the_systems_error(monkeypatch: pytest.MonkeyPatch):
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    (pool,) = pools(1)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(OSError, match="can't start new thread"):
        submit(pool, abs, 1)

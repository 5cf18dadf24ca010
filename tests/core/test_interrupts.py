"""What asks a command to end is raised where it works, remembered until it comes through, and forgotten with the command."""

from __future__ import annotations

import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from chkpt_channels.core import interrupts
from chkpt_channels.core.interrupts import Interrupted, check, exit_code, listening

signals = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, object]]:
    before = {number: signal.getsignal(number) for number in interrupts.ENDING}
    yield before
    for number, how in before.items():
        signal.signal(number, how)


@signals
def test_it_is_raised_with_the_shells_code(number: int, handlers: dict[int, object]):
    with pytest.raises(Interrupted) as caught, listening():
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == 128 + number
    assert {n: signal.getsignal(n) for n in interrupts.ENDING} == handlers


@signals
def test_what_is_lost_on_its_way_is_raised_by_the_next_check(number: int):
    with listening():
        with suppress(Interrupted):  # as a library loses it that is just being imported
            os.kill(os.getpid(), number)
        assert exit_code() == 128 + number
        with pytest.raises(Interrupted):
            check()
    assert exit_code() == 0
    check()


def collected(called: Callable[[], object]) -> None:
    """Call it where Python drops what is raised: in the callback of a reference that dies."""

    class Thing:
        pass

    thing = Thing()
    reference = weakref.ref(thing, lambda _: called())
    del thing
    assert reference() is None


def test_what_a_callback_drops_is_not_printed_and_not_forgotten(capfd: pytest.CaptureFixture[str]):
    with listening():
        collected(lambda: os.kill(os.getpid(), signal.SIGINT))
        assert exit_code() == 130
    assert capfd.readouterr().err == ""


def test_other_errors_of_callbacks_are_printed(capfd: pytest.CaptureFixture[str]):
    hook = sys.unraisablehook
    with listening():
        collected(lambda: 1 // 0)
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert sys.unraisablehook is hook


def test_what_the_caller_ignores_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with listening():
        os.kill(os.getpid(), signal.SIGINT)
        check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_take_none():
    """A signal that another thread takes does not wake the main one: Ctrl-C would be heard when the work is done."""
    with ThreadPoolExecutor(1, initializer=interrupts.left_to_main_thread) as pool:
        assert pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result() >= set(interrupts.ENDING)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(interrupts.ENDING)

"""Processes of this machine: one that dies fails its own call alone."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import wait
from multiprocessing import active_children
from pathlib import Path

import pytest

from chkpt_channels.api.fleet.pool import Pool, ProcessDied, count_bytes


@pytest.fixture
def pool():
    with Pool(2) as made:
        yield made


def test_a_process_that_dies_fails_its_own_call(pool: Pool):
    dying = [pool.submit(os._exit, 7), pool.submit(os.abort)]
    others = [pool.submit(abs, -n) for n in range(20)]
    assert [future.result() for future in others] == list(range(20))
    codes = []
    for future in dying:
        with pytest.raises(ProcessDied) as died:
            future.result()
        codes.append(died.value.exit_code)
    assert codes == [7, -signal.SIGABRT]


def test_one_that_dies_while_it_has_nothing_to_do_fails_the_next_call(pool: Pool):
    assert pool.submit(abs, -1).result() == 1
    for process in active_children():
        process.kill()
        process.join()
    calls = [pool.submit(abs, -n) for n in range(6)]
    wait(calls)
    failed = [future.exception() for future in calls if future.exception()]
    assert len(failed) == 2
    assert {error.exit_code for error in failed if isinstance(error, ProcessDied)} == {-signal.SIGKILL}


def blocked() -> set[signal.Signals]:
    return {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def test_ctrl_c_is_for_the_parent_alone(pool: Pool):
    """From the first instruction on: while Python starts, it would print a traceback. What a process takes that follows one that
    died is the same, though a thread starts it."""
    wait([pool.submit(os._exit, 1) for _ in range(2)])
    assert [pool.submit(blocked).result() for _ in range(2)] == [{signal.SIGINT}] * 2
    assert blocked() == set()


def test_bytes_are_counted_over_all_processes_and_their_successors(pool: Pool):
    for _ in range(2):
        wait([pool.submit(count_bytes, 1000, 0) for _ in range(10)])
        wait([pool.submit(os._exit, 1)])
    assert pool.bytes_done == 20_000


def test_a_pool_that_is_ended_at_once_leaves_no_process():
    before = set(active_children())
    pool = Pool(2)
    calls = [pool.submit(signal.pause) for _ in range(6)]
    pool.shutdown(cancel_futures=True)
    assert set(active_children()) == before
    assert all(future.cancelled() or isinstance(future.exception(), ProcessDied) for future in calls)


def waiting(begun: Path, left: Path) -> None:
    try:
        begun.touch()
        signal.pause()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # who ends a process group and each of its processes sends it twice
        left.unlink()


def test_a_call_that_is_ended_removes_what_it_was_making(tmp_path: Path):
    (tmp_path / "left").touch()
    pool = Pool(1)
    call = pool.submit(waiting, tmp_path / "begun", tmp_path / "left")
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    pool.shutdown(cancel_futures=True)
    died = call.exception()
    assert isinstance(died, ProcessDied)
    assert died.exit_code == -signal.SIGTERM
    assert not (tmp_path / "left").exists()


def test_outside_of_a_pool_nothing_is_counted():
    count_bytes(1, 1)

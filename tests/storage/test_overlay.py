"""A span of a file seen as a file object: what is written to it becomes splices, and nothing else."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import pytest

from chkpt_channels.core.errors import DamagedError
from chkpt_channels.storage.overlay import PAGE_BYTES, OverlayFile
from chkpt_channels.storage.splice import spliced


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_file_and_its_splices_make_the_same(seed: int, source: Callable):
    """Random writes, reads and truncations, against an io.BytesIO over the same bytes."""
    chance = random.Random(seed)
    before, data, behind = (chance.randbytes(n) for n in (chance.randrange(3000), chance.randrange(4 * PAGE_BYTES), 500))
    window, truth = OverlayFile(source(before + data + behind), len(before), len(data)), io.BytesIO(data)
    for _ in range(30):
        at = chance.randrange(len(truth.getvalue()) + 1)
        window.seek(at)
        truth.seek(at)
        match chance.randrange(4):
            case 0:
                count = chance.randrange(2 * PAGE_BYTES)
                assert window.read(count) == truth.read(count)
            case 1 | 2:
                new = chance.randbytes(chance.randrange(3 * PAGE_BYTES // 2))
                assert window.write(new) == truth.write(new)
            case 3:
                size = chance.randrange(max(at, 1), at + 100)
                grown = len(truth.getvalue()) < size
                truth.truncate(size)
                window.truncate(size)
                if grown:
                    truth.write(bytes(size - at))
                    window.write(bytes(size - at))
        assert window.seek(0, io.SEEK_END) == len(truth.getvalue())
    made = spliced(data, [(s.start, s.stop, s.data()) for s in window.splices()])
    assert made == truth.getvalue()


def test_what_did_not_change_is_no_splice(source: Callable):
    window = OverlayFile(source(b"abcdefgh" * 2000))
    window.seek(5000)
    window.write(b"abcdefgh" * 10)
    assert window.splices() == []
    window.seek(7)
    window.write(b"X")
    assert [(s.start, s.stop, s.data()) for s in window.splices()] == [(7, 8, b"X")]


def test_changes_on_both_sides_of_a_page_are_one_splice(source: Callable):
    window = OverlayFile(source(bytes(3 * PAGE_BYTES)))
    window.seek(PAGE_BYTES - 2)
    window.write(b"abcd")
    assert [(s.start, s.size) for s in window.splices()] == [(PAGE_BYTES - 2, 4)]


def test_it_remembers_the_read_that_failed_and_lets_nothing_follow(source: Callable, monkeypatch: pytest.MonkeyPatch):
    window = OverlayFile(source(bytes(100)))
    problem = DamagedError("gone")

    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr("chkpt_channels.storage.source.Source.readinto", fail)
    window.seek(10)
    window.write(b"abc")  # reads the rest of the page; a library's write must not raise
    assert window.error is problem
    with pytest.raises(DamagedError):
        window.read(1)

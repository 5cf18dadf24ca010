"""A source over an object: the right bytes by few requests, whatever is read. Real servers are in tests/remote."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.core.errors import DamagedError, Location
from chkpt_channels.storage import isolation
from chkpt_channels.storage.stores import remote
from chkpt_channels.storage.stores.connection import Pin
from chkpt_channels.storage.stores.remote import RemoteSource, Spans

MIB = 1 << 20


class Object:
    """What Connection is for an object in a store, over bytes in memory; `asked` are the spans of the requests."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, list[tuple[int, int]]()

    def __call__(self, address: object, location: Location) -> Object:
        return self

    def first(self, size: int) -> tuple[Pin, bytes]:
        self.asked.append((0, min(size, len(self.content))))
        return Pin(len(self.content), '"a"'), self.content[:size]

    def pieces(self, start: int, stop: int, pin: Pin) -> Iterator[bytes]:
        assert 0 <= start < stop <= len(self.content)
        self.asked.append((start, stop))
        for at in range(start, stop, MIB):
            yield self.content[at : min(at + MIB, stop)]


def opened(content: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[RemoteSource, Object]:
    stored = Object(content)
    monkeypatch.setattr(remote, "Connection", stored)
    return RemoteSource("s3://zoo/a.pth"), stored


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12))), st.integers(0, 60), st.integers(0, 20))
def test_spans_are_sets_of_bytes(added: list[tuple[int, int]], start: int, size: int):
    spans, there = Spans(), set[int]()
    for at, length in added:
        if length:
            spans.add(at, at + length)
            there.update(range(at, at + length))
    missing = spans.missing(start, start + size)
    assert {byte for gap in missing for byte in range(*gap)} == {*range(start, start + size)} - there
    assert all(a[1] < b[0] for a, b in itertools.pairwise(missing))


CONTENT = os.urandom(8 * MIB)


@pytest.mark.parametrize("whole", [0, remote.WHOLE_BYTES])
def test_whatever_is_read_is_right_and_fetched_once(whole: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "WHOLE_BYTES", whole)
    source, stored = opened(CONTENT, monkeypatch)
    with source:
        state = 12345
        for _ in range(200):
            state = state * 1103515245 + 12345 & 0x7FFFFFFF
            start = state % (len(CONTENT) - 5000)
            assert source.read(start, start + state % 5000) == CONTENT[start : start + state % 5000]
    fetched = sorted(stored.asked)
    if whole:
        assert len(fetched) == 2 + remote.MOST_JUMPS
    else:
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(fetched))


def test_payload_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    source, stored = opened(CONTENT, monkeypatch)
    with source:
        for _ in range(2):
            assert source.read(MIB, 3 * MIB) == CONTENT[MIB : 3 * MIB]
    assert stored.asked[1:] == [(MIB, 3 * MIB)] * 2


def test_reads_that_go_forward_take_fewer_requests(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "WHOLE_BYTES", 0)
    source, stored = opened(CONTENT, monkeypatch)
    with source:
        assert b"".join(source.read(at, at + 1024) for at in range(0, len(CONTENT), 1024)) == CONTENT
    assert len(stored.asked) <= 9


def test_what_is_announced_is_fetched_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "WHOLE_BYTES", 0)
    source, stored = opened(CONTENT, monkeypatch)
    far = [(at, at + 300) for at in range(MIB, 7 * MIB, MIB)]
    with source:
        source.expect([(0, 100), *far, (MIB + 400, MIB + 500), (len(CONTENT) - 10, len(CONTENT) + 10)])
        for start, stop in far:
            assert source.read(start, stop) == CONTENT[start:stop]
    wanted = [(MIB, MIB + 500), *far[1:], (len(CONTENT) - 10, len(CONTENT))]
    assert sorted(stored.asked[1:]) == wanted


def test_the_end_of_an_object_is_its_end(monkeypatch: pytest.MonkeyPatch):
    source, _ = opened(b"abc", monkeypatch)
    with source:
        assert source.head == source.tail == b"abc"
        with pytest.raises(DamagedError, match="ends at byte 3"):
            source.read(2, 4)
        source.check_unchanged()
        assert not source.is_same_file(os.stat("."))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")
def test_a_worker_asks_its_parent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "WHOLE_BYTES", 0)
    monkeypatch.setattr(isolation, "may_fork", lambda: True)
    source, stored = opened(CONTENT, monkeypatch)
    starts = range(MIB, 8 * MIB, MIB)
    with source:
        work = isolation.run_isolated(lambda: (source.read(at, at + 100) for at in starts), source.location, source)
        assert list(work) == [CONTENT[at : at + 100] for at in starts]
    assert len(stored.asked) == 1 + len(starts)  # counted in this process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")
def test_what_fails_in_the_parent_ends_its_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isolation, "may_fork", lambda: True)
    source, stored = opened(CONTENT, monkeypatch)

    def fail(*_: object) -> Iterator[bytes]:
        raise source.location.system("was changed while it was read")

    monkeypatch.setattr(stored, "pieces", fail)
    with source, pytest.raises(Exception, match="was changed while it was read"):
        list(isolation.run_isolated(lambda: iter([source.read(4 * MIB, 4 * MIB + 9)]), source.location, source))

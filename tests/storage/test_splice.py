"""The algebra of splices: in memory, on a stream and as moves of a file they say the same."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.storage.source import RandomAccess, RangeSource
from chkpt_channels.storage.splice import (
    Composed,
    Move,
    Splice,
    moves_around,
    passing_checks,
    pieces,
    read_through,
    spliced,
    streamed,
)

Changes = list[tuple[int, int, bytes]]


@st.composite
def edits(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    """Some bytes, and replacements that do not overlap: insertions, removals, at the very beginning and end too."""
    size = draw(st.integers(0, 700))
    data = draw(st.binary(min_size=size, max_size=size))
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=9)))
    changes = []
    for start, stop in pairwise(cuts):
        kind = draw(st.sampled_from(["leave", "replace", "insert"]))
        if kind != "leave":
            changes.append((start, stop if kind == "replace" else start, draw(st.binary(max_size=90))))
    return data, changes


@given(edits())
def test_splicing_in_memory(drawn: tuple[bytes, list[tuple[int, int, bytes]]]):
    """Against the plainest way: from the end to the beginning, in a bytearray."""
    data, changes = drawn
    expected = bytearray(data)
    for start, stop, new in reversed(changes):
        expected[start:stop] = new
    assert spliced(data, changes[::-1]) == bytes(expected)


@given(edits(), st.data())
def test_a_stream_in_pieces_becomes_the_same(drawn: tuple[bytes, Changes], data: st.DataObject):
    whole, changes = drawn
    cuts = [0, *sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=6))), len(whole)]
    pieces = [whole[start:stop] for start, stop in pairwise(cuts)]
    assert b"".join(streamed(pieces, [Splice.of(*change) for change in changes])) == spliced(whole, changes)


@given(edits(), st.integers(0, 900), st.integers(0, 900))
def test_pieces_are_the_same_and_are_read_by_position(drawn: tuple[bytes, Changes], first: int, second: int):
    whole, changes = drawn
    expected = spliced(whole, changes)
    made = pieces(len(whole), [Splice.of(*change) for change in changes])
    assert b"".join(whole[p.start : p.start + p.size] if p.data is None else p.data for p in made) == expected
    output = RangeSource(Composed(RangeSource(Held(whole)), made, "b"))
    start, stop = sorted(min(at, len(expected)) for at in (first, second))
    assert (output.name, output.size, output.read(start, stop)) == ("b", len(expected), expected[start:stop])


class Held:
    """Bytes, read by position."""

    name = "a"

    def __init__(self, content: bytes) -> None:
        self.content, self.size = content, len(content)

    def readinto(self, buffer: memoryview, offset: int) -> int:
        data = self.content[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)


def test_nothing_is_read_behind_the_last_piece():
    held: RandomAccess = Composed(RangeSource(Held(b"ab")), pieces(2, []), "b")
    assert held.readinto(memoryview(bytearray(4)), 2) == 0


def test_a_splice_that_makes_another_number_of_bytes_is_a_bug():
    with pytest.raises(ValueError, match="a splice at 1 promised 3 bytes and made 2"):
        pieces(4, [Splice(1, 2, 3, lambda: b"ab")])


class Summed:
    """A checksum that remembers what it was fed."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop, self.seen, self.finished = start, stop, b"", False

    def update(self, data: memoryview) -> None:
        self.seen += bytes(data)

    def finish(self) -> None:
        self.finished = True


def test_checks_are_fed_what_they_are_of_in_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("chkpt_channels.storage.splice.CHUNK_BYTES", 4)
    checks = [Summed(1, 8), Summed(8, 8), Summed(9, 10)]
    assert list(read_through(RangeSource(Held(b"0123456789")), checks)) == [4, 3, 1]
    assert [(check.seen, check.finished) for check in checks] == [(b"1234567", True), (b"", True), (b"9", True)]
    assert list(read_through(RangeSource(Held(b"")), [])) == []


@given(edits())
def test_moves_and_targets_fill_the_output(drawn: tuple[bytes, Changes]):
    whole, changes = drawn
    moves, targets = moves_around(len(whole), [Splice.of(*change) for change in changes])
    expected = spliced(whole, changes)
    out = bytearray(len(expected))
    for move in moves:
        out[move.at : move.at + move.size] = whole[move.start : move.start + move.size]
    for at, (_, _, new) in zip(targets, changes, strict=True):
        out[at : at + len(new)] = new
    assert bytes(out) == expected


def test_neighboring_splices_leave_no_empty_move():
    assert moves_around(10, [Splice.of(0, 4, b"a"), Splice.of(4, 10, b"bc")]) == ([], [0, 1])
    assert moves_around(10, [Splice.of(4, 4, b"abc")]) == ([Move(0, 4, 0), Move(4, 6, 7)], [4])


@pytest.mark.parametrize("spans", [[(0, 4), (3, 5)], [(8, 11)], [(5, 4)]], ids=["overlap", "beyond the end", "backwards"])
def test_what_is_no_list_of_splices_is_an_error_of_the_program(spans: list[tuple[int, int]]):
    with pytest.raises(ValueError, match="overlaps another or the end"):
        moves_around(10, [Splice.of(*span, b"") for span in spans])


class Span(NamedTuple):
    """A check, as far as it matters which bytes it is about."""

    start: int
    stop: int


@pytest.mark.parametrize(
    ("start", "stop", "left"),
    [
        (4, 6, [(0, 4), (6, 10)]),
        (3, 5, [(6, 10)]),
        (5, 5, [(0, 4), (4, 6), (6, 10)]),
        (0, 10, []),
        (9, 10, [(0, 4), (4, 6)]),
    ],
)
def test_a_check_of_replaced_bytes_is_left_out(start: int, stop: int, left: list[tuple[int, int]]):
    checks = [Span(6, 10), Span(0, 4), Span(4, 6)]
    assert passing_checks(checks, [Splice.of(start, stop, b"x")]) == left

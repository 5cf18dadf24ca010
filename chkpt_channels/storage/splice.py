"""An edit is a list of splices; everything between them stays. Here is what that means; `stream_copy` does it to files."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.source import CHUNK_BYTES, Source

Progress = Callable[[int], None]


class Splice(NamedTuple):
    """Bytes [start, stop) of the source become `size` others. `data` makes them and is called once, in file order."""

    start: int
    stop: int
    size: int
    data: Callable[[], bytes]

    @classmethod
    def of(cls, start: int, stop: int, data: bytes) -> Splice:
        """A splice whose bytes are known already."""
        return cls(start, stop, len(data), lambda: data)

    def made(self) -> bytes:
        """Its bytes."""
        data = self.data()
        if len(data) != self.size:
            raise ValueError(f"a splice at {self.start} promised {self.size} bytes and made {len(data)}")
        return data


class Checksum(Protocol):
    """What must hold for the bytes [start, stop) of the source; fed while they pass by."""

    start: int
    stop: int
    stated_crc: int | None
    """The CRC-32 of these bytes, where the file states it."""

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""

    def finish(self) -> None:
        """Raise DamagedError unless what passed by is as promised."""


class Move(NamedTuple):
    """`size` bytes of the source from `start` on, at `at` in the output."""

    start: int
    size: int
    at: int


class OutputPiece(NamedTuple):
    """Of an output: `size` bytes of the source from `start` on, or `data`, which are new."""

    start: int
    size: int
    data: bytes | None = None


class Composed:
    """The output that is made of pieces, read by position (a `RandomAccess`)."""

    def __init__(self, source: Source, pieces: tuple[OutputPiece, ...], name: str) -> None:
        self.name, self.pieces, self._source = name, pieces, source
        self._ends = list(accumulate(piece.size for piece in pieces))
        self.size = self._ends[-1] if pieces else 0

    def at(self, offset: int) -> tuple[OutputPiece, int]:
        """The piece that holds a byte of the output, and which of its bytes that is."""
        number = bisect_right(self._ends, offset)
        piece = self.pieces[number]
        return piece, offset - (self._ends[number] - piece.size)

    def readinto(self, buffer: memoryview, offset: int, /) -> int:
        """Fill the buffer from one piece."""
        if offset >= self.size:
            return 0
        piece, within = self.at(offset)
        view = buffer[: piece.size - within]
        if piece.data is None:
            self._source.readinto(view, piece.start + within)
        else:
            view[:] = piece.data[within : within + len(view)]
        return len(view)


def spliced(data: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The same operation on bytes in memory: (start, stop, new), in any order, not overlapping."""
    out, at = [], 0
    for start, stop, new in sorted(edits):
        out += [data[at:start], new]
        at = stop
    return b"".join([*out, data[at:]])


def streamed(pieces: Iterable[bytes], splices: Sequence[Splice]) -> Iterator[bytes]:
    """The same operation on a stream: `splices` in order, counted from its first byte.

    A splice is put in with the piece that holds its start; where it ends in a later one it waits, and what comes before its end
    is dropped. One that starts where a piece ends waits for the next, unless it replaces nothing.
    """
    at, waiting = 0, deque(splices)
    for piece in pieces:
        done = at
        at += len(piece)
        while waiting and waiting[0].start <= at and (waiting[0].start < at or waiting[0].stop == at):
            splice = waiting[0]
            if done <= splice.start:
                yield piece[len(piece) - (at - done) : len(piece) - (at - splice.start)]
                yield splice.data()
            done = min(splice.stop, at)
            if splice.stop > at:
                break
            waiting.popleft()
        if done < at:
            yield piece[len(piece) - (at - done) :]
    for splice in waiting:
        yield splice.data()


def output_size(source: Source, splices: Sequence[Splice]) -> int:
    """How many bytes the output will have."""
    return source.size + sum(s.size - (s.stop - s.start) for s in splices)


def moves_around(size: int, splices: Sequence[Splice]) -> tuple[list[Move], list[int]]:
    """What is copied where, and where each splice's bytes go."""
    moves, targets, read, written = [], [], 0, 0
    for splice in splices:
        if not read <= splice.start <= splice.stop <= size:
            raise ValueError(f"splice [{splice.start}, {splice.stop}) overlaps another or the end")
        if splice.start > read:
            moves.append(Move(read, splice.start - read, written))
        written += splice.start - read
        targets.append(written)
        written += splice.size
        read = splice.stop
    if size > read:
        moves.append(Move(read, size - read, written))
    return moves, targets


def pieces(size: int, splices: Sequence[Splice]) -> tuple[OutputPiece, ...]:
    """The output of a source of `size` bytes, with `splices` in order, whose bytes are made here."""
    moves, targets = moves_around(size, splices)
    placed = [(at, OutputPiece(s.start, s.size, s.made())) for s, at in zip(splices, targets, strict=True) if s.size]
    placed += [(move.at, OutputPiece(move.start, move.size)) for move in moves]
    return tuple(piece for _, piece in sorted(placed, key=lambda item: item[0]))


def passing_checks(checks: Sequence[Checksum], splices: Sequence[Splice]) -> list[Checksum]:
    """The checks whose bytes all pass by; what a splice replaces was checked when it was loaded."""
    replaced = deque((s.start, s.stop) for s in splices if s.start < s.stop)
    kept = []
    for check in sorted(checks, key=lambda c: (c.start, c.stop)):
        while replaced and replaced[0][1] <= check.start:
            replaced.popleft()
        if not replaced or check.stop <= replaced[0][0]:
            kept.append(check)
    return kept


def read_through(source: Source, checks: Sequence[Checksum]) -> Iterator[int]:
    """Read what the checks are of, and yield how many bytes that were each time; raises what a check raises."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, max((check.stop - check.start for check in checks), default=0))))
    for check in checks:
        for at in range(check.start, check.stop, CHUNK_BYTES):
            view = buffer[: check.stop - at]
            source.readinto(view, at)
            check.update(view)
            yield len(view)
        check.finish()

"""A pickle that stays in its file: bytes that are read a piece at a time, and a machine that skips long texts and byte strings.

What a pickle of arrays holds beside their elements is small; the elements are found by the span of the node that encodes them.
"""

from __future__ import annotations

from array import array
from typing import Any, SupportsIndex, overload

from chkpt_channels.containers.pickle.machine import Machine, OutOfData
from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.core.errors import Location
from chkpt_channels.storage.source import Source

PIECE_BYTES = 1 << 18
"""Read at once."""
KEPT_BYTES = 1 << 12
"""Of a text or byte string that is kept with its node: names are shorter."""
LONGEST_LINE_BYTES = 1 << 12
"""Of a global's name, or a number, that is written as a line."""


class FileBytes:
    """The bytes of a file, as the machine takes them: indexed, sliced, searched for the end of a line."""

    def __init__(self, source: Source) -> None:
        self._source, self._start, self._piece = source, 0, b""

    def __len__(self) -> int:
        return self._source.size

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: SupportsIndex | slice) -> int | bytes:
        one = not isinstance(key, slice)
        start, stop = (key.start, min(key.stop, len(self))) if isinstance(key, slice) else (int(key), int(key) + 1)
        if not self._start <= start <= stop <= self._start + len(self._piece):
            self._start = start
            self._piece = self._source.read(start, min(max(stop, start + PIECE_BYTES), len(self)))
        if one:
            return self._piece[start - self._start]
        return self._piece[start - self._start : stop - self._start]

    def find(self, byte: bytes, start: int) -> int:
        """Where `byte` comes next, at most a line behind `start`; -1 for nowhere."""
        at = self[start : start + LONGEST_LINE_BYTES].find(byte)
        return start + at if at >= 0 else -1


class SkippingMachine(Machine):
    """The machine over a file. What is longer than KEPT_BYTES becomes a node of the kind BYTES without a value, and `longs` has
    its (start, first byte, stop). `starts` are the offsets at which values begin: where a pickler may end a frame."""

    def __init__(self, data: FileBytes, location: Location, at: int) -> None:
        super().__init__(data, location, at)
        self.starts = array("Q")
        self.longs: list[tuple[int, int, int]] = []

    def push(self, kind: int, start: int, value: Any) -> None:
        """Push a new value, and note where it begins."""
        self.starts.append(start)
        super().push(kind, start, value)

    def repeat(self, node: PickleNode, start: int) -> None:
        """Push an occurrence of a node, and note where it is."""
        self.starts.append(start)
        super().repeat(node, start)

    def take(self, count: int, start: int) -> bytes:
        """The next bytes: a number's."""
        if count > KEPT_BYTES:
            raise self.damaged(f"a number has {count} bytes", start)
        return super().take(count, start)

    def text(self, count: int, start: int) -> None:
        """Push a text, or skip it."""
        if not self._skipped(count, start):
            super().text(count, start)

    def string(self, count: int, start: int) -> None:
        """Push a string of Python 2, or skip it."""
        if not self._skipped(count, start):
            super().string(count, start)

    def raw(self, count: int, start: int) -> None:
        """Push a byte string, or skip it."""
        if not self._skipped(count, start):
            super().raw(count, start)

    def _skipped(self, count: int, start: int) -> bool:
        if count <= KEPT_BYTES:
            return False
        if count > len(self.data) - self.at:
            raise OutOfData
        self.longs.append((start, self.at, self.at + count))
        self.at += count
        self.push(Kind.BYTES, start, None)
        return True

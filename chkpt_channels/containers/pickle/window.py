"""A pickle that stays in its file: bytes that are read a piece at a time."""

from __future__ import annotations

from typing import SupportsIndex, overload

from chkpt_channels.storage.source import Source

PIECE_BYTES = 1 << 18
"""Read at once."""
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
        start, stop = (key.start, min(key.stop, len(self))) if isinstance(key, slice) else (int(key), int(key) + 1)
        if not self._start <= start <= stop <= self._start + len(self._piece):
            self._start = start
            self._piece = self._source.read(start, min(max(stop, start + PIECE_BYTES), len(self)))
        begin = start - self._start
        return self._piece[begin : stop - self._start] if isinstance(key, slice) else self._piece[begin]

    def find(self, byte: bytes, start: int) -> int:
        """Where `byte` comes next, at most a line behind `start`; -1 for nowhere."""
        at = self[start : start + LONGEST_LINE_BYTES].find(byte)
        return start + at if at >= 0 else -1

"""MessagePack as a walk over the heads of its values: what is long is skipped, not read.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md. Lengths are big-endian; a map or an array has the number of its
entries, never its size, so that an edit inside it changes nothing around it; an extension has its size and a type.
"""

from __future__ import annotations

import struct

from chkpt_channels.core.errors import DamagedError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.source import Source

WINDOW_BYTES = 1 << 14
"""How much is read at once; whatever is longer than that is skipped."""
MAP, ARRAY, TEXT, BYTES, EXT, INTEGER, FLOAT, PLAIN = "map", "array", "text", "bytes", "ext", "integer", "float", "plain"
_INTEGERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_SIZED = {
    **{0xC4 + i: (BYTES, 1 << i) for i in range(3)},
    **{0xC7 + i: (EXT, 1 << i) for i in range(3)},
    **{0xD9 + i: (TEXT, 1 << i) for i in range(3)},
    **{0xDC + i: (ARRAY, 2 << i) for i in range(2)},
    **{0xDE + i: (MAP, 2 << i) for i in range(2)},
}
"""By the first byte, the kind, and how many bytes its length takes."""
_FIXED = {
    **{0xC0: (PLAIN, 0), 0xC2: (PLAIN, 0), 0xC3: (PLAIN, 0), 0xCA: (FLOAT, 4), 0xCB: (FLOAT, 8)},
    **{0xD4 + i: (EXT, 1 << i) for i in range(5)},
}
"""nil, false, true, floats, and extensions of a fixed size: the kind, and how many bytes they hold."""


class Token(NamedTuple):
    """The head of one value: its first byte is at `start`, what it holds at [body, stop) of the file. `value` is an integer, the
    number of entries of a map or an array, or an extension's type; of all else how many bytes it has."""

    kind: str
    start: int
    body: int
    stop: int
    value: int = 0


class MsgpackWalk:
    """The heads of a file's values, one after the other, from `at` on to its end. Raises DamagedError where a value does not end
    before `stop`, and for more values than are read."""

    def __init__(self, source: Source) -> None:
        self.at, self.stop = 0, source.size
        self._source, self.location, self._count = source, source.location, 0
        self._window, self._begin = b"", 0

    def next(self) -> Token:
        """The next head. What follows is the first entry of a map or an array; else what comes after the value."""
        start, (first,) = self.at, self._read(self.at, 1)
        self._count += 1
        if self._count > LIMITS.msgpack_values:
            self.location.check_limit("values", self._count, LIMITS.msgpack_values, at=start)
        head = self._head(start, first)
        if head.stop > self.stop:
            raise self.cut_off(start, head.stop - self.stop)
        if head.kind in (MAP, ARRAY):
            least = head.value * (2 if head.kind == MAP else 1)
            if head.body + least > self.stop:  # each entry has a byte or two: before a list of them is made
                raise self.cut_off(start, head.body + least - self.stop)
        self.at = head.stop
        return head

    def text(self, head: Token) -> str:
        """The text of a value."""
        self.location.check_limit("bytes of text", head.stop - head.body, LIMITS.protobuf_text_bytes, at=head.start)
        try:
            return self._read(head.body, head.stop - head.body).decode()
        except UnicodeDecodeError as error:
            raise self.location.damaged("a text is not UTF-8", at=head.start) from error

    def cut_off(self, at: int, missing: int) -> DamagedError:
        """The error for a value that goes on beyond its end."""
        return self.location.damaged(f"is cut off inside the value that begins here: {missing} bytes are missing", at=at)

    def _head(self, start: int, first: int) -> Token:
        body = start + 1
        if first < 0x80 or first >= 0xE0:
            return Token(INTEGER, start, body, body, first if first < 0x80 else first - 0x100)
        if code := _INTEGERS.get(first):
            (value,) = struct.unpack(code, self._read(body, struct.calcsize(code)))
            return Token(INTEGER, start, body, body + struct.calcsize(code), value)
        if first < 0xC0:
            kind, count = (MAP, first & 15) if first < 0x90 else (ARRAY, first & 15) if first < 0xA0 else (TEXT, first & 31)
        elif first in _FIXED:
            kind, count = _FIXED[first]
        elif first in _SIZED:
            kind, width = _SIZED[first]
            count = int.from_bytes(self._read(body, width), "big")
            body += width
        else:
            raise self.location.damaged(f"the byte {first:#04x} begins no value", at=start)
        if kind == EXT:
            return Token(EXT, start, body + 1, body + 1 + count, self._read(body, 1)[0])
        return Token(kind, start, body, body if kind in (MAP, ARRAY) else body + count, count)

    def _read(self, start: int, size: int) -> bytes:
        if start + size > self.stop:
            raise self.cut_off(start, start + size - self.stop)
        if not self._begin <= start <= start + size <= self._begin + len(self._window):
            self._begin = start
            self._window = self._source.read(start, min(start + max(size, WINDOW_BYTES), self._source.size))
        return self._window[start - self._begin : start - self._begin + size]


def integer(value: int) -> bytes:
    """A count as it is written: in the fewest bytes."""
    if value < 0x80:
        return bytes([value])
    first, code = next((first, code) for first, code in _INTEGERS.items() if value < 1 << 8 * struct.calcsize(code))
    return bytes([first]) + struct.pack(code, value)


def sized(kind: str, size: int, ext: int = 0) -> bytes:
    """The head of BYTES, of TEXT or of an EXT of the type `ext`, likewise. Raises ValueError for more than 32 bits hold."""
    typed = bytes([ext]) if kind == EXT else b""
    if kind == EXT and size in (1, 2, 4, 8, 16):
        return bytes([0xD4 + size.bit_length() - 1]) + typed
    if kind == TEXT and size < 32:
        return bytes([0xA0 | size])
    first, width = next((f, width) for f, (k, width) in _SIZED.items() if k == kind and (size < 1 << 8 * width or width == 4))
    if size >= 1 << 32:
        raise ValueError(f"{size} bytes are more than a length of 32 bits holds")
    return bytes([first]) + size.to_bytes(width, "big") + typed


def array(count: int) -> bytes:
    """The head of an array of at most 15 entries, or of more."""
    return bytes([0x90 | count]) if count < 16 else bytes([0xDC]) + count.to_bytes(2, "big")

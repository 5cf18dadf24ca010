"""The CRC-32 of an output whose bytes were not read: made of those that the source states of its parts.

A CRC is linear: crc(a + b) is crc(a) times x^(8 * len(b)), modulo the polynomial, plus crc(b).
Source: Mark Adler, zlib's crc32_combine.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Checksum, OutputPiece

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31
"""The polynomial 1: bits are reflected, the highest power is the lowest bit."""
MOST_READ_BYTES = 16 << 20
"""Between the parts whose CRC is stated, at most: more would be a download."""


def combined(first: int, second: int, size: int) -> int:
    """The CRC-32 of two contents in a row, of which the second has `size` bytes."""
    return _product(first, _power(size)) ^ second


def predicted(pieces: Sequence[OutputPiece], source: Source, checks: Sequence[Checksum]) -> int | None:
    """The CRC-32 of an output: of new bytes by themselves, of copied ones as the `checks` state it, in order, and of the little
    between these by reading it. None where that is not little, or where none is stated: all would be read for it."""
    crc, left = 0, MOST_READ_BYTES
    if all(check.stated_crc is None for check in checks):
        return None
    for piece in pieces:
        if piece.data is not None:
            crc = zlib.crc32(piece.data, crc)
            continue
        at, stop = piece.start, piece.start + piece.size
        inside = [check for check in checks if at <= check.start < check.stop <= stop and check.stated_crc is not None]
        gaps = [(a, b) for a, b in zip([at, *(c.stop for c in inside)], [*(c.start for c in inside), stop], strict=True) if a < b]
        left -= sum(b - a for a, b in gaps)
        if left < 0:
            return None
        source.expect(gaps)
        for check in inside:
            crc = zlib.crc32(source.read(at, check.start), crc)
            crc = combined(crc, check.stated_crc or 0, check.stop - check.start)
            at = check.stop
        crc = zlib.crc32(source.read(at, stop), crc)
    return crc


@cache
def _power(size: int) -> int:
    """x^(8 * size), by squaring."""
    power, square = _ONE, _ONE >> 8
    while size:
        if size & 1:
            power = _product(power, square)
        square = _product(square, square)
        size >>= 1
    return power


def _product(one: int, two: int) -> int:
    """The product of two polynomials modulo the CRC's."""
    out = 0
    for bit in range(31, -1, -1):
        if two >> bit & 1:
            out ^= one
        one = one >> 1 ^ (_POLYNOMIAL if one & 1 else 0)
    return out

"""The CRC-32 of bytes that were not read."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import OutputPiece
from chkpt_channels.storage.stores import crc32


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_of_two_contents_in_a_row(first: bytes, second: bytes):
    assert crc32.combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_of_terabytes():
    doubled, size = zlib.crc32(bytes(1)), 1
    for power in range(40):
        if size == 1 << 12:
            assert doubled == zlib.crc32(bytes(size))
        doubled, size = crc32.combined(doubled, doubled, size), 2 << power
    half = crc32.combined(doubled, zlib.crc32(b"end"), 3)
    assert half == crc32.combined(crc32.combined(doubled, zlib.crc32(b"e"), 1), zlib.crc32(b"nd"), 2)


def member(data: bytes, start: int, stop: int, *, stated: bool = True) -> Any:
    crc = zlib.crc32(data[start:stop]) if stated else None
    return SimpleNamespace(start=start, stop=stop, stated_crc=crc)


def test_an_output_of_members_and_new_bytes(source: Callable[..., Source]):
    data = bytes(range(256)) * 40
    opened = source(data)
    checks = [member(data, 100, 4000), member(data, 4100, 9000), member(data, 9000, 9500, stated=False)]
    pieces = [OutputPiece(0, 50), OutputPiece(0, 3, b"new"), OutputPiece(60, len(data) - 60)]
    assert crc32.predicted(pieces, opened, checks) == zlib.crc32(data[:50] + b"new" + data[60:])
    assert crc32.predicted(pieces, opened, []) is None


def test_what_would_be_a_download_is_not_read(source: Callable[..., Source], monkeypatch: Any):
    data = bytes(10_000)
    monkeypatch.setattr(crc32, "MOST_READ_BYTES", 5000)
    pieces = [OutputPiece(0, len(data))]
    assert crc32.predicted(pieces, source(data), []) is None
    assert crc32.predicted(pieces, source(data, "b.bin"), [member(data, 0, 6000)]) == zlib.crc32(data)

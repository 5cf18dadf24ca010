"""Members of a zip archive: their headers and descriptors, read by few requests, and believed where they repeat the directory."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable

import pytest

from chkpt_channels import DamagedError
from chkpt_channels.containers.zip.member import LONGEST_DESCRIPTOR_BYTES, NEAR_BYTES, Edge
from chkpt_channels.containers.zip.reader import Archive
from chkpt_channels.storage.source import Source
from tests.containers.zip.test_reader import Unseekable, read
from tests.support.builders import Zipped, zipped

B = Zipped("b", b"second")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("wide", [True, False])
def test_four_kinds_of_data_descriptors(signed: bool, wide: bool, source: Callable[..., Source]):
    tail = (b"PK\7\10" if signed else b"") + struct.pack("<I2Q" if wide else "<3I", zlib.crc32(b"first"), 5, 5)
    first = Zipped("a", b"first", flags=0x8, local={"crc": 0, "size": 0, "packed": 0})
    data = zipped(first, B, between=tail)
    assert read(Archive(source(data))) == {"a": b"first", "b": b"second"}
    with pytest.raises(DamagedError, match="descriptor"):
        Archive(source(data.replace(tail, tail[:-1] + b"\1", 1)))


@pytest.mark.parametrize("start", [0, 10, 500, 900, 5000])
def test_an_edge_gives_the_bytes_of_the_file(start: int, source: Callable[..., Source]):
    """Those that it has read, and others; it reads nothing of the directory, which begins at 990."""
    data = bytes(i % 251 for i in range(1000))
    edge = Edge(source(data), start, 990)
    for first, last in ((0, 30), (start - LONGEST_DESCRIPTOR_BYTES, start), (start, start + NEAR_BYTES), (980, 1000)):
        if 0 <= first <= last <= 1000:
            assert edge.read(first, last) == data[first:last]
    with pytest.raises(DamagedError, match="ends at byte 1000"):
        edge.read(990, 1001)


def test_a_member_takes_one_read(source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch):
    out = Unseekable()
    with zipfile.ZipFile(out, "w") as archive:
        for i in range(50):
            archive.writestr(str(i), bytes(900))
    file, reads, right = source(out.getvalue()), list[int](), Source.read
    monkeypatch.setattr(Source, "read", lambda self, start, stop: reads.append(start) or right(self, start, stop))
    assert len(Archive(file).members) == 50
    assert len(reads) < 50 + 10


def test_a_local_header_that_says_other_sizes_is_refused(source: Callable[..., Source]):
    for field in ("size", "packed", "crc"):
        with pytest.raises(DamagedError, match="headers disagree"):
            Archive(source(zipped(Zipped("a", b"first", local={field: 4}), B)))

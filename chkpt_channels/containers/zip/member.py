"""One member of a zip archive: its local header and its data descriptor, compared with the entry of the central directory."""

from __future__ import annotations

import struct
from collections.abc import Callable

from chkpt_channels.containers.zip.directory import FLAG_UTF8, MAX32, Entry, check_unicode_path, wide_values
from chkpt_channels.core.errors import DamagedError
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.source import Source

LOCAL, DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
STORED, DEFLATED = 0, 8
FLAG_DESCRIPTOR, FLAG_DEFLATE_LEVEL = 0x8, 0x6
LOCAL_RECORD = struct.Struct("<4s5H3I2H")
"""Fields used: 2 flags, 3 method, 6 CRC, 7 packed size, 8 size, 9 and 10 lengths of name and extra field."""
NEAR_BYTES = 256
"""A local header with the name and the padding that torch gives it, mostly."""
LONGEST_DESCRIPTOR_BYTES = 24
"""Bytes: signature, CRC and two sizes of eight bytes."""


class Member(NamedTuple):
    """One member: its spans in the file, sizes and CRC-32 of the content, and the raw headers."""

    name: str
    start: int
    data: int
    data_stop: int
    stop: int
    size: int
    crc: int
    method: int
    local: bytes
    descriptor: bytes
    central: bytes

    @property
    def packed(self) -> int:
        """Bytes of the payload as stored."""
        return self.data_stop - self.data


class Edge:
    """What is read at once where a member begins, at `start`: the descriptor of the one in front, and most local headers."""

    def __init__(self, source: Source, start: int, directory: int) -> None:
        self.source, self._start = source, min(max(start - LONGEST_DESCRIPTOR_BYTES, 0), directory)
        self._stop = min(start + NEAR_BYTES, directory)
        self._data = source.read(self._start, self._stop)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), which may lie elsewhere. Raises as the source does."""
        if self._start <= start and stop <= self._stop:
            return self._data[start - self._start : stop - self._start]
        return self.source.read(start, stop)


def read_member(entry: Entry, limit: int, edge: Edge, behind: Edge) -> Member:
    """The member of an entry between two edges, which ends before `limit`. Checks all that needs no payload."""
    start, name, size, packed, central, encoded, flags, method, crc = entry
    location = edge.source.location

    def damaged(what: str) -> DamagedError:
        return location.at(name).damaged(what, at=start)

    local = _local_header(edge, start, limit, damaged)
    _, _, local_flags, local_method, _, _, local_crc, local_packed, local_size, name_bytes, _ = LOCAL_RECORD.unpack_from(local)
    data = start + len(local)
    stop = data + packed
    if stop > limit:
        raise damaged("it overlaps what follows")
    local_name = local[LOCAL_RECORD.size : LOCAL_RECORD.size + name_bytes]
    if (local_flags, local_method, local_name) != (flags, method, encoded):
        raise damaged("its local and central headers disagree")
    extra = local[LOCAL_RECORD.size + name_bytes :]
    check_unicode_path(location, name, extra, start)
    if flags & ~(FLAG_DESCRIPTOR | FLAG_UTF8 | FLAG_DEFLATE_LEVEL):
        raise damaged(f"it is encrypted or patched (flags {flags:#x})")
    if method not in (STORED, DEFLATED):
        what = f"it is compressed by method {method}; only stored and deflated members are supported"
        raise location.at(name).unsupported(what)
    if method == STORED and size != packed:
        raise damaged("it is stored, and its two sizes differ")
    if not packed and (size or crc):
        raise damaged("it has no bytes, and says that it holds some")
    expected = (crc, packed, size)
    if not flags & FLAG_DESCRIPTOR:
        if [local_crc, *wide_values((local_size, local_packed), extra)] != [crc, size, packed]:
            raise damaged("its local and central headers disagree")
        return Member(name, start, data, stop, stop, size, crc, method, local, b"", central)
    # a streaming writer does not know them yet: miniz, which torch uses, writes zeros, others mark the sizes as zip64
    if (local_crc, local_packed, local_size) not in ((0, 0, 0), (0, MAX32, MAX32), expected):
        raise damaged("its local and central headers disagree")
    descriptor = _descriptor(behind.read(stop, min(stop + LONGEST_DESCRIPTOR_BYTES, limit)), limit - stop, expected)
    if not descriptor:
        raise location.at(name).damaged("its data descriptor disagrees with the central directory", at=stop)
    return Member(name, start, data, stop, stop + len(descriptor), size, crc, method, local, descriptor, central)


def _local_header(edge: Edge, start: int, limit: int, damaged: Callable[[str], DamagedError]) -> bytes:
    """The local header at `start`, its name and extra field included."""
    if start + LOCAL_RECORD.size > limit:
        raise damaged("its header overlaps what follows")
    near = edge.read(start, min(start + NEAR_BYTES, limit))
    magic, *_, name_bytes, extra_bytes = LOCAL_RECORD.unpack_from(near)
    if magic != LOCAL:
        raise damaged("its header is not where the central directory says")
    size = LOCAL_RECORD.size + name_bytes + extra_bytes
    if start + size > limit:
        raise damaged("it overlaps what follows")
    return near[:size] if size <= len(near) else edge.source.read(start, start + size)


def _descriptor(raw: bytes, room: int, expected: tuple[int, int, int]) -> bytes:
    """The data descriptor that `raw` begins with, in front of a member that begins `room` bytes on: with or without a signature,
    with sizes of 4 or 8 bytes. Empty where none repeats what is expected."""
    first = b""
    for signed, wide in ((True, False), (True, True), (False, False), (False, True)):
        descriptor = make_descriptor(expected, signed=signed, wide=wide)
        if descriptor and raw.startswith(descriptor):
            # trap: the short descriptor of an empty member is the beginning of its long one; the next member decides
            if len(descriptor) == room:
                return descriptor
            first = first or descriptor
    return first


def make_descriptor(values: tuple[int, int, int], *, signed: bool, wide: bool) -> bytes:
    """The data descriptor for (CRC, packed size, size), empty if 32 bits do not hold them."""
    if not wide and max(values[1:]) > MAX32:
        return b""
    return (DESCRIPTOR if signed else b"") + struct.pack("<I2Q" if wide else "<3I", *values)

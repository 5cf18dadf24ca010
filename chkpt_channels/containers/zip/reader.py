"""Zip archives as nested spans: a strict index and checked reads.

    [local header · name · extra] payload [data descriptor]   for each member, one behind the other
    central directory, [zip64 end record, its locator], end record

Source: PKWARE APPNOTE 6.3.10. Strict where readers differ: local and central headers must agree, names are unique, members
do not overlap, nothing but zero padding stands between them and nothing at all before or behind. `zipedit` changes members.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from chkpt_channels.core.errors import DamagedError, Place
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Check

LOCAL, CENTRAL, DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
MAX32, MAX16 = 0xFFFFFFFF, 0xFFFF
STORED, DEFLATED = 0, 8
FLAG_DESCRIPTOR, FLAG_UTF8, FLAG_DEFLATE_LEVEL = 0x8, 0x800, 0x6
LOCAL_RECORD = struct.Struct("<4s5H3I2H")
CENTRAL_RECORD = struct.Struct("<4s6H3I5H2I")
END_RECORD = struct.Struct("<4s4H2IH")
END64_RECORD = struct.Struct("<4sQ2H2I4Q")
LOCATOR64_RECORD = struct.Struct("<4sIQI")
CHUNK = 4 << 20


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


class Archive:
    """The index of one zip file. Raises DamagedError where the file contradicts itself or the format."""

    def __init__(self, source: Source) -> None:
        self.source, self.place = source, source.place
        self._directory, self._end, count = _find_directory(source)
        listed = list(_central_entries(source, *self._directory))
        if len(listed) != count:
            raise source.place.damaged(f"holds {len(listed)} members and says {count}", at=self._directory[1])
        self._listed = [name for _, name, _ in listed]  # the order of the directory need not be that of the file
        entries = sorted(listed, key=lambda entry: entry[0])
        self.members: dict[str, Member] = {}
        stops = [*(start for start, _, _ in entries), self._directory[0]][1:]
        at = 0
        if entries and entries[0][0]:
            raise source.place.damaged(f"{entries[0][0]} bytes stand before the first member", at=0)
        for (start, name, central), limit in zip(entries, stops, strict=True):
            if name in self.members:
                raise self.place.inside(name).damaged("stands twice in the archive", at=start)
            if start != at:
                _check_padding(source, at, start)
            self.members[name] = member = _member(source, start, name, central, limit)
            at = member.stop
        _check_padding(source, at, self._directory[0])
        sized = [m for m in self.members.values() if m.size]
        self.has_crcs = any(m.crc for m in sized) or not sized
        """False where every CRC is zero: torch writes such files with set_crc32_options(False)."""

    def chunks(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Content bytes [start, stop) of a member; read whole, its CRC is checked at the end."""
        member = self.members[name]
        stop = member.size if stop is None else stop
        whole = _Content(self.place, member, self.has_crcs) if (start, stop) == (0, member.size) else None
        for piece in self._stored(member, start, stop) if member.method == STORED else self._inflated(member, start, stop):
            if whole:
                whole.crc = zlib.crc32(piece, whole.crc)
            yield piece
        if whole:
            whole.finish_crc()

    def _stored(self, member: Member, start: int, stop: int) -> Iterator[bytes]:
        for at in range(start, stop, CHUNK):
            yield self.source.read(member.data + at, member.data + min(at + CHUNK, stop))

    def _inflated(self, member: Member, start: int, stop: int) -> Iterator[bytes]:
        content, at = _Content(self.place, member, self.has_crcs), 0
        for offset in range(member.data, member.data_stop, CHUNK):
            for piece in content.inflate(self.source.read(offset, min(offset + CHUNK, member.data_stop))):
                wanted = piece[max(start - at, 0) : max(stop - at, 0)]
                at += len(piece)
                if wanted:
                    yield wanted
                if at >= stop and stop < member.size:
                    return
        content.finish_size()

    def read(self, name: str, limit: int = LIMITS.pickle_bytes) -> bytes:
        """A whole member, its CRC checked. Raises DamagedError above `limit` bytes."""
        member = self.members[name]
        self.place.inside(name).within("bytes", member.size, limit, at=member.start)
        return b"".join(self.chunks(name))

    def checks(self) -> list[Check]:
        """One CRC check over each member's payload, to be fed while it is copied."""
        return [_Content(self.place, m, self.has_crcs) for m in self.members.values() if m.packed] if self.has_crcs else []

    @property
    def listed(self) -> list[Member]:
        """The members in the order of the central directory."""
        return [self.members[name] for name in self._listed]

    @property
    def directory(self) -> tuple[int, int]:
        """[start, stop) of the central directory."""
        return self._directory

    @property
    def end(self) -> bytes:
        """The zip64 end record and locator, if any, and the end record."""
        return self._end


class _Content:
    """What a member's payload must be: fed packed bytes in order, it ends in the right size and CRC or an error."""

    def __init__(self, place: Place, member: Member, has_crcs: bool) -> None:
        self.start, self.stop = member.data, member.data_stop
        self._place, self._member, self._has_crcs = place.inside(member.name), member, has_crcs
        self._inflater = zlib.decompressobj(-15) if member.method == DEFLATED else None
        self.crc, self._size = 0, 0

    def inflate(self, packed: bytes) -> Iterator[bytes]:
        """The content behind `packed`, in bounded pieces, and never more than the size that was declared."""
        if self._inflater is None:
            raise TypeError(f"{self._member.name} is not deflated")
        full = False  # a piece that is full may leave some output inside zlib though all input is taken
        while packed or self._inflater.unconsumed_tail or full:
            try:
                piece = self._inflater.decompress(packed or self._inflater.unconsumed_tail, CHUNK)
            except zlib.error as error:
                raise self._place.damaged(f"does not inflate: {error}", at=self._member.data) from error
            packed, full = b"", len(piece) == CHUNK
            self._size += len(piece)
            if self._size > self._member.size or self._inflater.unused_data:
                raise self._place.damaged(f"inflates to more than its {self._member.size} bytes", at=self._member.data)
            yield piece

    def update(self, data: memoryview) -> None:
        """Take the next packed bytes."""
        for piece in self.inflate(bytes(data)) if self._inflater else (data,):
            self.crc = zlib.crc32(piece, self.crc)

    def finish(self) -> None:
        """Raise DamagedError unless size and CRC are as declared."""
        if self._inflater:
            self.finish_size()
        self.finish_crc()

    def finish_size(self) -> None:
        if self._inflater and (self._size != self._member.size or not self._inflater.eof):
            raise self._place.damaged(f"inflates to {self._size} of its {self._member.size} bytes", at=self._member.data)

    def finish_crc(self) -> None:
        if self._has_crcs and self.crc != self._member.crc:
            raise self._place.damaged(
                f"its CRC-32 is {self.crc:08x}, not {self._member.crc:08x}: the content was changed or damaged",
                at=self._member.data,
            )


def _find_directory(source: Source) -> tuple[tuple[int, int], bytes, int]:
    """[start, stop) of the central directory, the end records behind it, and how many entries they promise."""
    place, size = source.place, source.size
    if size < END_RECORD.size:
        raise place.damaged("is too short for a zip archive", at=0)
    at = size - END_RECORD.size
    record = source.read(at, size)
    if record[:4] != END:
        raise _no_end(source)
    _, disk, cd_disk, here, total, cd_size, cd_start, comment = END_RECORD.unpack(record)
    end_start = at
    if at >= LOCATOR64_RECORD.size and (locator := source.read(at - LOCATOR64_RECORD.size, at))[:4] == LOCATOR64:
        _, end64_disk, end_start, disks = LOCATOR64_RECORD.unpack(locator)
        if end64_disk or disks > 1 or end_start + END64_RECORD.size != at - LOCATOR64_RECORD.size:
            raise place.damaged("its zip64 end record is not where its locator says", at=at - LOCATOR64_RECORD.size)
        end64 = source.read(end_start, at - LOCATOR64_RECORD.size)
        magic, length, _, _, disk64, cd_disk64, here64, total64, cd_size64, cd_start64 = END64_RECORD.unpack(end64)
        if magic != END64 or length != END64_RECORD.size - 12:
            raise place.damaged("its zip64 end record is no such record", at=end_start)
        shorts = ((here, here64, MAX16), (total, total64, MAX16), (cd_size, cd_size64, MAX32), (cd_start, cd_start64, MAX32))
        if any(short not in (long, limit) for short, long, limit in shorts):
            raise place.damaged("its two end records disagree", at=at)
        disk, cd_disk, here, total, cd_size, cd_start = disk64, cd_disk64, here64, total64, cd_size64, cd_start64
    if disk or cd_disk or here != total:
        raise place.damaged("says that it is one part of a zip archive on several disks", at=at)
    if comment or cd_start + cd_size != end_start:
        raise place.damaged("its central directory does not end where the end record begins", at=end_start)
    place.within("bytes of central directory", cd_size, LIMITS.zip_directory_bytes, at=end_start)
    place.within("members", total, LIMITS.zip_members, at=end_start)
    return (cd_start, end_start), source.read(end_start, size), total


def _no_end(source: Source) -> DamagedError:
    tail = source.read(max(0, source.size - MAX16 - END_RECORD.size), source.size)
    found = tail.rfind(END)
    if found < 0 or found + END_RECORD.size > len(tail):
        return source.place.damaged(
            "its end is missing: a zip archive ends in a central directory", at=source.size, hint="download it again"
        )
    return source.place.damaged("bytes stand behind the end of the archive", at=source.size - len(tail) + found + END_RECORD.size)


def _central_entries(source: Source, start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
    """(offset of the local header, name, raw entry) for each entry of the central directory."""
    raw, at = source.read(start, stop), 0
    while at < len(raw):
        if at + CENTRAL_RECORD.size > len(raw) or raw[at : at + 4] != CENTRAL:
            raise source.place.damaged("its central directory is damaged", at=start + at)
        fields = CENTRAL_RECORD.unpack_from(raw, at)
        length = CENTRAL_RECORD.size + sum(fields[10:13])
        entry = raw[at : at + length]
        if len(entry) != length:
            raise source.place.damaged("its central directory is cut off", at=start + at)
        encoded = entry[CENTRAL_RECORD.size : CENTRAL_RECORD.size + fields[10]]
        name = _name(source.place, encoded, fields[3], start + at)
        if fields[13]:
            raise source.place.inside(name).damaged("is said to stand on another disk", at=start + at)
        _, _, offset = _wide_sizes(source.place.inside(name), entry, start + at)
        yield offset, name, entry
        at += length


def _name(place: Place, encoded: bytes, flags: int, at: int) -> str:
    try:
        name = encoded.decode("utf-8" if flags & FLAG_UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise place.damaged("a member's name is not UTF-8", at=at) from error
    if "\0" in name or name.startswith("/") or ".." in re.split(r"[/\\]", name):
        raise place.inside(name).damaged("the member's name leaves the archive", at=at)
    return name


def extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of each field in an extra field."""
    at = 0
    while at + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, at)
        yield tag, extra[at + 4 : at + 4 + size]
        at += 4 + size


def _wide_sizes(place: Place, entry: bytes, at: int) -> tuple[int, int, int]:
    """(size, packed size, offset of the local header) of a central entry, from its zip64 extra field where it has one."""
    fields = CENTRAL_RECORD.unpack_from(entry)
    values = [fields[9], fields[8], fields[16]]
    extra_at = CENTRAL_RECORD.size + fields[10]
    wide = next((body for tag, body in extra_fields(entry[extra_at : extra_at + fields[11]]) if tag == 1), b"")
    for i, value in enumerate(values):
        if value == MAX32:
            if len(wide) < 8:
                raise place.damaged("a zip64 size is missing", at=at)
            values[i], wide = int.from_bytes(wide[:8], "little"), wide[8:]
    return values[0], values[1], values[2]


NEAR = 256
"""A local header with the name and the padding that torch gives it, mostly."""


def _member(source: Source, start: int, name: str, central: bytes, limit: int) -> Member:
    """The member whose local header stands at `start` and which ends before `limit`. Checks all that can be without its data."""
    place = source.place.inside(name)
    size, packed, _ = _wide_sizes(place, central, start)
    _, _, _, flags, method, _, _, crc, *_ = CENTRAL_RECORD.unpack_from(central)
    if start + LOCAL_RECORD.size > limit:
        raise place.damaged("its header overlaps what follows", at=start)
    near = source.read(start, min(start + NEAR, limit))
    fields = LOCAL_RECORD.unpack_from(near)
    magic, _, local_flags, local_method, _, _, local_crc, local_packed, local_size, n_name, n_extra = fields
    if magic != LOCAL:
        raise place.damaged("its header is not where the central directory says", at=start)
    data = start + LOCAL_RECORD.size + n_name + n_extra
    if data + packed > limit:
        raise place.damaged("it overlaps what follows", at=start)
    local = near[: data - start] + source.read(min(start + len(near), data), data)
    if (local_flags, local_method) != (flags, method) or local[LOCAL_RECORD.size : LOCAL_RECORD.size + n_name] != _central_name(
        central
    ):
        raise place.damaged("its two headers disagree", at=start)
    if flags & ~(FLAG_DESCRIPTOR | FLAG_UTF8 | FLAG_DEFLATE_LEVEL):
        raise place.damaged(f"it is encrypted, patched or strange (flags {flags:#x})", at=start)
    if method not in (STORED, DEFLATED):
        raise place.unsupported(f"it is packed by method {method}; stored and deflated members are read")
    if method == STORED and size != packed:
        raise place.damaged("it is stored, and its two sizes differ", at=start)
    descriptor = b""
    if flags & FLAG_DESCRIPTOR:
        early = local_crc, local_packed, local_size
        if early not in ((0, 0, 0), (crc, packed, size), (0, MAX32, MAX32)):
            raise place.damaged("its two headers disagree", at=start)
        descriptor = _descriptor(source, data + packed, limit, (crc, packed, size), place)
    elif (local_crc, *_local_sizes(local, local_packed, local_size)) != (crc, packed, size):
        raise place.damaged("its two headers disagree", at=start)
    stop = data + packed
    return Member(name, start, data, stop, stop + len(descriptor), size, crc, method, local, descriptor, central)


def _central_name(central: bytes) -> bytes:
    return central[CENTRAL_RECORD.size : CENTRAL_RECORD.size + CENTRAL_RECORD.unpack_from(central)[10]]


def _local_sizes(local: bytes, packed: int, size: int) -> tuple[int, int]:
    """(packed, size) of a local header; its zip64 field holds the size first."""
    n_name = LOCAL_RECORD.unpack_from(local)[9]
    wide = next((body for tag, body in extra_fields(local[LOCAL_RECORD.size + n_name :]) if tag == 1), b"")
    if size == MAX32 and len(wide) >= 8:
        size, wide = int.from_bytes(wide[:8], "little"), wide[8:]
    if packed == MAX32 and len(wide) >= 8:
        packed = int.from_bytes(wide[:8], "little")
    return packed, size


def _descriptor(source: Source, at: int, limit: int, expected: tuple[int, int, int], place: Place) -> bytes:
    """The data descriptor at `at`: with or without a signature, with sizes of 4 or 8 bytes; it must repeat the directory."""
    raw = source.read(at, min(at + 24, limit))
    kinds = ((True, False), (True, True), (False, False), (False, True))
    made = [make_descriptor(expected, signed=signed, wide=wide) for signed, wide in kinds]
    fitting = [one for one in made if one and raw.startswith(one)]
    if not fitting:
        raise place.damaged("its data descriptor disagrees with the central directory", at=at)
    # the short descriptor of an empty member is the beginning of its long one: where the next member stands tells
    return next((one for one in fitting if at + len(one) == limit), fitting[0])


def make_descriptor(values: tuple[int, int, int], *, signed: bool, wide: bool) -> bytes:
    """The data descriptor for (CRC, packed size, size), empty if 32 bits do not hold them."""
    if not wide and max(values[1:]) > MAX32:
        return b""
    return (DESCRIPTOR if signed else b"") + struct.pack("<I2Q" if wide else "<3I", *values)


def _check_padding(source: Source, start: int, stop: int) -> None:
    if start == stop:
        return
    if stop < start:
        raise source.place.damaged("two of its members overlap", at=stop)
    if stop - start > LIMITS.zip_gap_bytes or source.read(start, stop).strip(b"\0"):
        raise source.place.damaged(f"{stop - start} bytes that belong to no member stand in the archive", at=start)

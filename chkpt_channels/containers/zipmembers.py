"""Zip archives as nested spans: a strict index, checked reads, and edits of members as splices.

    [local header · name · extra] payload [data descriptor]   for each member, one behind the other
    central directory, [zip64 end record, its locator], end record

Source: PKWARE APPNOTE 6.3.10. Strict where readers differ: local and central headers must agree, names are unique, members
do not overlap, nothing but zero padding stands between them and nothing at all before or behind.

PyTorch's archives are written by miniz: sizes and CRC stand in the descriptor, and the local extra field is padded to align
the payload. torch *computes* offsets from that layout (map_location="meta"), so a header that is what miniz would write at
its old offset is replaced by what miniz would write at the new one. Any other header is kept as it is.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ..errors import DamagedError, Place
from ..limits import LIMITS
from ..source import Source
from ..splice import Check, Splice

LOCAL, CENTRAL, DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08"
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
MAX32, MAX16 = 0xFFFFFFFF, 0xFFFF
STORED, DEFLATED = 0, 8
FLAG_DESCRIPTOR, FLAG_UTF8, FLAG_DEFLATE_LEVEL = 0x8, 0x800, 0x6
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Member:
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


@dataclass(frozen=True, slots=True)
class Change:
    """A member's new content: the first `keep` bytes of the old, then `size` bytes made by `data`."""

    size: int
    data: Callable[[], bytes]
    keep: int = 0

    @classmethod
    def of(cls, data: bytes) -> Change:
        """New content that is known already."""
        return cls(len(data), lambda: data)


class Archive:
    """The index of one zip file. Raises DamagedError where the file contradicts itself or the format."""

    def __init__(self, source: Source) -> None:
        self.source, self.place = source, source.place
        self._directory, self._end = _find_directory(source)
        listed = list(_central_entries(source, *self._directory))
        self._listed = [name for _, name, _ in listed]  # the order of the directory need not be that of the file
        entries = sorted(listed, key=lambda entry: entry[0])
        self.members: dict[str, Member] = {}
        stops = [start for start, _, _ in entries[1:]] + [self._directory[0]]
        at = 0
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
        if member.size > limit:
            raise self.place.inside(name).damaged(
                f"holds {member.size} bytes, more than the {limit} that are read", at=member.start
            )
        return b"".join(self.chunks(name))

    def checks(self) -> list[Check]:
        """One CRC check over each member's payload, to be fed while it is copied."""
        return [_Content(self.place, m, self.has_crcs) for m in self.members.values() if m.packed] if self.has_crcs else []

    def new_crc(self, name: str, change: Change) -> int:
        """The CRC-32 of a changed member; 0 in an archive without CRCs."""
        if not self.has_crcs:
            return 0
        if change.keep == 0:
            return zlib.crc32(change.data())
        member, crc = self.members[name], 0
        if change.keep == member.size:
            crc = member.crc
        else:
            for piece in self.chunks(name, 0, change.keep):
                crc = zlib.crc32(piece, crc)
        return zlib.crc32(change.data(), crc)

    def splices(self, changes: Mapping[str, Change], removed: frozenset[str] = frozenset()) -> list[Splice]:
        """The splices that give members new content or take them out, and mend every header behind them."""
        if not changes and not removed:
            return []
        return list(_Rewrite(self, changes, removed).splices())

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
        while packed or self._inflater.unconsumed_tail:
            try:
                piece = self._inflater.decompress(packed or self._inflater.unconsumed_tail, CHUNK)
            except zlib.error as error:
                raise self._place.damaged(f"does not inflate: {error}", at=self._member.data) from error
            packed = b""
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


def _find_directory(source: Source) -> tuple[tuple[int, int], bytes]:
    """[start, stop) of the central directory, and the end records behind it."""
    place, size = source.place, source.size
    if size < _END.size:
        raise place.damaged("is too short for a zip archive", at=0)
    at = size - _END.size
    record = source.read(at, size)
    if record[:4] != END:
        raise _no_end(source)
    _, disk, cd_disk, here, total, cd_size, cd_start, comment = _END.unpack(record)
    end_start = at
    if at >= _LOCATOR64.size and (locator := source.read(at - _LOCATOR64.size, at))[:4] == LOCATOR64:
        _, _, end_start, disks = _LOCATOR64.unpack(locator)
        if disks > 1 or end_start + _END64.size != at - _LOCATOR64.size:
            raise place.damaged("its zip64 end record is not where its locator says", at=at - _LOCATOR64.size)
        end64 = source.read(end_start, at - _LOCATOR64.size)
        magic, length, _, _, disk64, cd_disk64, here64, total64, cd_size64, cd_start64 = _END64.unpack(end64)
        if magic != END64 or length != _END64.size - 12:
            raise place.damaged("its zip64 end record is no such record", at=end_start)
        shorts = ((here, here64, MAX16), (total, total64, MAX16), (cd_size, cd_size64, MAX32), (cd_start, cd_start64, MAX32))
        if any(short not in (long, limit) for short, long, limit in shorts):
            raise place.damaged("its two end records disagree", at=at)
        disk, cd_disk, here, total, cd_size, cd_start = disk64, cd_disk64, here64, total64, cd_size64, cd_start64
    if disk or cd_disk or here != total:
        raise place.unsupported("is one part of a zip archive on several disks")
    if comment or cd_start + cd_size != end_start:
        raise place.damaged("its central directory does not end where the end record begins", at=end_start)
    if cd_size > LIMITS.zip_directory_bytes:
        raise place.damaged(f"its central directory of {cd_size} bytes is too large", at=end_start)
    return (cd_start, end_start), source.read(end_start, size)


def _no_end(source: Source) -> DamagedError:
    tail = source.read(max(0, source.size - MAX16 - _END.size), source.size)
    found = tail.rfind(END)
    if found < 0:
        return source.place.damaged(
            "its end is missing: a zip archive ends in a central directory", at=source.size, hint="download it again"
        )
    return source.place.damaged("bytes stand behind the end of the archive", at=source.size - len(tail) + found + _END.size)


def _central_entries(source: Source, start: int, stop: int) -> Iterator[tuple[int, str, bytes]]:
    """(offset of the local header, name, raw entry) for each entry of the central directory."""
    raw, at = source.read(start, stop), 0
    while at < len(raw):
        if at + _CENTRAL.size > len(raw) or raw[at : at + 4] != CENTRAL:
            raise source.place.damaged("its central directory is damaged", at=start + at)
        fields = _CENTRAL.unpack_from(raw, at)
        length = _CENTRAL.size + sum(fields[10:13])
        entry = raw[at : at + length]
        if len(entry) != length:
            raise source.place.damaged("its central directory is cut off", at=start + at)
        encoded = entry[_CENTRAL.size : _CENTRAL.size + fields[10]]
        name = _name(source.place, encoded, fields[3], start + at)
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


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, at)
        yield tag, extra[at + 4 : at + 4 + size]
        at += 4 + size


def _wide_sizes(place: Place, entry: bytes, at: int) -> tuple[int, int, int]:
    """(size, packed size, offset of the local header) of a central entry, from its zip64 extra field where it has one."""
    fields = _CENTRAL.unpack_from(entry)
    values = [fields[9], fields[8], fields[16]]
    extra_at = _CENTRAL.size + fields[10]
    wide = next((body for tag, body in _extra_fields(entry[extra_at : extra_at + fields[11]]) if tag == 1), b"")
    for i, value in enumerate(values):
        if value == MAX32:
            if len(wide) < 8:
                raise place.damaged("a zip64 size is missing", at=at)
            values[i], wide = int.from_bytes(wide[:8], "little"), wide[8:]
    return values[0], values[1], values[2]


def _member(source: Source, start: int, name: str, central: bytes, limit: int) -> Member:
    """The member whose local header stands at `start` and which ends before `limit`. Checks all that can be without its data."""
    place = source.place.inside(name)
    size, packed, _ = _wide_sizes(place, central, start)
    _, _, _, flags, method, _, _, crc, *_ = _CENTRAL.unpack_from(central)
    if start + _LOCAL.size > limit:
        raise place.damaged("its header overlaps what follows", at=start)
    local = source.read(start, start + _LOCAL.size)
    magic, _, local_flags, local_method, _, _, local_crc, local_packed, local_size, n_name, n_extra = _LOCAL.unpack(local)
    if magic != LOCAL:
        raise place.damaged("its header is not where the central directory says", at=start)
    data = start + _LOCAL.size + n_name + n_extra
    if data + packed > limit:
        raise place.damaged("it overlaps what follows", at=start)
    local += source.read(start + _LOCAL.size, data)
    if (local_flags, local_method) != (flags, method) or local[_LOCAL.size : _LOCAL.size + n_name] != _central_name(central):
        raise place.damaged("its two headers disagree", at=start)
    if flags & ~(FLAG_DESCRIPTOR | FLAG_UTF8 | FLAG_DEFLATE_LEVEL):
        raise place.damaged(f"it is encrypted, patched or strange (flags {flags:#x})", at=start)
    if method not in (STORED, DEFLATED):
        raise place.unsupported(f"it is packed by method {method}; stored and deflated members are read")
    if method == STORED and size != packed:
        raise place.damaged("it is stored, and its two sizes differ", at=start)
    descriptor = b""
    if flags & FLAG_DESCRIPTOR:
        descriptor = _descriptor(source, data + packed, limit, (crc, packed, size), place)
    elif (local_crc, *_local_sizes(local, local_packed, local_size)) != (crc, packed, size):
        raise place.damaged("its two headers disagree", at=start)
    stop = data + packed
    return Member(name, start, data, stop, stop + len(descriptor), size, crc, method, local, descriptor, central)


def _central_name(central: bytes) -> bytes:
    return central[_CENTRAL.size : _CENTRAL.size + _CENTRAL.unpack_from(central)[10]]


def _local_sizes(local: bytes, packed: int, size: int) -> tuple[int, int]:
    """(packed, size) of a local header; its zip64 field holds the size first."""
    n_name = _LOCAL.unpack_from(local)[9]
    wide = next((body for tag, body in _extra_fields(local[_LOCAL.size + n_name :]) if tag == 1), b"")
    if size == MAX32 and len(wide) >= 8:
        size, wide = int.from_bytes(wide[:8], "little"), wide[8:]
    if packed == MAX32 and len(wide) >= 8:
        packed = int.from_bytes(wide[:8], "little")
    return packed, size


def _descriptor(source: Source, at: int, limit: int, expected: tuple[int, int, int], place: Place) -> bytes:
    """The data descriptor at `at`: with or without a signature, with sizes of 4 or 8 bytes; it must repeat the directory."""
    raw = source.read(at, min(at + 24, limit))
    kinds = ((True, False), (True, True), (False, False), (False, True))
    made = [_make_descriptor(expected, signed=signed, wide=wide) for signed, wide in kinds]
    fitting = [one for one in made if one and raw.startswith(one)]
    if not fitting:
        raise place.damaged("its data descriptor disagrees with the central directory", at=at)
    # the short descriptor of an empty member is the beginning of its long one: where the next member stands tells
    return next((one for one in fitting if at + len(one) == limit), fitting[0])


def _make_descriptor(values: tuple[int, int, int], *, signed: bool, wide: bool) -> bytes:
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


# What miniz writes (pytorch's copy, caffe2/serialize/inline_container.cc): verified against torch 2.13.


def miniz_local(name: bytes, size: int, start: int, align: int, method: int = STORED) -> bytes:
    """The local header of a member at `start`, its payload aligned to `align` bytes."""
    wide = b"".join([struct.pack("<2Q", size, 0) if size >= MAX32 else b"", struct.pack("<Q", start) if start >= MAX32 else b""])
    if wide:
        wide = struct.pack("<2H", 1, len(wide)) + wide
    pad = -(start + _LOCAL.size + len(name) + len(wide) + 4) % align
    extra = wide + struct.pack("<2sH", b"FB", pad) + b"Z" * pad
    flags = FLAG_UTF8 | (FLAG_DESCRIPTOR if size else 0)
    version = 20 if method == DEFLATED else 0
    return _LOCAL.pack(LOCAL, version, flags, method, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra


def _miniz_again(member: Member, size: int, start: int, align: int) -> bytes:
    """What miniz would write for `member` with another size, at another offset."""
    name = member.local[_LOCAL.size : _LOCAL.size + _LOCAL.unpack_from(member.local)[9]]
    return miniz_local(name, size, start, align, member.method)


def _miniz_alignments(members: Sequence[Member]) -> dict[str, int]:
    """The alignment of each member whose header is what miniz writes. A file has one; the first members tell which."""
    powers = (64, *(1 << k for k in range(17) if k != 6))

    def written(member: Member, align: int) -> bool:
        return member.data % align == 0 and _miniz_again(member, member.size, member.start, align) == member.local

    align = max(powers, key=lambda power: sum(written(m, power) for m in members[:16]))
    return {m.name: align for m in members if written(m, align)}


class _Rewrite:
    """One pass over the members that places each anew."""

    def __init__(self, archive: Archive, changes: Mapping[str, Change], removed: frozenset[str]) -> None:
        self._archive, self._removed = archive, removed
        self._changes = {name: self._packed(name, change) for name, change in changes.items()}
        self._align = _miniz_alignments(list(archive.members.values()))
        self._starts: dict[str, int] = {}

    def _packed(self, name: str, change: Change) -> _Packed:
        member = self._archive.members[name]
        crc = cache(lambda: self._archive.new_crc(name, change))
        size = change.keep + change.size
        if member.method == STORED:
            return _Packed(size, size, crc, change.keep, change.data)
        kept = b"".join(self._archive.chunks(name, 0, change.keep)) if change.keep else b""
        deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
        data = deflater.compress(kept + change.data()) + deflater.flush()
        return _Packed(size, len(data), crc, 0, lambda: data)

    def splices(self) -> Iterator[Splice]:
        shift, members = 0, self._archive.members.values()
        for member in members:
            if member.name in self._removed:
                yield Splice.of(member.start, member.stop, b"")
                shift -= member.stop - member.start
                continue
            start = member.start + shift
            self._starts[member.name] = start
            new = self._changes.get(member.name)
            local = self._local(member, start, new)
            if local != member.local or (new and not self._has_descriptor(member)):
                yield Splice(member.start, member.data, len(local), self._with_crc(local, member, new))
            if new:
                yield Splice(member.data + new.keep, member.data_stop, new.packed - new.keep, new.data)
            descriptor_size = self._descriptor_size(member, start, new)
            if descriptor_size and (new or descriptor_size != len(member.descriptor)):
                yield Splice(member.data_stop, member.stop, descriptor_size, self._descriptor(member, new, descriptor_size))
            length = len(local) + (new.packed if new else member.packed) + descriptor_size
            shift = start + length - member.stop
        yield self._directory(shift)

    @staticmethod
    def _has_descriptor(member: Member) -> bool:
        return bool(_LOCAL.unpack_from(member.local)[2] & FLAG_DESCRIPTOR)

    def _local(self, member: Member, start: int, new: _Packed | None) -> bytes:
        size = new.size if new else member.size
        if align := self._align.get(member.name, 0):
            return _miniz_again(member, size, start, align)
        if new is None or self._has_descriptor(member):
            return member.local
        return self._sized(member, new)

    def _sized(self, member: Member, new: _Packed) -> bytes:
        """A local header that carries its sizes, with the new ones; its CRC follows in `_with_crc`."""
        fields = list(_LOCAL.unpack_from(member.local))
        tail = member.local[_LOCAL.size :]
        if MAX32 in fields[7:9]:
            wide = b"".join(struct.pack("<Q", v) for v, f in ((new.size, fields[8]), (new.packed, fields[7])) if f == MAX32)
            at = tail.index(struct.pack("<H", 1), fields[9]) + 4
            tail = tail[:at] + wide + tail[at + len(wide) :]
        elif max(new.size, new.packed) >= MAX32:
            raise self._archive.place.inside(member.name).unsupported("would grow beyond 4 GiB, for which its header has no room")
        fields[7] = new.packed if fields[7] != MAX32 else MAX32
        fields[8] = new.size if fields[8] != MAX32 else MAX32
        return _LOCAL.pack(*fields) + tail

    def _with_crc(self, local: bytes, member: Member, new: _Packed | None) -> Callable[[], bytes]:
        if new is None or self._has_descriptor(member):
            return lambda: local
        return lambda: local[:14] + struct.pack("<I", new.crc()) + local[18:]

    def _descriptor_size(self, member: Member, start: int, new: _Packed | None) -> int:
        if member.name not in self._align:
            return len(member.descriptor)
        size = new.size if new else member.size
        return 0 if not size else 24 if max(size, start) >= MAX32 else 16

    def _descriptor(self, member: Member, new: _Packed | None, size: int) -> Callable[[], bytes]:
        def made() -> bytes:
            values = (new.crc(), new.packed, new.size) if new else (member.crc, member.packed, member.size)
            return _make_descriptor(values, signed=size in (16, 24), wide=size >= 20)

        return made

    def _directory(self, shift: int) -> Splice:
        """The central directory and everything behind it."""
        start, stop = self._archive.directory
        entries = [self._central(m) for m in self._archive.listed if m.name not in self._removed]
        size = sum(size for size, _ in entries)
        end = _end_records(self._archive.place, self._archive.end, len(entries), start + shift, size)
        return Splice(
            start, stop + len(self._archive.end), size + len(end), lambda: b"".join([*(make() for _, make in entries), end])
        )

    def _central(self, member: Member) -> tuple[int, Callable[[], bytes]]:
        """(length, maker) of a central entry; fields that were 64 bits wide stay so unless miniz would write them short."""
        new, start = self._changes.get(member.name), self._starts[member.name]
        fields = list(_CENTRAL.unpack_from(member.central))
        by_miniz = member.name in self._align
        wide = b""
        for index, value in ((9, new.size if new else member.size), (8, new.packed if new else member.packed), (16, start)):
            if value >= MAX32 or (fields[index] == MAX32 and not by_miniz):
                wide, fields[index] = wide + struct.pack("<Q", value), MAX32
            else:
                fields[index] = value
        extra_at = _CENTRAL.size + fields[10]
        extra, comment = member.central[extra_at : extra_at + fields[11]], member.central[extra_at + fields[11] :]
        others = b"".join(struct.pack("<2H", tag, len(body)) + body for tag, body in _extra_fields(extra) if tag != 1)
        extra = (struct.pack("<2H", 1, len(wide)) + wide if wide else b"") + others
        fields[11] = len(extra)
        tail = member.central[_CENTRAL.size : extra_at] + extra + comment

        def made() -> bytes:
            if new:
                fields[7] = new.crc()
            return _CENTRAL.pack(*fields) + tail

        return _CENTRAL.size + len(tail), made


@dataclass(frozen=True, slots=True)
class _Packed:
    """A change as it will be stored: sizes known, content and CRC made when written."""

    size: int
    packed: int
    crc: Callable[[], int]
    keep: int
    data: Callable[[], bytes]


def _end_records(place: Place, old: bytes, count: int, start: int, size: int) -> bytes:
    """The end records with a new count, start and size of the central directory."""
    short = list(_END.unpack(old[-_END.size :]))
    values = (count, count, size, start)
    limits = (MAX16, MAX16, MAX32, MAX32)
    before = b""
    if len(old) > _END.size:
        long = list(_END64.unpack_from(old))
        long[6:10] = values
        _, disk, _, disks = _LOCATOR64.unpack_from(old, _END64.size)
        before = _END64.pack(*long) + _LOCATOR64.pack(LOCATOR64, disk, start + size, disks)
    elif any(v >= limit for v, limit in zip(values, limits, strict=True)):
        raise place.unsupported("would grow beyond 4 GiB, for which its end record has no room")
    forced = [f == limit and not _was_full(old, i) for i, (f, limit) in enumerate(zip(short[3:7], limits, strict=True))]
    short[3:7] = [limit if force else min(v, limit) for v, limit, force in zip(values, limits, forced, strict=True)]
    return before + _END.pack(*short)


def _was_full(old: bytes, index: int) -> bool:
    """Whether a field of the end record was at its limit because its value did not fit."""
    limits = (MAX16, MAX16, MAX32, MAX32)
    return len(old) > _END.size and bool(_END64.unpack_from(old)[6 + index] >= limits[index])

"""Edits of zip archives as splices: members are changed or removed, and every header that follows is corrected.

PyTorch's archives are written by miniz: sizes and CRC are in the descriptor, and the local extra field is padded to align
the payload. torch *computes* offsets from that layout (map_location="meta"), so a header that is what miniz would write at
its old offset is replaced by what miniz would write at the new one. Any other header is kept as it is.
"""

# Trap: a padding that is longer than miniz's aligns as well, but with .format_version ≥ 1 torch's FakeTensorMode and
# calculate_storage_offsets then read the wrong bytes without an error.

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import takewhile

from chkpt_channels.containers.zip.directory import (
    CENTRAL_RECORD,
    END64_RECORD,
    END_RECORD,
    FLAG_UTF8,
    LOCATOR64,
    LOCATOR64_RECORD,
    MAX16,
    MAX32,
    ZIP64_TAG,
    extra_fields,
)
from chkpt_channels.containers.zip.member import (
    DEFLATED,
    FLAG_DESCRIPTOR,
    LOCAL,
    LOCAL_RECORD,
    STORED,
    Member,
    make_descriptor,
)
from chkpt_channels.containers.zip.reader import Archive
from chkpt_channels.core.errors import Location
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.splice import Splice, streamed


class MemberEdit(NamedTuple):
    """A member's new content: all `keep` bytes of the old, or none, then `size` bytes made by `data`; or the old content with the
    splices `inner`, which count from its first byte, `size` bytes in all."""

    size: int
    data: Callable[[], bytes]
    keep: int = 0
    inner: tuple[Splice, ...] = ()

    @classmethod
    def of(cls, data: bytes) -> MemberEdit:
        """New content that is known already."""
        return cls(len(data), lambda: data)

    @classmethod
    def patch(cls, member: Member, inner: Sequence[Splice]) -> MemberEdit:
        """The old content with splices."""
        return cls(member.size + sum(s.size - (s.stop - s.start) for s in inner), bytes, 0, tuple(inner))


def splices(archive: Archive, changes: Mapping[str, MemberEdit], removed: frozenset[str] = frozenset()) -> list[Splice]:
    """The splices that change members or remove them, and correct every header that follows.

    Raises UnsupportedError where an archive without zip64 records would outgrow 4 GiB.
    """
    return list(_Rewrite(archive, changes, removed).splices()) if changes or removed else []


def new_crc(archive: Archive, name: str, change: MemberEdit) -> int:
    """The CRC-32 of a changed member; 0 in an archive without CRCs."""
    if not archive.has_crcs:  # torch.serialization.set_crc32_options(False): edited members get none either
        return 0
    member, crc = archive.members[name], 0
    if change.inner:  # read whole, the old content is checked too
        for piece in streamed(archive.chunks(name), change.inner):
            crc = zlib.crc32(piece, crc)
        return crc
    return zlib.crc32(change.data(), member.crc if change.keep else 0)


# What miniz writes (pytorch's copy, caffe2/serialize/inline_container.cc): verified against torch 2.13.


def miniz_local(name: bytes, size: int, start: int, align: int, method: int = STORED) -> bytes:
    """The local header of a member at `start`, its payload aligned to `align` bytes."""
    wide = b"".join([struct.pack("<2Q", size, 0) if size >= MAX32 else b"", struct.pack("<Q", start) if start >= MAX32 else b""])
    if wide:
        wide = struct.pack("<2H", ZIP64_TAG, len(wide)) + wide
    pad = -(start + LOCAL_RECORD.size + len(name) + len(wide) + 4) % align
    extra = wide + struct.pack("<2sH", b"FB", pad) + b"Z" * pad
    flags = FLAG_UTF8 | (FLAG_DESCRIPTOR if size else 0)
    version = 20 if method == DEFLATED else 0
    return LOCAL_RECORD.pack(LOCAL, version, flags, method, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra


def _miniz_again(member: Member, size: int, start: int, align: int) -> bytes:
    """What miniz would write for `member` with another size, at another offset."""
    name = member.local[LOCAL_RECORD.size : LOCAL_RECORD.size + LOCAL_RECORD.unpack_from(member.local)[9]]
    return miniz_local(name, size, start, align, member.method)


def _miniz_alignments(members: Sequence[Member]) -> dict[str, int]:
    """The alignment of each member whose header is what miniz writes. A file has one, which its first members show."""
    powers = (64, *(1 << k for k in range(17) if k != 6))  # 64 is torch's default and comes first; others are an option of torch

    def written(member: Member, align: int) -> bool:
        return member.data % align == 0 and _miniz_again(member, member.size, member.start, align) == member.local

    align = max(powers, key=lambda power: sum(written(m, power) for m in members[:16]))
    return {m.name: align for m in members if written(m, align)}


class _Rewrite:
    """One pass over the members that places each anew."""

    def __init__(self, archive: Archive, changes: Mapping[str, MemberEdit], removed: frozenset[str]) -> None:
        self._archive, self._removed = archive, removed
        self._changes = {name: self._packed(name, change) for name, change in changes.items()}
        self._align = _miniz_alignments(list(archive.members.values()))
        self._starts: dict[str, int] = {}

    def _packed(self, name: str, change: MemberEdit) -> _Stored:
        member = self._archive.members[name]
        crc = cache(lambda: new_crc(self._archive, name, change))
        size = change.keep + change.size
        if member.method == STORED:
            return _Stored(size, size, crc, change.keep, change.data, change.inner)
        if change.inner:
            content = b"".join(streamed(self._archive.chunks(name), change.inner))
            change = MemberEdit.of(content)
        kept = b"".join(self._archive.chunks(name, 0, change.keep)) if change.keep else b""
        deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
        data = deflater.compress(kept + change.data()) + deflater.flush()
        return _Stored(size, len(data), crc, 0, lambda: data)

    def splices(self) -> Iterator[Splice]:
        shift = 0
        for member in self._archive.members.values():
            if member.name in self._removed:
                yield Splice.of(member.start, member.stop, b"")
                shift -= member.stop - member.start
                continue
            start = self._starts[member.name] = member.start + shift
            new, is_changed = self._stored(member), member.name in self._changes
            states_crc = is_changed and _is_sized(member)
            local = self._local(member, start, new, is_sized=states_crc)
            if states_crc:
                yield Splice(member.start, member.data, len(local), partial(_with_crc, local, new))
            elif local != member.local:
                yield Splice.of(member.start, member.data, local)
            if new.inner:
                yield from (s._replace(start=member.data + s.start, stop=member.data + s.stop) for s in new.inner)
            elif is_changed:
                yield Splice(member.data + new.keep, member.data_stop, new.packed - new.keep, new.data)
            descriptor_size = self._descriptor_size(member, start, new)
            if (is_changed and member.descriptor) or descriptor_size != len(member.descriptor):
                yield Splice(member.data_stop, member.stop, descriptor_size, partial(_descriptor, new, descriptor_size))
            shift = start + len(local) + new.packed + descriptor_size - member.stop
        yield self._directory(shift)

    def _stored(self, member: Member) -> _Stored:
        """A member as it will be."""
        same = _Stored(member.size, member.packed, lambda: member.crc, member.packed, bytes)
        return self._changes.get(member.name, same)

    def _local(self, member: Member, start: int, new: _Stored, *, is_sized: bool) -> bytes:
        if align := self._align.get(member.name, 0):
            return _miniz_again(member, new.size, start, align)
        return self._sized(member, new) if is_sized else member.local

    def _sized(self, member: Member, new: _Stored) -> bytes:
        """A local header that carries its sizes, with the new ones; its CRC follows in `_with_crc`."""
        fields = list(LOCAL_RECORD.unpack_from(member.local))
        tail = member.local[LOCAL_RECORD.size :]
        if MAX32 in fields[7:9]:
            wide = b"".join(struct.pack("<Q", v) for v, f in ((new.size, fields[8]), (new.packed, fields[7])) if f == MAX32)
            fields_before = takewhile(lambda field: field[0] != ZIP64_TAG, extra_fields(tail[fields[9] :]))
            at = fields[9] + sum(4 + len(body) for _, body in fields_before) + 4
            tail = tail[:at] + wide + tail[at + len(wide) :]
        elif max(new.size, new.packed) >= MAX32:
            raise self._archive.location.at(member.name).unsupported("would grow beyond 4 GiB, for which its header has no room")
        fields[7] = new.packed if fields[7] != MAX32 else MAX32
        fields[8] = new.size if fields[8] != MAX32 else MAX32
        return LOCAL_RECORD.pack(*fields) + tail

    def _descriptor_size(self, member: Member, start: int, new: _Stored) -> int:
        if member.name not in self._align:
            return len(member.descriptor)
        # miniz: none for an empty member, zip64 by either value
        return 0 if not new.size else 24 if max(new.size, start) >= MAX32 else 16

    def _directory(self, shift: int) -> Splice:
        """The central directory and everything that follows it."""
        start, stop = self._archive.directory
        entries = [self._central(m) for m in self._archive.listed if m.name not in self._removed]
        size = sum(size for size, _ in entries)
        end = _end_records(self._archive.location, self._archive.end, len(entries), start + shift, size)
        return Splice(
            start, stop + len(self._archive.end), size + len(end), lambda: b"".join([*(make() for _, make in entries), end])
        )

    def _central(self, member: Member) -> tuple[int, Callable[[], bytes]]:
        """(length, maker) of a central entry; fields that were 64 bits wide stay so unless miniz would write them short."""
        new, start = self._stored(member), self._starts[member.name]
        fields = list(CENTRAL_RECORD.unpack_from(member.central))
        by_miniz = member.name in self._align
        if by_miniz:
            fields[3] = FLAG_UTF8 | (FLAG_DESCRIPTOR if new.size else 0)
        wide = b""
        for index, value in ((9, new.size), (8, new.packed), (16, start)):
            if value >= MAX32 or (fields[index] == MAX32 and not by_miniz):
                wide, fields[index] = wide + struct.pack("<Q", value), MAX32
            else:
                fields[index] = value
        extra_at = CENTRAL_RECORD.size + fields[10]
        extra, comment = member.central[extra_at : extra_at + fields[11]], member.central[extra_at + fields[11] :]
        others = b"".join(struct.pack("<2H", tag, len(body)) + body for tag, body in extra_fields(extra) if tag != ZIP64_TAG)
        extra = (struct.pack("<2H", ZIP64_TAG, len(wide)) + wide if wide else b"") + others
        fields[11] = len(extra)
        tail = member.central[CENTRAL_RECORD.size : extra_at] + extra + comment

        def to_bytes() -> bytes:
            fields[7] = new.crc()
            return CENTRAL_RECORD.pack(*fields) + tail

        return CENTRAL_RECORD.size + len(tail), to_bytes


class _Stored(NamedTuple):
    """A member as it will be stored: sizes known, content and CRC made when written."""

    size: int
    packed: int
    crc: Callable[[], int]
    keep: int
    data: Callable[[], bytes]
    inner: tuple[Splice, ...] = ()


def _with_crc(local: bytes, new: _Stored) -> bytes:
    return local[:14] + struct.pack("<I", new.crc()) + local[18:]


def _descriptor(new: _Stored, size: int) -> bytes:
    return make_descriptor((new.crc(), new.packed, new.size), signed=size in (16, 24), wide=size >= 20) if size else b""


def _is_sized(member: Member) -> bool:
    """Whether the local header has CRC and sizes: some writers put them there too, beside a data descriptor."""
    fields = LOCAL_RECORD.unpack_from(member.local)
    return not fields[2] & FLAG_DESCRIPTOR or not {0, MAX32}.issuperset(fields[6:9])


def _end_records(location: Location, old: bytes, count: int, start: int, size: int) -> bytes:
    """The end records with a new count, start and size of the central directory."""
    short = list(END_RECORD.unpack(old[-END_RECORD.size :]))
    values = (count, count, size, start)
    limits = (MAX16, MAX16, MAX32, MAX32)
    before, was_full = b"", [False] * len(limits)
    if len(old) > END_RECORD.size:
        long = list(END64_RECORD.unpack_from(old))
        was_full = [v >= limit for v, limit in zip(long[6:10], limits, strict=True)]
        long[6:10] = values
        _, disk, _, disks = LOCATOR64_RECORD.unpack_from(old, END64_RECORD.size)
        before = END64_RECORD.pack(*long) + LOCATOR64_RECORD.pack(LOCATOR64, disk, start + size, disks)
    elif any(v >= limit for v, limit in zip(values, limits, strict=True)):
        raise location.unsupported("would grow beyond 4 GiB, for which its end record has no room")
    for i, (value, limit, full) in enumerate(zip(values, limits, was_full, strict=True), 3):
        # a writer may mark a field as full whose value would fit
        short[i] = limit if short[i] == limit and not full else min(value, limit)
    return before + END_RECORD.pack(*short)

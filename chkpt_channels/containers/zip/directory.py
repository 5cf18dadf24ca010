"""The end of a zip archive: its end records and its central directory, the one list of what it holds.

    central directory (an entry for each member), [zip64 end record, its locator], end record

Source: PKWARE APPNOTE 6.3.10, sections 4.3.12 to 4.3.16 and 4.5.3. No comment may follow the end record, so that it is found
where it must be and not searched for: what two readers would find differently is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from chkpt_channels.core.errors import DamagedError, Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.source import Source

CENTRAL = b"PK\x01\x02"
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
MAX32, MAX16 = 0xFFFFFFFF, 0xFFFF
"""In a field: the value does not fit, and is in a zip64 record or extra field instead."""
FLAG_UTF8 = 0x800
"""The name is UTF-8; without it code page 437 (APPNOTE, appendix D)."""
UNICODE_PATH_TAG = 0x7075
"""Of Info-ZIP's extra field that renames a member for those readers that know it (APPNOTE 4.6.9)."""
UNICODE_PATH_HEAD_BYTES = 5
"""A version, and the CRC-32 of the name that it replaces."""
ZIP64_TAG = 1
"""Of the extra field that holds the sizes and the offset that do not fit into 32 bits."""
CENTRAL_RECORD = struct.Struct("<4s6H3I5H2I")
"""Fields used: 3 flags, 4 method, 7 CRC, 8 packed size, 9 size, 10 to 12 lengths of name, extra field and comment, 13 disk,
16 offset of the local header."""
END_RECORD = struct.Struct("<4s4H2IH")
END64_RECORD = struct.Struct("<4sQ2H2I4Q")
LOCATOR64_RECORD = struct.Struct("<4sIQI")


def find_directory(source: Source) -> tuple[tuple[int, int], bytes, int]:
    """[start, stop) of the central directory, the end records that follow it, and the number of entries that they state."""
    location, size = source.location, source.size
    if size < END_RECORD.size:
        raise location.damaged("is too short for a zip archive", at=0)
    at = size - END_RECORD.size
    record = source.read(at, size)
    if record[:4] != END:
        raise _no_end(source)
    _, disk, cd_disk, here, total, cd_size, cd_start, comment = END_RECORD.unpack(record)
    end_start = at
    if at >= LOCATOR64_RECORD.size and (locator := source.read(at - LOCATOR64_RECORD.size, at))[:4] == LOCATOR64:
        _, end64_disk, end_start, disks = LOCATOR64_RECORD.unpack(locator)
        if end64_disk or disks > 1 or end_start + END64_RECORD.size != at - LOCATOR64_RECORD.size:
            raise location.damaged("its zip64 end record is not where its locator says", at=at - LOCATOR64_RECORD.size)
        end64 = source.read(end_start, at - LOCATOR64_RECORD.size)
        magic, length, _, _, disk64, cd_disk64, here64, total64, cd_size64, cd_start64 = END64_RECORD.unpack(end64)
        if magic != END64 or length != END64_RECORD.size - 12:
            raise location.damaged("its zip64 end record has a wrong signature or length", at=end_start)
        shorts = ((here, here64, MAX16), (total, total64, MAX16), (cd_size, cd_size64, MAX32), (cd_start, cd_start64, MAX32))
        if any(short not in (long, limit) for short, long, limit in shorts):
            raise location.damaged("its two end records disagree", at=at)
        disk, cd_disk, here, total, cd_size, cd_start = disk64, cd_disk64, here64, total64, cd_size64, cd_start64
    if disk or cd_disk or here != total:
        raise location.damaged("is one part of a split zip archive", at=at)
    if comment or cd_start + cd_size != end_start:
        raise location.damaged("its central directory does not end where the end record begins", at=end_start)
    location.check_limit("bytes of central directory", cd_size, LIMITS.zip_directory_bytes, at=end_start)
    location.check_limit("members", total, LIMITS.zip_members, at=end_start)
    return (cd_start, end_start), source.read(end_start, size), total


def _no_end(source: Source) -> DamagedError:
    tail = source.read(max(0, source.size - MAX16 - END_RECORD.size), source.size)
    at = tail.rfind(END)
    if at < 0 or at + END_RECORD.size > len(tail):
        return source.location.damaged("its end is missing: a zip archive ends in a central directory", at=source.size)
    return source.location.damaged("bytes follow the end of the archive", at=source.size - len(tail) + at + END_RECORD.size)


class Entry(NamedTuple):
    """An entry of the central directory: the offset of the local header, the name, both sizes, the `raw` entry, the name as it is
    `encoded` there, flags, method and CRC-32."""

    start: int
    name: str
    size: int
    packed: int
    raw: bytes
    encoded: bytes
    flags: int
    method: int
    crc: int


def central_entries(source: Source, start: int, stop: int) -> Iterator[Entry]:
    """The entries of the central directory, in its order."""
    raw, at = source.read(start, stop), 0
    while at < len(raw):
        if at + CENTRAL_RECORD.size > len(raw) or raw[at : at + 4] != CENTRAL:
            raise source.location.damaged("its central directory is damaged", at=start + at)
        fields = CENTRAL_RECORD.unpack_from(raw, at)
        length = CENTRAL_RECORD.size + sum(fields[10:13])
        entry = raw[at : at + length]
        if len(entry) != length:
            raise source.location.damaged("its central directory is cut off", at=start + at)
        encoded = entry[CENTRAL_RECORD.size : CENTRAL_RECORD.size + fields[10]]
        name = _name(source.location, encoded, fields[3], start + at)
        if fields[13]:
            raise source.location.at(name).damaged("its directory entry names another disk", at=start + at)
        extra = entry[CENTRAL_RECORD.size + fields[10] :][: fields[11]]
        if not (stated := wide_values((fields[9], fields[8], fields[16]), extra)):
            raise source.location.at(name).damaged("a zip64 size is missing", at=start + at)
        size, packed, offset = stated
        check_unicode_path(source.location, name, extra, start + at)
        yield Entry(offset, name, size, packed, entry, encoded, fields[3], fields[4], fields[7])
        at += length


def _name(location: Location, encoded: bytes, flags: int, at: int) -> str:
    try:
        name = encoded.decode("utf-8" if flags & FLAG_UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise location.damaged("a member's name is not UTF-8", at=at) from error
    if "\0" in name or name.startswith("/") or (".." in name and ".." in name.replace("\\", "/").split("/")):
        raise location.at(name).damaged("the member's name is absolute, or has .. or NUL in it", at=at)
    return name


def check_unicode_path(location: Location, name: str, extra: bytes, at: int) -> None:
    """Raise DamagedError where an extra field gives a member another name than its header does."""
    for tag, body in extra_fields(extra) if UNICODE_PATH_TAG.to_bytes(2, "little") in extra else ():
        if tag == UNICODE_PATH_TAG and body[UNICODE_PATH_HEAD_BYTES:] != name.encode():
            raise location.at(name).damaged("has another name in its Unicode Path field", at=at)


def wide_values(stated: Sequence[int], extra: bytes) -> list[int]:
    """Sizes and offsets as `stated`, or from a zip64 extra field, which holds those that do not fit, one after the other; nothing
    where one is missing."""
    if MAX32 not in stated:
        return [*stated]
    wide = next((body for tag, body in extra_fields(extra) if tag == ZIP64_TAG), b"")
    if len(wide) < 8 * stated.count(MAX32):
        return []
    longs = iter(struct.unpack_from(f"<{stated.count(MAX32)}Q", wide))
    return [next(longs) if value == MAX32 else value for value in stated]


def extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of each field in an extra field."""
    at = 0
    while at + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, at)
        yield tag, extra[at + 4 : at + 4 + size]
        at += 4 + size

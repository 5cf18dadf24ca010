"""The central directory and its end records: found where they must be, and believed as far as they agree."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import pytest

from chkpt_channels import DamagedError
from chkpt_channels.containers.zip.directory import (
    END64_RECORD,
    END_RECORD,
    LOCATOR64_RECORD,
    MAX16,
    central_entries,
    check_unicode_path,
    extra_fields,
    find_directory,
)
from chkpt_channels.core.errors import Location
from chkpt_channels.storage.source import Source


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(zipfile.ZipInfo(name), name.encode() * 3)
    return out.getvalue()


def wide(data: bytes, **changes: int) -> bytes:
    """The same archive with zip64 end records, some of their fields changed."""
    body, end = data[: -END_RECORD.size], END_RECORD.unpack(data[-END_RECORD.size :])
    fields = {"size": END64_RECORD.size - 12, "disk": 0, "here": end[3], "total": end[4], "length": end[5], "start": end[6]}
    fields |= {name: value for name, value in changes.items() if name in fields}
    long = struct.pack("<4sQ2H2I4Q", b"PK\6\6", fields["size"], 45, 45, fields["disk"], 0, *list(fields.values())[2:])
    locator = LOCATOR64_RECORD.pack(b"PK\6\7", 0, changes.get("at", len(body)), changes.get("disks", 1))
    return body + long + locator + END_RECORD.pack(*end[:3], changes.get("short", MAX16), MAX16, *end[5:])


@pytest.mark.parametrize("change", [bytes, wide], ids=["short", "zip64"])
def test_the_directory_is_found_and_listed(change: Callable[[bytes], bytes], source: Callable[..., Source]):
    plain = archive("a", "b/é")
    file = source(change(plain))
    (start, stop), end, count = find_directory(file)
    with zipfile.ZipFile(io.BytesIO(plain)) as other:
        expected = [(info.header_offset, info.filename) for info in other.infolist()]
        assert (start, count) == (other.start_dir, 2)
    assert file.size == stop + len(end)
    entries = list(central_entries(file, start, stop))
    assert [(entry.start, entry.name) for entry in entries] == expected
    assert entries[1].encoded == "b/é".encode()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"at": 0}, "not where its locator says"),
        ({"disks": 2}, "not where its locator says"),
        ({"size": 45}, "its zip64 end record has a wrong signature or length"),
        ({"short": 1}, "its two end records disagree"),
        ({"disk": 1}, "one part of a split zip archive"),
        ({"total": 3}, "one part of a split zip archive"),
    ],
    ids=str,
)
def test_zip64_records_must_agree(changes: dict[str, int], words: str, source: Callable[..., Source]):
    with pytest.raises(DamagedError, match=words):
        find_directory(source(wide(archive("a", "b"), **changes)))


def test_what_a_zip64_field_holds_is_read_in_its_order(source: Callable[..., Source]):
    """Sizes and offset stand there only where their short fields are full, and always in this order."""

    def entry(size: int, packed: int, offset: int, extra: bytes) -> bytes:
        return struct.pack("<4s6H3I5H2I", b"PK\1\2", *[0] * 7, packed, size, 1, len(extra), *[0] * 4, offset) + b"a" + extra

    def read(size: int, packed: int, offset: int, extra: bytes) -> tuple[int, int, int]:
        raw = entry(size, packed, offset, extra)
        (found,) = central_entries(source(bytes(77) + raw), 77, 77 + len(raw))
        return found.size, found.packed, found.start

    full, extra = 0xFFFFFFFF, struct.pack("<2HH", 0x5455, 2, 9) + struct.pack("<2H2Q", 1, 16, 1 << 40, 1 << 41)
    assert read(full, 5, full, extra) == (1 << 40, 5, 1 << 41)
    assert read(7, full, full, extra) == (7, 1 << 40, 1 << 41)
    assert read(7, 7, 5, extra) == (7, 7, 5)
    with pytest.raises(DamagedError, match="a: a zip64 size is missing, at byte 77"):
        read(full, full, full, extra)


def test_extra_fields():
    assert list(extra_fields(struct.pack("<2H", 5, 3) + b"abc" + struct.pack("<2H", 6, 0) + b"xy")) == [(5, b"abc"), (6, b"")]


def test_a_second_name_must_be_the_first_one():
    """Info-ZIP repeats a name as UTF-8; readers that know the field take the member for the one that it names."""
    field = struct.pack("<2HBI", 0x7075, 8, 1, 0)
    check_unicode_path(Location("a.zip"), "a/b", field + b"a/b" + b"\1\0", 7)
    with pytest.raises(DamagedError, match=r"a\.zip: a/b: has another name in its Unicode Path field, at byte 7"):
        check_unicode_path(Location("a.zip"), "a/b", b"\1\0\0\0" + field + b"a/c", 7)

"""Zip archives taken apart and put together again: another member, another header, another order; and inside the members,
their checksums and sizes mended, another pickle, JSON or HDF5 file."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import replace
from random import Random
from typing import Any

from tests.support.builders import Zipped, zipped

from . import hdf5, jsons, pickles
from .basics import EDGES, Mutation, junk, rounds, rows, text

Members = list[Zipped]
INSIDE = {"pkl": pickles.mutate, "json": jsons.mutate, "h5": hdf5.mutate}
FIELDS = ("crc", "size", "packed", "flags", "method")


def mutate(data: bytes, chance: Random) -> bytes:
    """The archive, a few members, headers or places another."""
    members, around = parsed(data), dict[str, Any]()
    sound = {member.data: INSIDE[suffix(member)] for member in members if suffix(member) in INSIDE and member.data}
    for _ in rounds(chance):
        kind = chance.choice(("content",) * 8 + ("rows", "name", "central", "local", "extra", "pack", "around"))
        if kind == "rows":
            rows(members, chance)
        elif kind == "around":
            around |= chance.choice(AROUND)(chance)
        elif members:
            able = [i for i, member in enumerate(members) if member.data in sound and kind == "content"]
            i = chance.choice(able if able and chance.random() < 0.9 else range(len(members)))
            members[i] = content(members[i], sound, chance) if kind == "content" else CHANGES[kind](members, i, chance)
    return zipped(*members, **around)


def parsed(data: bytes) -> Members:
    """The members with their contents, stored; those without checksums stay so."""
    members = Members()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            crc = None if info.CRC else 0
            info.CRC = None  # else zipfile compares
            members.append(Zipped(info.filename, archive.read(info), crc=crc))
    return members


def suffix(member: Zipped) -> str:
    return member.name.rpartition(".")[2]


def content(member: Zipped, sound: dict[bytes, Mutation], chance: Random) -> Zipped:
    """Another content: of the same format where it is still what that format allows."""
    return replace(member, data=sound.get(member.data, junk)(member.data, chance))


def name(members: Members, i: int, chance: Random) -> Zipped:
    """Another name, in both headers."""
    new = text(members[i].name, chance, [member.name for member in members])
    return replace(members[i], name=new.encode("utf-8", "replace").decode())


def value(field: str, member: Zipped, chance: Random) -> int:
    """A lie, or now and then no checksum at all."""
    if field == "flags":
        return 1 << chance.randrange(16)
    if field == "method":
        return chance.choice((0, 8, 9, 12, 14, 93, 99))
    return chance.choice((0, len(member.data) + 1, max(len(member.data) - 1, 0), chance.choice(EDGES) & (1 << 32) - 1))


def central(members: Members, i: int, chance: Random) -> Zipped:
    """A lie in both headers, or about the place of the local one."""
    field = chance.choice((*FIELDS, "offset"))
    return replace(members[i], **{field: value(field, members[i], chance)})


def local(members: Members, i: int, chance: Random) -> Zipped:
    """A lie in the local header alone."""
    field = chance.choice((*FIELDS, "name"))
    lie = members[chance.randrange(len(members))].name if field == "name" else value(field, members[i], chance)
    return replace(members[i], local={field: lie})


def extra(members: Members, i: int, chance: Random) -> Zipped:
    """Padding as torch aligns with it, a field that means 64 bits, or one that is cut off."""
    fields = (b"FB\x04\0ZZZZ", b"\x01\0\x10\0" + b"\0" * 16, b"\x01\0\x10\0", b"\xff", b"\x75\x70\x05\0\1abcd")
    return replace(members[i], extra=chance.choice(fields))


def pack(members: Members, i: int, chance: Random) -> Zipped:
    """Deflated; some of the time something is wrong with the stream."""
    member = members[i]
    if member.method:
        return member
    packer = zlib.compressobj(9, wbits=-15)
    data = packer.compress(member.data) + packer.flush()
    data = junk(data, chance) if chance.random() < 0.3 else data
    return replace(member, data=data, method=8, crc=zlib.crc32(member.data), size=len(member.data), packed=len(data))


CHANGES = {"name": name, "central": central, "local": local, "extra": extra, "pack": pack}
AROUND = (
    lambda chance: {"before": b"x" * chance.choice((1, 4, 64))},
    lambda chance: {"between": b"\0" * chance.choice((1, 64, 4096, 70_000))},
    lambda chance: {"gap": chance.choice((b"\0", b"PK\3\4")) * chance.choice((1, 22))},
    lambda chance: {"behind": chance.choice((b"\0", b"PK\5\6")) * chance.choice((1, 22))},
    lambda chance: {"comment": b"x" * chance.choice((1, 100))},
    lambda chance: {"end": {chance.randrange(7): chance.choice(EDGES) & 0xFFFF}},
)

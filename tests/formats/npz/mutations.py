"""An .npz archive made a little wrong: its headers as text, or the zip around them."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from random import Random

from tests.support.builders import zipped
from tests.support.mutations import zips
from tests.support.mutations.basics import junk, number, text

DESCR = ("'<f4'", "'<f2'", "'>f4'", "'|V2'", "'|O'", "'<f8'", "'|b1'", "'<U3'", "[('a', '<f4')]", "'<c8'", "<f4")


def mutate(data: bytes, chance: Random) -> bytes:
    """Another header, of a length that is mended or not; or another archive."""
    members = zips.parsed(data)
    if not members or chance.random() < 0.4:
        return zips.mutate(data, chance)
    i = chance.randrange(len(members))
    members[i] = replace(members[i], data=_array(members[i].data, chance))
    return zipped(*members)


def _array(data: bytes, chance: Random) -> bytes:
    wide = 2 if data[6:7] == b"\x01" else 4
    begin = 8 + wide
    size = int.from_bytes(data[8:begin], "little")
    header, elements, version = data[begin : begin + size].decode("latin-1"), data[begin + size :], data[6:8]
    match chance.choice(("shape", "shape", "descr", "order", "length", "version", "text", "elements")):
        case "shape":
            header = re.sub(r"\d+(?=[,)])", lambda side: str(number(int(side[0]), chance)), header, count=chance.choice((1, 9)))
        case "descr":
            header = re.sub(r"'descr': '[^']*'", lambda _: f"'descr': {chance.choice(DESCR)}", header)
        case "order":
            header = header.replace("False", "True") if "False" in header else header.replace("True", "False")
        case "length":
            size = number(size, chance) & (0xFFFF if wide == 2 else 0xFFFFFFFF)
            return data[:8] + struct.pack("<H" if wide == 2 else "<I", size) + data[begin:]
        case "version":
            version = bytes([chance.choice((0, 1, 2, 3, 4, 255)), chance.choice((0, 0, 1))])
        case "text":
            header = text(header, chance)
        case _:
            elements = junk(elements, chance)
    raw = header.encode("latin-1", "replace")
    return data[:6] + version + len(raw).to_bytes(wide, "little")[:wide] + raw + elements

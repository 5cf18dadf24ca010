"""safetensors: its header as a tree, the length in front of it mended, or not."""

from __future__ import annotations

import struct
from random import Random

from . import jsons
from .basics import junk, number, rounds, rows


def mutate(data: bytes, chance: Random) -> bytes:
    """Another header, another length, other tensors' bytes."""
    (size,) = struct.unpack_from("<Q", data)
    whole, rest = [jsons.parsed(data[8 : 8 + size])], data[8 + size :]
    length = None
    for _ in rounds(chance):
        match chance.choice(("tree",) * 6 + ("entries", "offsets", "length", "rest")):
            case "tree":
                jsons.change(whole, chance)
            case "entries" if isinstance(whole[0], jsons.Pairs):
                rows(whole[0], chance)
            case "offsets":
                exchange(whole[0], chance)
            case "length":
                length = number(size, chance) & (1 << 64) - 1
            case _:
                rest = junk(rest, chance)
    header = jsons.spelled(whole[0]).encode()
    header += b" " * (-len(header) % 8 if chance.random() < 0.5 else 0)
    return struct.pack("<Q", len(header) if length is None else length) + header + rest


def exchange(header: object, chance: Random) -> None:
    """What two tensors have in their entries, one for the other: sound again, where all of it is exchanged."""
    entries = [pair for pair in header if isinstance(pair[1], jsons.Pairs)] if isinstance(header, jsons.Pairs) else []
    if entries:
        one, two = chance.choice(entries), chance.choice(entries)
        one[1], two[1] = two[1], one[1]

"""Pickles as opcodes: dropped, doubled, moved, with another number, another text, another place in the memo; and the files that
torch wrote before 1.6, which are five pickles and the storages."""

from __future__ import annotations

import io
import pickletools
import struct
from dataclasses import dataclass, replace
from functools import cache
from pickle import encode_long
from random import Random
from typing import Any

from .basics import junk, number, rounds, rows, text

NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1"}
TEXTS = {"BINUNICODE": "<I", "SHORT_BINUNICODE": "<B"}
MEMO = {"BINPUT": b"q", "LONG_BINPUT": b"r", "BINGET": b"h", "LONG_BINGET": b"j"}
SPELLED = {"q": "<B", "h": "<B", "r": "<I", "j": "<I"}
WIDTHS = (4, 8, 2, 1)


@dataclass(frozen=True)
class Token:
    """An opcode and its argument; `raw` is how it stands in the file."""

    name: str
    value: Any
    raw: bytes


def mutate(data: bytes, chance: Random) -> bytes:
    """The pickle, a few of its opcodes or their arguments another."""
    tokens = parsed(data)
    for _ in rounds(chance):
        change(tokens, chance)
    return joined(tokens)


def parsed(data: bytes) -> list[Token]:
    """The opcodes of the pickle that `data` begins with."""
    found = list(pickletools.genops(io.BytesIO(data)))
    ends = [at or 0 for _, _, at in found[1:]] + [(found[-1][2] or 0) + 1]
    return [Token(op.name, value, data[at:end]) for (op, value, at), end in zip(found, ends, strict=True)]


def joined(tokens: list[Token]) -> bytes:
    """The pickle, its frames as long as what is now in them."""
    out, behind = list[bytes](), 0
    for token in reversed(tokens):
        if token.name == "FRAME" and token.value != behind and token.raw == b"\x95" + struct.pack("<Q", token.value):
            token = replace(token, raw=b"\x95" + struct.pack("<Q", behind))
        out.append(token.raw)
        behind = 0 if token.name == "FRAME" else behind + len(token.raw)
    return b"".join(reversed(out))


def change(tokens: list[Token], chance: Random) -> None:
    """Another order, or an opcode with another argument."""
    kind = chance.choice(("number", "number", "text", "memo", "global", "rows", "junk"))
    able = [i for i, token in enumerate(tokens) if kind in ("rows", "junk") or token.name in ABLE[kind]]
    if kind == "rows" or not able:
        rows(tokens, chance)
        return
    i = chance.choice(able)
    tokens[i] = replace(tokens[i], raw=other(kind, tokens[i], tokens, chance))


ABLE = {"number": NUMBERS, "text": {*TEXTS}, "memo": {*MEMO}, "global": {"GLOBAL", "FRAME"}}


def other(kind: str, token: Token, tokens: list[Token], chance: Random) -> bytes:
    """The opcode with another argument."""
    match kind, token.value:
        case "number", int(old):
            return numbered(chance.choice((number(old, chance), pool(tokens, NUMBERS, chance))))
        case "text", str(old):
            raw = text(old, chance, [str(t.value) for t in tokens if t.name in TEXTS]).encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(raw)) + raw
        case "memo", int(old):
            index = chance.choice((abs(number(old, chance)) % (1 << 32), pool(tokens, {*MEMO}, chance)))
            code = MEMO[token.name].decode()
            code = {"q": "r", "h": "j"}[code] if index > 255 and code in "qh" else code
            return code.encode() + struct.pack(SPELLED[code], index)
        case "global", str(old):
            names = [t.value for t in tokens if t.name == "GLOBAL"]
            module, _, name = text(old, chance, names).partition(" ")
            return f"c{module}\n{name}\n".encode("utf-8", "surrogatepass")
        case _:
            return junk(token.raw, chance)


def pool(tokens: list[Token], names: set[str], chance: Random) -> int:
    """A number that stands elsewhere in the pickle."""
    return chance.choice([token.value for token in tokens if token.name in names])


def numbered(value: int) -> bytes:
    """The opcode of an integer, as short as pickle writes it."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = encode_long(value)
    return b"\x8a" + bytes([len(raw)]) + raw


def mutate_legacy(data: bytes, chance: Random) -> bytes:
    """A file of torch before 1.6: one of its five pickles, or its storages, another."""
    pickles, at = list[list[Token]](), 0
    for _ in range(5):
        pickles.append(parsed(data[at:]))
        at += sum(len(token.raw) for token in pickles[-1])
    storages = records(data[at:], sum(token.name in TEXTS for token in pickles[4]))
    for _ in range(len(rounds(chance))):
        match chance.choice(("object",) * 6 + ("any", "pickles", "storages", "record", "count")):
            case "object":
                change(pickles[min(3, len(pickles) - 1)], chance)
            case "any":
                change(chance.choice(pickles), chance)
            case "pickles" if len(pickles) > 1:
                rows(pickles, chance)
                pickles = pickles or [[]]
            case "storages":
                rows(storages, chance)
            case "record" if storages:
                i = chance.randrange(len(storages))
                storages[i] = junk(storages[i], chance)
            case "count" if storages:
                i = chance.randrange(len(storages))
                count = number(int.from_bytes(storages[i][:8], "little"), chance) & (1 << 64) - 1
                storages[i] = struct.pack("<Q", count) + storages[i][8:]
    return b"".join(map(joined, pickles)) + b"".join(storages)


def records(data: bytes, count: int) -> list[bytes]:
    """The storages, each its number of elements and these: of the widths with which they fill the file to its end."""

    @cache
    def ends(at: int, left: int) -> tuple[int, ...] | None:
        if not left or at + 8 > len(data):
            return None if left or at < len(data) else ()
        elements = int.from_bytes(data[at : at + 8], "little")
        for end in dict.fromkeys(at + 8 + elements * width for width in WIDTHS):
            if end <= len(data) and (rest := ends(end, left - 1)) is not None:
                return (end, *rest)
        return None

    found = ends(0, count) or (len(data),)
    return [data[start:end] for start, end in zip((0, *found), found, strict=False)]

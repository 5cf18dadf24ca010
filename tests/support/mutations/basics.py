"""What mutations of every format are made of: another number, another text, other rows, other bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

EDGES = (0, 1, 2, 3, 4, 255, 256, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
ODD = ("\0", "\n", "\x1b[31m", "\u202e", "/", ".", ":", "é", "0", "x", "\ud800")


def rounds(chance: Random) -> range:
    """How many mutations: one is what finds most, and a few find what one lie alone does not reach."""
    return range(chance.choice((1, 1, 1, 2, 3)))


def number(old: int, chance: Random) -> int:
    """A number beside `old`, a bit away from it, or at the edge of what some field holds."""
    near = (old + 1, old - 1, -old, 2 * old, old // 2, old ^ 1 << chance.randrange(64))
    return chance.choice((*near, chance.choice(EDGES), -chance.choice(EDGES)))


def text(old: str, chance: Random, others: Sequence[str] = ()) -> str:
    """One of the `others`, or `old` with something put in, taken out or put around it."""
    at = chance.randrange(len(old) + 1)
    made = (old[:at] + chance.choice(ODD) + old[at:], old[:at], old[:at] + old[at + 1 :], f"../{old}", f"{old}.1", "")
    return chance.choice(made if not others or chance.random() < 0.5 else others)


def rows(items: list[Any], chance: Random) -> None:
    """One item or run is dropped, doubled, moved or swapped with another, in place."""
    if not items:
        return
    one, two = chance.randrange(len(items)), chance.randrange(len(items))
    match chance.choice(("drop", "double", "swap", "move", "run")):
        case "drop":
            del items[one]
        case "double":
            items.insert(two, items[one])
        case "swap":
            items[one], items[two] = items[two], items[one]
        case "move":
            items.insert(two, items.pop(one))
        case "run":
            del items[one : one + chance.choice((2, 3, 5, 8))]


def junk(data: bytes, chance: Random) -> bytes:
    """Bytes changed, taken out, doubled or put in, without any idea of what they mean."""
    at, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 4, 8, 16, 64))
    value = chance.choice(EDGES)
    match chance.choice(("flip", "set", "field", "drop", "double", "cut", "more")):
        case "flip" if at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        case "set":
            return data[:at] + bytes([value & 255]) + data[at + 1 :]
        case "field":
            width = chance.choice((2, 4, 8))
            return data[:at] + struct.pack("<Q", value)[:width] + data[at + width :]
        case "drop":
            return data[:at] + data[at + size :]
        case "double":
            return data[: at + size] + data[at:]
        case "cut":
            return data[:at]
        case _:
            return data[:at] + bytes(size) + data[at:]

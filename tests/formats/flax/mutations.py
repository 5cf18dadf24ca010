"""A Flax file made a little wrong: another key, another value, another array inside its extension; and lengths that lie."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from tests.support.messagepack import Ext, Map, Raw, packed, unpacked
from tests.support.mutations.basics import EDGES, junk, number, rounds, rows, text

DTYPES = ("float32", "float16", "bfloat16", "float64", "int32", "uint8", "bool", "complex64", "V2", "object")


def mutate(data: bytes, chance: Random) -> bytes:
    """The tree with a few lies in it."""
    tree = unpacked(data)
    for _ in rounds(chance):
        maps = list(_maps(tree))
        place = chance.choice([each for each in maps if each] or maps)
        if not place or chance.random() < 0.2:
            rows(place, chance)
            continue
        i = chance.randrange(len(place))
        key, value = place[i]
        if chance.random() < 0.3:
            place[i] = (text(key, chance, [name for name, _ in place]) if isinstance(key, str) else key, value)
        else:
            place[i] = (key, _other(value, chance))
    return packed(tree)


def _maps(tree: Any) -> Iterator[Map]:
    if isinstance(tree, Map):
        yield tree
        for _, value in tree:
            yield from _maps(value)


def _other(value: Any, chance: Random) -> Any:
    match value:
        case Ext() if chance.random() < 0.8:
            return _array(value, chance)
        case Ext():
            return Ext(chance.choice((0, 1, 2, 3, 4, 127, 255)), value.data)
        case int() if not isinstance(value, bool):
            return max(min(number(value, chance), (1 << 64) - 1), -(1 << 63))
        case Map():
            return chance.choice((None, 1, [1, "a"], Map(), Raw(b"\xdf" + chance.choice(EDGES).to_bytes(8, "big")[4:])))
        case _:
            return chance.choice((None, 0.5, "a", b"a", [Map([("a", 1)])], Raw(b"\xc1"), Raw(b"\xc6\xff\xff\xff\xff")))


def _array(ext: Ext, chance: Random) -> Ext:
    try:
        inner = unpacked(ext.data)
    except (ValueError, IndexError, TypeError):  # a round before was here
        return ext
    match chance.choice(("shape", "shape", "dtype", "bytes", "length", "rows")):
        case "shape":
            sides = inner[0]
            if sides and chance.random() < 0.7:
                i = chance.randrange(len(sides))
                sides[i] = max(min(number(sides[i], chance), (1 << 64) - 1), -(1 << 63))
            else:
                rows(sides, chance)
        case "dtype":
            inner[1] = chance.choice(DTYPES)
        case "bytes":
            inner[2] = junk(inner[2], chance)
        case "length":
            raw = packed(inner)
            return Ext(ext.code, raw[: chance.randrange(len(raw))] if chance.random() < 0.5 else raw + b"\0")
        case _:
            rows(inner, chance)
    return Ext(ext.code, packed(inner))

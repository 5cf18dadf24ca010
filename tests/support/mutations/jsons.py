"""JSON as a tree: values, keys and entries changed anywhere in it, a key twice among them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

from .basics import number, rounds, rows, text

OTHERS = (None, True, False, 0, -1, 3, 1.5, "", [], [3], ["x"], [None, 3])


class Pairs(list[list[Any]]):
    """An object as its [key, value] entries: so that a key may stand twice."""


def mutate(data: bytes, chance: Random) -> bytes:
    """The document, a few of its values, keys or entries another."""
    whole = [parsed(data)]
    for _ in rounds(chance):
        change(whole, chance)
    return spelled(whole[0]).encode()


def parsed(data: bytes | str) -> Any:
    """The document, its objects as Pairs."""
    return json.loads(data, object_pairs_hook=lambda pairs: Pairs(map(list, pairs)))


def change(whole: list[Any], chance: Random) -> None:
    """Another value, key or entry somewhere in the tree that `whole` holds as its only item."""
    slots = list(places(whole))
    holder, i = chance.choice(slots)
    old = holder[i]
    if chance.random() < 0.1:
        other, j = chance.choice(slots)
        holder[i] = deepcopy(chance.choice((*OTHERS, other[j])))
        return
    match old:
        case bool() | None:
            holder[i] = chance.choice(OTHERS)
        case int():
            holder[i] = number(old, chance)
        case float():
            holder[i] = chance.choice((-old, 0.0, 1e300, 1e-300, 1, float("nan"), float("inf")))
        case str():
            holder[i] = text(old, chance, sorted({h[k] for h, k in slots if isinstance(h[k], str)}))
        case list():
            rows(old, chance)


def places(value: list[Any]) -> Iterator[tuple[list[Any], int]]:
    """Every (list, index) in the tree where a key or a value stands."""
    todo = [value]
    while todo:
        holder = todo.pop()
        slots = [(holder, i) for i in range(len(holder))]
        if isinstance(holder, Pairs):
            slots = [(pair, i) for pair in holder for i in (0, 1)]
        yield from slots
        todo += [at[i] for at, i in slots if isinstance(at[i], list)]


def spelled(value: Any) -> str:
    """The tree as JSON, its objects from their entries; a key that has become something else is its text."""
    match value:
        case Pairs():
            return "{" + ",".join(f"{spelled(k if isinstance(k, str) else repr(k))}:{spelled(v)}" for k, v in value) + "}"
        case list():
            return "[" + ",".join(map(spelled, value)) + "]"
        case _:
            return json.dumps(value)

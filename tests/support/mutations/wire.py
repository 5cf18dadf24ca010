"""Protobuf as a tree of fields, without any schema: fields dropped, doubled, moved, renumbered, with another value or length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from .basics import junk, number, rounds, rows, text

VARINT, LONG, BYTES, SHORT = 0, 1, 2, 5
FIXED = {LONG: 8, SHORT: 4}
KINDS = ((VARINT, 3), (LONG, bytes(8)), (SHORT, bytes(4)), (BYTES, b""), (3, b""), (4, b""))


@dataclass
class Field:
    """A field; `value` is its fields where it reads as a message. What `length` adds is a lie about its length."""

    number: int
    kind: int
    value: int | bytes | list[Field]
    length: int = 0
    padding: int = 0


Message = list[Field]


def mutate(data: bytes, chance: Random) -> bytes:
    """The message, a few of its fields another."""
    whole = parsed(data)
    if whole is None:
        return junk(data, chance)
    for _ in rounds(chance):
        change(whole, chance)
    return joined(whole)


def change(whole: Message, chance: Random) -> None:
    """Something else in one field, or in the order of a message's fields."""
    messages = list(inside(whole))
    fields = [field for message in messages for field in message]
    if not fields:
        return
    field = chance.choice(fields)
    match chance.choice(("rows", "value", "value", "value", "value", "number", "kind", "length", "padding", "graft")):
        case "rows":
            rows(chance.choice(messages), chance)
        case "number":
            field.number = chance.choice(
                (chance.choice(fields).number, 0, 3000, abs(number(field.number, chance)) & (1 << 29) - 1)
            )
        case "kind":
            field.kind, field.value = chance.choice(KINDS)
        case "length":
            field.length = chance.choice((1, -1, 8, 1 << 20, 1 << 31, 1 << 62))
        case "padding":
            field.padding = chance.choice((1, 4, 8, 9, 20))
        case "graft":
            chance.choice(messages).append(Field(chance.choice(fields).number, field.kind, raw(field.value)))
        case _:
            field.value = another(field, fields, chance)


def another(field: Field, fields: Message, chance: Random) -> int | bytes | Message:
    """Another value of the field's kind."""
    match field.value:
        case int(old):
            return number(old, chance) & (1 << 64) - 1
        case bytes(old) if old.isascii() and old.decode().isprintable():
            words = [other.value for other in fields if isinstance(other.value, bytes)]
            others = [word.decode() for word in words if word.isascii() and len(word) < 100]
            return text(old.decode(), chance, others).encode("utf-8", "surrogatepass")
        case bytes(old):
            return junk(old, chance)
        case list(old):
            rows(old, chance)
            return old


def inside(whole: Message) -> Iterator[Message]:
    """The message, and every message in it."""
    todo = [whole]
    while todo:
        message = todo.pop()
        yield message
        todo += [field.value for field in message if isinstance(field.value, list)]


def parsed(data: bytes) -> Message | None:
    """The fields of a message, None for bytes that are none."""
    found, at = list[Field](), 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == VARINT:
            value, at = varint(data, at)
            found.append(Field(key >> 3, kind, value))
            continue
        size, at = varint(data, at) if kind == BYTES else (FIXED.get(kind, len(data)), at)
        content = data[at : at + size]
        at += size
        if at > len(data) or not 0 < key >> 3 < 5000:
            return None
        message = parsed(content) if kind == BYTES and len(content) > 1 else None
        found.append(Field(key >> 3, kind, message or content))
    return found if joined(found) == data else None


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            break
    return value, at


def joined(message: Message) -> bytes:
    """The message's bytes, enclosing lengths mended."""
    out = b""
    for field in message:
        out += spelled(field.number << 3 | field.kind)
        if isinstance(field.value, int):
            out += spelled(field.value, field.padding)
            continue
        content = raw(field.value)
        out += (spelled(max(len(content) + field.length, 0), field.padding) if field.kind == BYTES else b"") + content
    return out


def raw(value: int | bytes | Message) -> bytes | int:
    """A value without its tree."""
    return joined(value) if isinstance(value, list) else value


def spelled(value: int, padding: int = 0) -> bytes:
    """A varint, longer than it need be by some bytes that add nothing."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    if padding:
        out[-1] |= 128
        out += b"\x80" * (padding - 1) + b"\0"
    return bytes(out)

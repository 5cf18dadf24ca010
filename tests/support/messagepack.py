"""MessagePack by a reader and a writer that share nothing with the package: values as Python's, maps as lists of pairs."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

_NUMBERS = {0xCA + i: f">{code}" for i, code in enumerate("fdBHIQbhiq")}


class Ext(NamedTuple):
    """An extension: its type, and what is in it."""

    code: int
    data: bytes


class Map(list):
    """A map as its pairs, in their order; one key may stand twice."""


class Raw(bytes):
    """Bytes that are written as they are."""


def packed(value: Any) -> bytes:
    """A value as msgpack-python writes it."""
    match value:
        case Raw():
            return bytes(value)
        case None | False | True:
            return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
        case int():
            return _integer(value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            raw = value.encode("utf-8", "surrogatepass")
            return (bytes([0xA0 | len(raw)]) if len(raw) < 32 else _length(raw, 0xD9)) + raw
        case bytes():
            return _length(value, 0xC4) + value
        case Ext():
            size = len(value.data)
            head = bytes([0xD4 + size.bit_length() - 1]) if size in (1, 2, 4, 8, 16) else _length(value.data, 0xC7)
            return head + bytes([value.code & 255]) + value.data
        case Map() | dict():
            pairs = list(value.items()) if isinstance(value, dict) else value
            return _count(len(pairs), 0x80, 0xDE) + b"".join(packed(k) + packed(v) for k, v in pairs)
        case _:
            return _count(len(value), 0x90, 0xDC) + b"".join(map(packed, value))


def unpacked(data: bytes) -> Any:
    """The value in these bytes, all of them."""
    value, stop = _value(data, 0)
    if stop != len(data):
        raise ValueError(f"{len(data) - stop} bytes are left")
    return value


def array(shape: tuple[int, ...], dtype: str, data: bytes, code: int = 1) -> Ext:
    """An array as flax keeps it."""
    return Ext(code, packed([list(shape), dtype, data]))


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    codes = (0xCC, 0xCD, 0xCE, 0xCF) if value >= 0 else (0xD0, 0xD1, 0xD2, 0xD3)
    bits = value.bit_length() if value >= 0 else (~value).bit_length() + 1
    code = next(code for i, code in enumerate(codes) if bits <= 8 << i)
    return bytes([code]) + struct.pack(_NUMBERS[code], value)


def _length(data: bytes, first: int) -> bytes:
    width = next(i for i in range(3) if len(data) < 1 << (8 << i))
    return bytes([first + width]) + len(data).to_bytes(1 << width, "big")


def _count(count: int, small: int, large: int) -> bytes:
    if count < 16:
        return bytes([small | count])
    return bytes([large]) + count.to_bytes(2, "big") if count < 1 << 16 else bytes([large + 1]) + count.to_bytes(4, "big")


def _value(data: bytes, at: int) -> tuple[Any, int]:
    first = data[at]
    at += 1
    if first < 0x80 or first >= 0xE0:
        return first - (256 if first >= 0xE0 else 0), at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in _NUMBERS:
        (number,) = struct.unpack_from(_NUMBERS[first], data, at)
        return number, at + struct.calcsize(_NUMBERS[first])
    if 0xD4 <= first <= 0xD8:
        return Ext(data[at], data[at + 1 : at + 1 + (1 << first - 0xD4)]), at + 1 + (1 << first - 0xD4)
    kind, count, at = _sized(first, data, at)
    if kind == "ext":
        return Ext(data[at], data[at + 1 : at + 1 + count]), at + 1 + count
    if kind in ("text", "bytes"):
        raw = data[at : at + count]
        return raw.decode() if kind == "text" else raw, at + count
    items = []
    for _ in range(count * 2 if kind == "map" else count):
        item, at = _value(data, at)
        items.append(item)
    return (Map(zip(items[::2], items[1::2], strict=True)) if kind == "map" else items), at


def _sized(first: int, data: bytes, at: int) -> tuple[str, int, int]:
    if first < 0xC0:
        kind = "map" if first < 0x90 else "list" if first < 0xA0 else "text"
        return kind, first & (31 if kind == "text" else 15), at
    kinds = {0xC4: "bytes", 0xC7: "ext", 0xD9: "text", 0xDC: "list", 0xDE: "map"}
    begin = max(code for code in kinds if code <= first)
    width = (2 if begin >= 0xDC else 1) << first - begin
    return kinds[begin], int.from_bytes(data[at : at + width], "big"), at + width

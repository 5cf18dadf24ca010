"""The file of known architectures, made by `make catalogue`: fixed records behind sorted keys, found without reading the rest.

    magic "chkptcat", 6 × uint32: version, names, shapes, most names in a network, bytes of the head, of the heap
    head     JSON: the libraries whose facts these are, with version and licence
    names    names × (key 5 bytes, uint16: line of the stems × 4 + forms), sorted
    shapes   shapes × (key 5 bytes, architectures uint16), sorted
    heap     zlib: one JSON value a line, which records name by its number

A key is a sum over a network's tensors modulo 2^40, of the hash of each name, or of each name and shape (`name_hash`,
`shape_hash`): whatever their order, and what a child adds can be taken off. All integers are little-endian.
"""

from __future__ import annotations

import json
import struct
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.discovery.catalogue.entry import Architecture, KnownNorm, KnownStem

try:
    from _blake2 import blake2b  # hashlib brings OpenSSL: 6 ms
except ImportError:
    from hashlib import blake2b

FILE = Path(__file__).with_name("known.bin")
MAGIC = b"chkptcat"
VERSION = 1
HEAD = struct.Struct("<8s6I")
KEY_BYTES = 5
KEY_MASK = (1 << 8 * KEY_BYTES) - 1
NAME_RECORD = struct.Struct(f"<{KEY_BYTES}sH")
SHAPE_RECORD = struct.Struct(f"<{KEY_BYTES}sH")

FRAME, WHOLE, BODY = 0, 1, 2
"""Forms: the names are those of a whole network, of one without the child that holds its head, or of what stands around a child
that is a network: segmentation-models' decoders around their encoders."""

FEWEST_OF_ALL = 12
"""Of a whole network."""

_NOT_WEIGHTS = ("num_batches_tracked", "relative_position_index", "attn_mask", "position_ids")
"""Ends of names that some versions of a library write and others do not."""


def is_counted(name: str) -> bool:
    """Whether a tensor belongs to what tells a network."""
    return not name.endswith(_NOT_WEIGHTS)


def name_hash(name: str) -> int:
    """40 bits of a name."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest(), "little")


def shape_hash(name: str, shape: Sequence[int]) -> int:
    """40 bits of a name and a shape."""
    return name_hash(f"{name} {'x'.join(map(str, shape))}")


class StemShape(NamedTuple):
    """A stem as names know it: `window` is the rest of its shape in the order of its layout, without O and I; `pixels` are the
    pixels that a folded channel axis holds for each channel. The layout is empty where a Linear layer folds pixels and channels
    in an order that is not known."""

    key: str
    layout: str
    window: tuple[int, ...]
    pixels: int = 1


class Known(NamedTuple):
    """What a set of names tells: `forms` are WHOLE, BODY or both, or FRAME, `variants` the stems that networks with these names
    have: in two dimensions, in three."""

    forms: int
    variants: tuple[tuple[StemShape, ...], ...]


class Catalogue:
    """The open file."""

    def __init__(self, data: bytes) -> None:
        magic, version, names, shapes, self.most_names, head, self._heap_bytes = HEAD.unpack_from(data)
        if (magic, version) != (MAGIC, VERSION):
            raise ValueError("not a catalogue of this version")
        self.about: bytes = data[HEAD.size : HEAD.size + head]
        first = HEAD.size + head
        second = first + names * NAME_RECORD.size
        self._names, self._shapes = data[first:second], data[second : second + shapes * SHAPE_RECORD.size]
        self._packed = data[second + shapes * SHAPE_RECORD.size :]

    def named(self, key: int) -> Known | None:
        """What the names with this key tell; None where they are not known."""
        record = _record(self._names, NAME_RECORD, key)
        if record is None:
            return None
        stems, forms = divmod(record[1], 4)
        variants = ((StemShape(k, layout, tuple(w), pixels) for k, layout, w, pixels in stems) for stems in self._value(stems))
        return Known(forms, tuple(tuple(variant) for variant in variants))

    def shaped(self, key: int) -> tuple[Architecture, ...]:
        """The architectures whose names and shapes have this key."""
        record = _record(self._shapes, SHAPE_RECORD, key)
        return tuple(self._architecture(*self._value(number)) for number in self._value(record[1])) if record else ()

    def _architecture(self, name: str, facts: int) -> Architecture:
        """An architecture: those of a family differ by their names."""
        library, lines, classes, norms, order, within, stems, head = (self._value(number) for number in self._value(facts))
        return Architecture(
            library,
            name,
            tuple(KnownStem(*map(_plain, stem)) for stem in stems),
            tuple(line.replace("{name}", name) for line in lines),
            (classes[0], classes[1]) if classes else None,
            tuple(KnownNorm(tag, *map(_plain, self._value(numbers))) for tag, numbers in norms),
            order,
            within,
            head,
        )

    @cached_property
    def _lines(self) -> list[bytes]:
        return zlib.decompress(self._packed, bufsize=self._heap_bytes).split(b"\n")

    def _value(self, number: int) -> Any:
        return json.loads(self._lines[number])


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _record(table: bytes, record: struct.Struct, key: int) -> tuple[Any, ...] | None:
    """The record with a key, by halving."""
    wanted, starts = key.to_bytes(KEY_BYTES, "big"), range(0, len(table), record.size)
    at = bisect_left(starts, wanted, key=lambda start: table[start : start + KEY_BYTES])
    found = record.unpack_from(table, starts[at]) if at < len(starts) else None
    return found if found and found[0] == wanted else None


@cache
def catalogue() -> Catalogue:
    """The catalogue of this package."""
    return Catalogue(FILE.read_bytes())

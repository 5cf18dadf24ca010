"""The header of a safetensors file: JSON that names tensors, their types, shapes and spans of the data.

There may be hundreds of thousands. A header as the library writes it is read and written by one expression, in half the
time that JSON takes; any other, and a wrong one, by `json`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from chkpt_channels.containers.json import reader as json_reader
from chkpt_channels.core.dtypes import BY_NAME, DType
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.core.tensors import Tensor

ALIGN_BYTES = 8
METADATA = "__metadata__"
FIELDS = frozenset({"dtype", "shape", "data_offsets"})
NUMBER_LIMIT = 1 << 63
"""Sizes and offsets have at most 63 bits, as in numpy."""
Span = tuple[int, int]
Kind = tuple[DType, tuple[int, ...], int]
_AT = 8
"""Where the header begins in the file."""
_TEXT = pattern(rb'"(?:[^"\\]|\\.)*"')
_HEAD = pattern(r'\{(?:"__metadata__":\{(?:"(?:[^"\\]|\\.)*"[:,]?)*\},)?')
"""How a header begins that the library wrote: with what comes before the first tensor."""
_NUMBER = "(?:0|[1-9][0-9]{0,17})"
_ENTRY = pattern(
    r'"([^"\\\x00-\x1f]*)":\{"dtype":"([A-Z0-9_]+)",'
    rf'"shape":\[((?:{_NUMBER},)*{_NUMBER}|)\],"data_offsets":\[({_NUMBER}),({_NUMBER})\]\}}([,}}])'
)
"""How each tensor follows there: its name, dtype and shape, where its elements begin and end, and what comes after it."""


class Header(NamedTuple):
    """What a header says. `head` is how one that the library wrote begins, "" for any other."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]
    spans: dict[str, Span]
    head: str = ""


def read(raw: bytes, location: Location) -> Header:
    """The header, strictly: nothing but what the format knows. Raises DamagedError."""
    return _usual(raw, location) or _any(raw, location)


def _usual(raw: bytes, location: Location) -> Header | None:
    """A header as the library writes it; None where anything in it is otherwise."""
    text = raw.decode(errors="replace")
    head = _HEAD.match(text)
    if not head or "\ufffd" in text:
        return None
    tensors: dict[str, Tensor] = {}
    spans: dict[str, Span] = {}
    kinds: dict[tuple[str, str], Kind | None] = {}
    json_reader.check_count(raw, location, _AT)
    at, after = head.end(), ","
    for entry in _ENTRY.finditer(text, at):
        (start, stop), before = entry.span(), after
        name, dtype, shape, first, last, after = entry.groups()
        if (kind := kinds.get((dtype, shape))) is None:
            kind = kinds[dtype, shape] = _kind(dtype, shape)
        begin, end = int(first), int(last)
        if kind is None or before != "," or start != at or kind[2] != end - begin or name in tensors:
            return None
        tensors[name], spans[name] = Tensor(name, kind[0], kind[1]), (begin, end)
        at = stop
    if after != "}" or text[at:].strip(" ") or METADATA in tensors:
        return None
    metadata = _parsed(f"{head.group().rstrip(',')}}}".encode(), location).get(METADATA, {})
    return Header(metadata, tensors, spans, head.group())


def _kind(dtype: str, shape: str) -> Kind | None:
    """The dtype and shape, and the bytes of such a tensor; None where the general way refuses it."""
    sizes = tuple(int(size) for size in shape.split(",")) if shape else ()
    known = BY_NAME.get(dtype)
    if known is None or len(sizes) > LIMITS.axes or prod(sizes) * known.bits % 8:
        return None
    return known, sizes, prod(sizes) * known.bits // 8


def _any(raw: bytes, location: Location) -> Header:
    entries = _parsed(raw, location)
    metadata = entries.pop(METADATA, None) or {}
    header = Header(metadata, {}, {})
    for name, entry in entries.items():
        header.tensors[name], header.spans[name] = _entry(name, entry, location)
    return header


def _parsed(raw: bytes, location: Location) -> dict[str, Any]:
    entries = json_reader.loads(raw, location, _AT)
    if not isinstance(entries, dict):
        raise location.damaged("its header is not a JSON object", at=_AT)
    metadata = entries.get(METADATA)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise location.at(METADATA).damaged("must map text to text", at=_AT)
    return entries


def _entry(name: str, entry: Any, file: Location) -> tuple[Tensor, Span]:
    """One tensor and its span of the data. There may be hundreds of thousands: only the wrong one gets a Location."""
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        raise file.at(name).damaged("must have the fields dtype, shape and data_offsets, and no others", at=_AT)
    dtype, shape, offsets = BY_NAME.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise file.at(name).damaged(f"has the unknown dtype {entry['dtype']!r}", at=_AT)
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise file.at(name).damaged(
            "shape must list non-negative integers, and data_offsets two of them in ascending order", at=_AT
        )
    if len(shape) > LIMITS.axes:
        file.at(name).check_limit("axes", len(shape), LIMITS.axes, at=_AT)
    size = offsets[1] - offsets[0]
    if prod(shape) * dtype.bits != size * 8:
        message = f"shape {list(shape)} of {dtype.name} does not fill the {size} bytes of its data_offsets"
        raise file.at(name).damaged(message, at=_AT)
    return Tensor(name, dtype, tuple(shape)), (offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    """Whether that is a list of non-negative integers of at most 63 bits; a bool is not one."""
    if not isinstance(value, list):
        return False
    for number in value:  # noqa: SIM110 # a plain loop is seven times as fast as min and max
        if type(number) is not int or not 0 <= number < NUMBER_LIMIT:
            return False
    return True


def changed(raw: bytes, header: Header, shapes: Mapping[str, Sequence[int]], spans: Mapping[str, Span]) -> bytes:
    """The header with other shapes and spans, as the file has it: with its length. A tensor without a span is left out."""
    if header.head and spans:
        named = ((t, shapes.get(name, t.shape), spans[name]) for name, t in header.tensors.items() if name in spans)
        texts = (
            f'"{t.name}":{{"dtype":"{t.dtype.name}","shape":[{",".join(map(str, shape))}],"data_offsets":[{begin},{end}]}}'
            for t, shape, (begin, end) in named
        )
        return framed(f"{header.head}{','.join(texts)}}}".encode())
    entries: dict[str, Any] = json.loads(raw)
    for name in header.tensors:
        if name not in spans:
            del entries[name]
            continue
        entries[name]["data_offsets"] = spans[name]
        if name in shapes:
            entries[name]["shape"] = shapes[name]
    return framed(json.dumps(entries, separators=_separators(raw), ensure_ascii=raw.isascii()).encode())


def _separators(header: bytes) -> tuple[str, str]:
    """How this file's writer spaced its JSON, so that an edit changes only numbers. Names and metadata, which may hold JSON
    themselves, show nothing of it."""
    header = _TEXT.sub(b'""', header)
    return (", " if b'", "' in header or b"}, " in header else ",", ": " if b'": ' in header else ":")


def framed(header: bytes) -> bytes:
    """The header as the file has it: its length, and spaces that align the elements."""
    header += b" " * (-len(header) % ALIGN_BYTES)
    return struct.pack("<Q", len(header)) + header

"""The elements of an ONNX model's stored tensors: raw bytes, typed numbers, or external data; and the model without them.

Source: onnx/onnx.proto (TensorProto) of onnx 1.23.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

from chkpt_channels.containers.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, Message, bytes_field
from chkpt_channels.core.errors import Location
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.onnx import schema
from chkpt_channels.formats.onnx.model import Weight
from chkpt_channels.storage.source import CHUNK_BYTES

_WIRES = {schema.TENSOR_RAW: BYTES, schema.TENSOR_FLOATS: FIXED32, schema.TENSOR_DOUBLES: FIXED64}
"""The wire types of elements that are no varints; of all but raw ones many may be packed as bytes."""
_FIELDS = {
    **{"F32": schema.TENSOR_FLOATS, "C64": schema.TENSOR_FLOATS, "F64": schema.TENSOR_DOUBLES, "C128": schema.TENSOR_DOUBLES},
    **{"I64": schema.TENSOR_INT64S, "U32": schema.TENSOR_UINT64S, "U64": schema.TENSOR_UINT64S},
}
"""The field of each type whose elements are not in int32_data, as those of all others are, the 16- and 8-bit floats as bits."""
CONTINUED = bytes(range(128, 256))
"""The bytes of a varint but its last."""


class Payload(NamedTuple):
    """Where a weight's elements are: [start, stop) of the model, or of the data file `path`."""

    start: int
    stop: int
    path: Path | None = None


def payload(weight: Weight, location: Location, folder: Path) -> Payload | None:
    """Locate a weight's elements, None where they are typed numbers. Raises DamagedError where they are missing, stored twice, of
    another size, or outside the folder.

    A model may name any file: one outside its own folder is refused, as the conversion would copy it."""
    location = location.at(weight.name)
    fields = [f for n in schema.TENSOR_ELEMENTS for f in weight.message.fields.get(n, ())]
    if foreign := [f for f in fields if f.wire not in (_WIRES.get(f.number, VARINT), BYTES)]:
        raise location.damaged(f"a field has the wire type {foreign[0].wire} instead of {BYTES}", at=foreign[0].start)
    if weight.is_external:
        if any(f.stop > f.value for f in fields):
            raise location.damaged("holds elements, but says that they are in another file", at=fields[0].start)
        return _external(weight, location, folder)
    raw = [f for f in fields if f.number == schema.TENSOR_RAW]
    if raw and len(raw) != len(fields):
        raise location.damaged("holds both raw and typed elements", at=raw[0].start)
    if raw:
        if (have := raw[-1].stop - raw[-1].value) != weight.size:
            raise location.damaged(f"holds {have} bytes, its shape needs {weight.size}", at=raw[-1].value)
        return Payload(raw[-1].value, raw[-1].stop)
    own = _FIELDS.get(weight.dtype.name, schema.TENSOR_INT32S)
    is_real = own in _WIRES
    if strange := [f for f in fields if f.stop > f.value and f.number != own]:
        raise location.damaged(f"holds {weight.dtype.name} elements in a field of another type", at=strange[0].start)
    if is_real and fields and (have := sum(f.stop - f.value for f in fields)) != weight.size:
        raise location.damaged(f"holds {have} bytes, its shape needs {weight.size}", at=fields[0].start)
    needed = prod(weight.shape) if weight.dtype.bits >= 8 else weight.size  # narrow ones share an integer
    if not is_real and fields and (have := sum(_count(weight.message, f) for f in fields)) != needed:
        raise location.damaged(f"holds {have} elements, its shape needs {needed}", at=fields[0].start)
    if not fields and weight.size:
        raise location.damaged("has no elements", at=weight.message.start)
    return None


def _count(message: Message, field: Field) -> int:
    """How many integers a field holds: each ends in a byte below 128."""
    if field.wire != BYTES:
        return 1
    spans = ((at, min(at + CHUNK_BYTES, field.stop)) for at in range(field.value, field.stop, CHUNK_BYTES))
    return sum(len(message.reader.bytes(*span).translate(None, CONTINUED)) for span in spans)


def _external(weight: Weight, location: Location, folder: Path) -> Payload:
    entries = weight.message.messages(schema.TENSOR_EXTERNAL)
    keys = [entry.text(1) for entry in entries]
    if len(set(keys)) != len(keys):
        raise location.damaged("its external location is given twice", at=weight.message.start)
    external = weight.external()
    name = external.get("location", "")
    if not name or "\0" in name or name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise location.damaged(f"its external location {name!r} leaves the model's folder", at=weight.message.start)
    try:
        start = int(external.get("offset", "0"))
        length = int(external.get("length", str(weight.size)))  # without one: the rest of the file, see external_data
    except ValueError:
        raise location.damaged("its external offset and length must be integers", at=weight.message.start) from None
    if start < 0 or length != weight.size:
        raise location.damaged(f"its external part has {length} bytes, its shape needs {weight.size}", at=weight.message.start)
    return Payload(start, start + length, folder / name)


_UNSIGNED = {8: "B", 16: "H", 32: "I", 64: "Q"}


def typed_elements(weight: Weight) -> bytes:
    """The elements of a weight stored as typed numbers, as raw little-endian bytes."""
    own, message = _FIELDS.get(weight.dtype.name, schema.TENSOR_INT32S), weight.message
    if own in _WIRES:
        return b"".join(message.raw(f) for f in message.fields.get(own, ()))
    bits = max(8, weight.dtype.bits)
    values = [value & (1 << bits) - 1 for value in message.numbers(own)]
    return struct.pack(f"<{len(values)}{_UNSIGNED[bits]}", *values)


_INNER = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
}
SMALL_BYTES = 512
"""Messages that are copied whole: to take them apart costs more than it saves."""


def skeleton(message: Message, kind: str = "model") -> bytes:
    """The message without the payloads of large tensors, which a schema can parse at any size (26 KB of a model of 102 MB)."""
    out = []
    for field in message.in_order():
        inner = _INNER.get(kind, {}).get(field.number)
        size = field.stop - field.value
        if kind == "tensor" and field.number in schema.TENSOR_ELEMENTS and size > SMALL_BYTES // 2:
            continue
        if inner and size > SMALL_BYTES:
            out.append(bytes_field(field.number, skeleton(message.message(field), inner)))
        else:
            out.append(message.reader.source.read(field.start, field.stop))
    return b"".join(out)

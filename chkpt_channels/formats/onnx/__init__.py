"""ONNX: a protobuf message whose graph holds nodes, stored tensors and declared shapes.

    ModelProto { graph: GraphProto { node*, initializer*, input*, output*, value_info* } }

Read as spans of the wire format (`model`), traced from the image on (`dataflow`), edited by whole fields (`edits`): unknown
fields, field order and everything else stay as they are, at any size. A skeleton of 26 KB describes a file of 102 MB, and files
over 2 GB, which protobuf refuses to parse, are read likewise. The validator is onnx's own schema.
Source: onnx/onnx.proto and docs/IR.md of onnx 1.23.
"""

from __future__ import annotations

from chkpt_channels.formats.base import Format
from chkpt_channels.storage.source import Source

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types. Source: protobuf.dev/programming-guides/encoding."""
GRAPH = 7
"""The field of a ModelProto that holds its graph."""
FIELD_HEAD_BYTES = 20
"""The longest tag and length: two varints of ten bytes."""

_WIRES = {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES, 25: BYTES}
"""The fields of a ModelProto and their wire types."""
_FIXED = {FIXED64: (0, 8), FIXED32: (0, 4)}


def sniff(source: Source) -> bool:
    """A protobuf whose first fields could be a ModelProto's, and which has a graph."""
    head = source.head[:16]
    if not head or head[0] not in (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42):
        return False
    if head[4:9] == b"\0\0\0\0{":  # the length of a JSON header, as safetensors has it, may look like a graph's
        return False
    return _top_fields_look_right(source)


def _top_fields_look_right(source: Source) -> bool:
    """Walk the top-level fields: known numbers of a ModelProto with their wire types, one of them the graph."""
    at = 0
    while at < source.size:
        head = source.read(at, min(at + FIELD_HEAD_BYTES, source.size))
        tag, length = _peek(head)
        if _WIRES.get(tag >> 3, tag & 7) != tag & 7 or not tag >> 3 or not length:
            return False
        if tag >> 3 == GRAPH:
            return True
        value, more = _FIXED.get(tag & 7) or _peek(head[length:])
        at += length + more + (value if tag & 7 == BYTES else 0)
    return False


def _peek(raw: bytes) -> tuple[int, int]:
    """(value, length) of the varint at the beginning; length 0 where there is none."""
    value = 0
    for i, byte in enumerate(raw[:10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, i + 1
    return 0, 0  # the longest varint has ten bytes


FORMATS = (Format("onnx", "ONNX", frozenset({".onnx"}), sniff, "onnx.checkpoint:Onnx"),)

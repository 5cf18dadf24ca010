"""safetensors: a length, a JSON header, and the elements without holes.

    u64 n · n bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}} · elements

Offsets count from the end of the header. The header is padded with spaces so that the elements begin at a multiple of 8. Writers
sort tensors by element size, then by name: file order is not module order. `__metadata__.format` names the framework (pt, flax,
mlx, tf, np): in pt, kernels are OIHW; flax and MLX write HWIO and OHWI.
Source: https://github.com/huggingface/safetensors (README, "Format"); the validator is its own library.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from typing import Any

from chkpt_channels.containers.json import reader as json_reader
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import Edits, Tensor, TensorEdit
from chkpt_channels.formats.base import Checkpoint, FlatWriter, Format, Loading
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice

ALIGN_BYTES = 8
METADATA = "__metadata__"
FIELDS = frozenset({"dtype", "shape", "data_offsets"})
INCOMPLETE = ("MetadataIncompleteBuffer", "incomplete metadata, file not fully covered")
"""The end of what the library says of a header without its elements, which it looks for last: 0.5, and 0.6 on."""
NUMBER_LIMIT = 1 << 63
"""Sizes and offsets have at most 63 bits, as in numpy."""
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NOT_KEPT = frozenset({"C32", "C128", "QI8", "QU8", "QI32", "QU4x2", "QU2x4", "U4", "I4"})
"""Types that the format has no name for."""


def sniff(source: Source) -> bool:
    """A brace after eight bytes that are not text: the length of a header is never eight letters, and has a zero below 100 MB. In
    msgpack the brace may be the number 123, before a key."""
    length, opening = source.head[:8], source.head[8:10]
    return opening[:1] == b"{" and opening.isascii() and (0 in length or not (length.isascii() or length.isalnum()))


class Safetensors(Checkpoint):
    """One safetensors file. `metadata` is its `__metadata__`."""

    ordered = False
    takes_out = True

    @property
    def torch(self) -> bool:
        return self.metadata.get("format") == "pt"

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        (length,) = struct.unpack("<Q", source.read(0, 8))
        location = source.location
        location.check_limit("bytes of header", length, LIMITS.header_bytes, at=0)
        if 8 + length > source.size:
            raise location.damaged(f"is cut off inside its header of {length} bytes", at=source.size)
        self._header = source.read(8, 8 + length)
        self._begin = 8 + length
        self._spans: dict[str, tuple[int, int]] = {}
        entries = _parse(self._header, location)
        self.metadata: dict[str, str] = entries.pop(METADATA, None) or {}
        for name, entry in entries.items():
            self.tensors[name], self._spans[name] = _entry(name, entry, location)
        self._check_spans()

    def _check_spans(self) -> None:
        at = 0
        for name, (begin, end) in sorted(self._spans.items(), key=lambda item: item[1]):
            if begin != at:
                raise self.source.location.at(name).damaged(
                    f"its elements begin at {begin} of the data; the next free byte is {at}", at=self._begin + begin
                )
            at = end
        if self._begin + at != self.source.size:
            size = self.source.size - self._begin
            raise self.source.location.damaged(
                f"holds {size} bytes of data, its header describes {at}", at=self._begin + min(at, size)
            )

    def chunks(self, name: str) -> Iterator[bytes]:
        begin, end = self._spans[name]
        return self.source.chunks(self._begin + begin, self._begin + end)

    def loading(self, path: str, group: str | None = None) -> Loading:
        return Loading(("import safetensors.torch",), state=f"safetensors.torch.load_file({path!r})")

    def splices(self, edits: Edits) -> list[Splice]:
        if not (edits.tensors or edits.removed):
            return []
        header: dict[str, Any] = json.loads(self._header)
        splices, shift = [], 0
        for name, (begin, end) in sorted(self._spans.items(), key=lambda item: item[1]):
            edit, size = edits.tensors.get(name), end - begin
            if name in edits.removed:
                del header[name]
                splices.append(Splice.of(self._begin + begin, self._begin + end, b""))
                shift -= size
                continue
            if edit:
                size = prod(edit.shape) * self.tensors[name].dtype.bits // 8
                header[name]["shape"] = list(edit.shape)
                splices.append(Splice(self._begin + begin, self._begin + end, size, partial(_payload, edit)))
            header[name]["data_offsets"] = [begin + shift, begin + shift + size]
            shift += size - (end - begin)
        text = json.dumps(header, separators=_separators(self._header), ensure_ascii=self._header.isascii()).encode()
        return [Splice.of(0, self._begin, _framed(text)), *splices]

    def preload_validator(self) -> None:
        import safetensors  # noqa: F401 # for validate

    def validate(self, path: str) -> None:
        if not path:
            return
        from safetensors import SafetensorError, deserialize, safe_open

        try:
            deserialize(struct.pack("<Q", len(self._header)) + self._header)  # type: ignore[no-untyped-call] # it has no types
        except SafetensorError as error:  # a header that is right lacks nothing but the elements then, and numpy is not imported
            if str(error).endswith(INCOMPLETE):
                return
        try:
            with safe_open(path, framework="numpy") as opened:
                opened.keys()
        except SafetensorError as error:
            raise RuntimeError(f"the safetensors library refuses the output: {error}") from error


def _keeps(tensor: Tensor) -> bool:
    return tensor.key != METADATA and tensor.dtype.name not in _NOT_KEPT


def _write(tensors: Sequence[Tensor], read: Callable[[str], Iterator[bytes]], out: int) -> None:
    """Widest elements first and then by name, as the library orders them, so that all are aligned."""
    from chkpt_channels.storage.stream_copy import write_at

    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.bits, tensor.name))
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    at = 0
    for tensor in ordered:
        span = [at, at + tensor.size]
        header[tensor.name] = {"dtype": tensor.dtype.name, "shape": list(tensor.shape), "data_offsets": span}
        at += tensor.size
    text = _framed(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    write_at(out, memoryview(text), 0)
    at = len(text)
    for tensor in ordered:
        for piece in read(tensor.name):
            write_at(out, memoryview(piece), at)
            at += len(piece)


def _framed(header: bytes) -> bytes:
    """The header as the file has it: its length, and spaces that align the elements."""
    header += b" " * (-len(header) % ALIGN_BYTES)
    return struct.pack("<Q", len(header)) + header


def _payload(edit: TensorEdit) -> bytes:
    return edit.tobytes()


def _separators(header: bytes) -> tuple[str, str]:
    """How this file's writer spaced its JSON, so that an edit changes only numbers. Names and metadata, which may hold JSON
    themselves, show nothing of it."""
    header = _TEXT.sub(b'""', header)
    return (", " if b'", "' in header or b"}, " in header else ",", ": " if b'": ' in header else ":")


def _parse(raw: bytes, location: Location) -> dict[str, Any]:
    """The header, strictly: nothing but what the format knows."""
    entries = json_reader.loads(raw, location, 8)
    if not isinstance(entries, dict):
        raise location.damaged("its header is not a JSON object", at=8)
    metadata = entries.get(METADATA)
    if metadata is not None and not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise location.at(METADATA).damaged("must map text to text", at=8)
    return entries


def _entry(name: str, entry: Any, file: Location) -> tuple[Tensor, tuple[int, int]]:
    """One tensor and its span of the data. There may be hundreds of thousands: only the wrong one gets a Location."""
    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        raise file.at(name).damaged("must have the fields dtype, shape and data_offsets, and no others", at=8)
    dtype, shape, offsets = BY_NAME.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise file.at(name).damaged(f"has the unknown dtype {entry['dtype']!r}", at=8)
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise file.at(name).damaged(
            "shape must list non-negative integers, and data_offsets two of them in ascending order", at=8
        )
    if len(shape) > LIMITS.axes:
        file.at(name).check_limit("axes", len(shape), LIMITS.axes, at=8)
    size = offsets[1] - offsets[0]
    if prod(shape) * dtype.bits != size * 8:
        message = f"shape {list(shape)} of {dtype.name} does not fill the {size} bytes of its data_offsets"
        raise file.at(name).damaged(message, at=8)
    return Tensor(name, dtype, tuple(shape)), (offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    """Whether that is a list of non-negative integers of at most 63 bits; a bool is not one."""
    if not isinstance(value, list):
        return False
    for number in value:  # noqa: SIM110 # a plain loop is seven times as fast as min and max
        if type(number) is not int or not 0 <= number < NUMBER_LIMIT:
            return False
    return True


WRITER = FlatWriter(_keeps, _write)
FORMATS = (
    Format(
        "safetensors",
        "safetensors",
        frozenset({".safetensors"}),
        sniff,
        "safetensors:Safetensors",
        flat=True,
        writer="safetensors:WRITER",
    ),
)

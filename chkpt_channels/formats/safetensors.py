"""safetensors: a length, a JSON header, and the elements without holes.

    u64 n · n bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}} · elements

Offsets count from the end of the header. The header is padded with spaces so that the elements begin at a multiple of 8. Writers
sort tensors by element size, then by name: file order is not module order. `__metadata__.format` names the framework (pt, flax,
mlx, tf, np): in pt, kernels are OIHW; flax and MLX write HWIO and OHWI.
Source: https://github.com/huggingface/safetensors (README, "Format"); the validator is its own library.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from math import prod

from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import Edits, Tensor
from chkpt_channels.formats import safetensors_header
from chkpt_channels.formats.base import Checkpoint, FlatWriter, Format, Loading
from chkpt_channels.formats.safetensors_header import METADATA, framed
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice

SUFFIXES = frozenset({".safetensors"})
INCOMPLETE = ("MetadataIncompleteBuffer", "incomplete metadata, file not fully covered")
"""The end of what the library says of a header without its elements, which it looks for last: 0.5, and 0.6 on."""
_NOT_KEPT = frozenset({"C32", "C128", "QI8", "QU8", "QI32", "QU4x2", "QU2x4", "U4", "I4"})
"""Types that the format has no name for."""


def sniff(source: Source) -> bool:
    """A brace after eight bytes that are not text: the length of a header is never eight letters, and has a zero below 100 MB. In
    msgpack the brace may be the number 123, before a key."""
    begin = source.read(0, min(10, source.size))
    length, opening = begin[:8], begin[8:]
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
        source.expect([(0, 8 + length)])
        self._header = source.read(8, 8 + length)
        self._begin = 8 + length
        self._read = safetensors_header.read(self._header, location)
        self.metadata, self.tensors, self._spans = self._read.metadata, self._read.tensors, self._read.spans
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
        splices, spans, shift = [], {}, 0
        for name, (begin, end) in sorted(self._spans.items(), key=lambda item: item[1]):
            edit, size = edits.tensors.get(name), end - begin
            if name in edits.removed:
                splices.append(Splice.of(self._begin + begin, self._begin + end, b""))
                shift -= size
                continue
            if edit:
                size = prod(edit.shape) * self.tensors[name].dtype.bits // 8
                splices.append(Splice(self._begin + begin, self._begin + end, size, edit.tobytes))
            spans[name] = begin + shift, begin + shift + size
            shift += size - (end - begin)
        shapes = {name: edit.shape for name, edit in edits.tensors.items()}
        return [Splice.of(0, self._begin, safetensors_header.changed(self._header, self._read, shapes, spans)), *splices]

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
    header: dict[str, object] = {METADATA: {"format": "pt"}}
    at = 0
    for tensor in ordered:
        span = [at, at + tensor.size]
        header[tensor.name] = {"dtype": tensor.dtype.name, "shape": list(tensor.shape), "data_offsets": span}
        at += tensor.size
    text = framed(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    write_at(out, memoryview(text), 0)
    at = len(text)
    for tensor in ordered:
        for piece in read(tensor.name):
            write_at(out, memoryview(piece), at)
            at += len(piece)


WRITER = FlatWriter(_keeps, _write)
FORMATS = (
    Format("safetensors", "safetensors", SUFFIXES, sniff, "safetensors:Safetensors", flat=True, writer="safetensors:WRITER"),
)

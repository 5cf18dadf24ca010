"""A flat state dict in another container: PyTorch to safetensors and back, for those who leave pickle behind, or need it.

Tensors go over one by one, their bytes as they are but for the edits. What the other container cannot keep is refused: tensors
that share memory, things that are no tensors, names.
Source: safetensors/README.md (format); torch/serialization.py and torch/_tensor.py of torch 2.13.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from .errors import Place, UsageError
from .formats.safetensors import Safetensors
from .formats.torch_legacy import TorchLegacy
from .formats.torch_zip import TorchZip
from .model import Checkpoint, Edits, Tensor
from .splice import write_at

PAIRS: tuple[tuple[tuple[type[Checkpoint], ...], type[Checkpoint]], ...] = (
    ((TorchZip, TorchLegacy), Safetensors),
    ((Safetensors,), TorchZip),
)
ALIGN = 64
_NOT_SAFE = frozenset({"C32", "C128", "QI8", "QU8", "QI32", "QU4x2", "QU2x4", "U4", "I4"})


class Kept(NamedTuple):
    """One tensor as it goes over: its name there, and the shape that it has afterwards."""

    name: str
    tensor: Tensor
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return prod(self.shape) * self.tensor.dtype.bits // 8


def target(kind: type[Checkpoint], path: Path) -> type[Checkpoint] | None:
    """The format that an output of this name is written in, where it is another than the input's."""
    suffix = path.suffix.lower()
    for kinds, other in PAIRS:
        if kind in kinds and suffix and suffix in other.suffixes and suffix not in kind.suffixes:
            return other
    return None


def kept(checkpoint: Checkpoint, edits: Edits, state_dict: str | None) -> list[Kept]:
    """The tensors that go over. Raises UnsupportedError for what cannot, UsageError for a state dict that is not there."""
    place = checkpoint.source.place
    groups = list(dict.fromkeys(t.group for t in checkpoint.tensors.values()))
    own = {t.group for entry in checkpoint.optimizer_entries for t in entry.tensors.values()}
    models = [group for group in groups if group not in own]
    if state_dict is not None and state_dict not in groups:
        raise UsageError(f"no state dict is called {state_dict!r}", file=place.file, hint=_offers(models))
    if state_dict is None and len(models) != 1:
        raise place.unsupported(f"holds {len(models)} state dicts", hint=_offers(models))
    group = state_dict if state_dict is not None else models[0]
    others = checkpoint.others(group)
    if others and (state_dict is None or any(name.startswith(f"{group}/") for name in others)):
        named = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise place.unsupported(f"holds {named} besides the tensors, which would be lost", hint=_offers([group]))
    tensors = [t for t in checkpoint.tensors.values() if t.group == group]
    if shared := checkpoint.shared([t.name for t in tensors]):
        told = f"{shared[0]} and {shared[1]} share their memory, which would be kept twice"
        raise place.unsupported(told, hint="leave one of them out of the state dict and tie it again after loading")
    for tensor in tensors:
        if tensor.key == "__metadata__" or tensor.dtype.name in _NOT_SAFE or not (tensor.dtype.torch or tensor.dtype.storage):
            raise place.inside(tensor.name).unsupported(f"its name, or its type {tensor.dtype.name}, cannot be kept there")
    return [Kept(t.key, t, edits.tensors[t.name].shape if t.name in edits.tensors else t.shape) for t in tensors]


def _offers(groups: Sequence[str]) -> str:
    return "   or   ".join(f"--state-dict {group or repr('')}" for group in groups[:3])


def write(checkpoint: Checkpoint, edits: Edits, tensors: Sequence[Kept], kind: type[Checkpoint], out: int, place: Place) -> None:
    """Write the tensors to the empty file `out` and fsync it."""
    writer = _to_safetensors if kind is Safetensors else _to_torch
    try:
        writer(tensors, lambda tensor: _chunks(checkpoint, edits, tensor), out)
        os.fsync(out)
    except OSError as error:
        raise place.system(f"cannot be written: {(error.strerror or str(error)).lower()}") from error


def _chunks(checkpoint: Checkpoint, edits: Edits, tensor: Tensor) -> Iterator[bytes]:
    edit = edits.tensors.get(tensor.name)
    return iter([edit.values().tobytes()]) if edit else checkpoint.chunks(tensor.name)


Read = Callable[[Tensor], Iterator[bytes]]


def _to_safetensors(tensors: Sequence[Kept], read: Read, out: int) -> None:
    """Widest elements first and then by name, as the library orders them, so that all are aligned."""
    ordered = sorted(tensors, key=lambda kept: (-kept.tensor.dtype.bits, kept.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for one in ordered:
        header[one.name] = {"dtype": one.tensor.dtype.name, "shape": list(one.shape), "data_offsets": [at, at + one.size]}
        at += one.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    write_at(out, memoryview(struct.pack("<Q", len(text)) + text), 0)
    at = 8 + len(text)
    for one in ordered:
        for piece in read(one.tensor):
            write_at(out, memoryview(piece), at)
            at += len(piece)


def _to_torch(tensors: Sequence[Kept], read: Read, out: int) -> None:
    """A zip as torch.load reads it: aligned, stored, without a date."""
    import zipfile

    with os.fdopen(os.dup(out), "r+b") as file, zipfile.ZipFile(file, "w") as archive:

        def member(name: str, size: int, pieces: Iterator[bytes] | Sequence[bytes]) -> None:
            info = zipfile.ZipInfo(f"archive/{name}")
            large = size >= 1 << 31
            head = 30 + len(info.filename) + 4 + (20 if large else 0)
            padding = -(file.tell() + head) % ALIGN
            info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
            with archive.open(info, "w", force_zip64=large) as opened:
                for piece in pieces:
                    opened.write(piece)

        pickle = _pickled(tensors)
        member("data.pkl", len(pickle), [pickle])
        member("byteorder", 6, [b"little"])
        for number, one in enumerate(tensors):
            member(f"data/{number}", one.size, read(one.tensor))
        member("version", 2, [b"3\n"])


def _pickled(tensors: Sequence[Kept]) -> bytes:
    """A dict of tensors in pickle protocol 2, each spelled in full."""
    items = b"".join(_text(one.name) + _tensor(number, one) for number, one in enumerate(tensors))
    return b"\x80\x02}(" + items + b"u."


def _tensor(number: int, one: Kept) -> bytes:
    dtype = one.tensor.dtype
    typed = bool(dtype.storage)
    count = prod(one.shape) * (1 if typed else dtype.bits // 8)
    kind = f"{dtype.storage}Storage" if typed else "UntypedStorage"
    storage = b"(" + _text("storage") + _global("torch" if typed else "torch.storage", kind) + _text(str(number)) + _text("cpu")
    storage += _integer(count) + b"tQ"
    hooks = _global("collections", "OrderedDict") + b")R"
    arguments = storage + b"K\0" + _tuple(one.shape) + _tuple(_strides(one.shape)) + b"\x89" + hooks
    if typed:
        return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"
    return _global("torch._utils", "_rebuild_tensor_v3") + b"(" + arguments + _global("torch", dtype.torch) + b"tR"


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _integer(value: int) -> bytes:
    from .containers.pickleedit import spell

    return spell(value)


def _tuple(values: Sequence[int]) -> bytes:
    from .containers.pickleedit import spell

    return spell(tuple(values))


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def check(after: Checkpoint, tensors: Sequence[Kept], edits: Edits, name: str) -> None:
    """What was written holds these tensors, the edited ones as planned. Raises RuntimeError otherwise."""
    expected: Mapping[str, Any] = {one.name: (one.tensor.dtype, one.shape) for one in tensors}
    if {n: (t.dtype, t.shape) for n, t in after.tensors.items()} != expected:
        raise RuntimeError(f"{name}: the written file has other tensors than planned")
    for one in tensors:
        if (edit := edits.tensors.get(one.tensor.name)) and b"".join(after.chunks(one.name)) != edit.values().tobytes():
            raise RuntimeError(f"{name}: {one.name} does not read back as it was written")

"""A state dict as a new PyTorch file: a zip with a pickled dict of tensors, each encoded in full, without a memo.

Source: torch/serialization.py and torch/_tensor.py of torch 2.13.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from math import prod

from chkpt_channels.containers.pickle.editor import encode
from chkpt_channels.core.elements import dense_strides
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.formats.base import FlatWriter

ALIGN_BYTES = 64
"""torch aligns each member's data so, which lets it map the file; older ones expect it too. Source:
caffe2/serialize/inline_container.h, kFieldAlignment."""
_LOCAL_HEADER_BYTES = 30
_FB_HEADER_BYTES = 4
"""Of the extra field that pads: "FB", u16 length."""
_ZIP64_FIELD_BYTES = 20
_ZIP64_FROM_BYTES = 1 << 31
"""From here on zipfile writes 64-bit sizes."""


def keeps(tensor: Tensor) -> bool:
    """Whether a state dict can hold it as a plain tensor."""
    return bool(tensor.dtype.torch or tensor.dtype.storage)


def write(tensors: Sequence[Tensor], read: Callable[[str], Iterator[bytes]], out: int) -> None:
    """A zip as torch.load reads it: aligned, stored, without a date."""
    with os.fdopen(out, "r+b", closefd=False) as file, zipfile.ZipFile(file, "w") as archive:

        def member(name: str, size: int, pieces: Iterator[bytes] | Sequence[bytes]) -> None:
            info = zipfile.ZipInfo(f"archive/{name}")
            large = size >= _ZIP64_FROM_BYTES
            head = _LOCAL_HEADER_BYTES + len(info.filename) + _FB_HEADER_BYTES + (_ZIP64_FIELD_BYTES if large else 0)
            padding = -(file.tell() + head) % ALIGN_BYTES
            info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
            with archive.open(info, "w", force_zip64=large) as opened:
                for piece in pieces:
                    opened.write(piece)

        pickle = _pickled(tensors)
        member("data.pkl", len(pickle), [pickle])
        member("byteorder", 6, [b"little"])
        for number, one in enumerate(tensors):
            member(f"data/{number}", one.size, read(one.name))
        member("version", 2, [b"3\n"])


def _pickled(tensors: Sequence[Tensor]) -> bytes:
    """A dict of tensors in pickle protocol 2, the one that torch.load(weights_only=True) reads in every version."""
    items = b"".join(_text(one.name) + _tensor(number, one) for number, one in enumerate(tensors))
    return b"\x80\x02}(" + items + b"u."


def _tensor(number: int, one: Tensor) -> bytes:
    dtype = one.dtype
    typed = bool(dtype.storage)  # else numel counts bytes, see rebuild.py
    count = prod(one.shape) * (1 if typed else dtype.bits // 8)
    kind = f"{dtype.storage}Storage" if typed else "UntypedStorage"
    storage = b"(" + _text("storage") + _global("torch" if typed else "torch.storage", kind) + _text(str(number)) + _text("cpu")
    storage += encode(count) + b"tQ"
    hooks = _global("collections", "OrderedDict") + b")R"
    arguments = storage + b"K\0" + encode(one.shape) + encode(dense_strides(one.shape, range(len(one.shape)))) + b"\x89" + hooks
    if typed:
        return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"
    return _global("torch._utils", "_rebuild_tensor_v3") + b"(" + arguments + _global("torch", dtype.torch) + b"tR"


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


WRITER = FlatWriter(keeps, write)

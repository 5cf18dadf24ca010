"""What files that are no checkpoint turn out to be: the commonest surprises, named, with what to do about them."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import ChkptChannelsError, UnknownFormatError, UnsupportedError
from ..source import Source

HEAD = 1024

FOREIGN_SUFFIXES = frozenset({".onnx", ".h5", ".hdf5", ".keras", ".npz", ".gguf", ".tflite", ".pb", ".msgpack"})
"""Extensions of formats that are not written here: an output of that name would lie."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"

# (what the first bytes look like, what it is, whether it is a sound file of a foreign format, what to try)
_ROWS: tuple[tuple[Callable[[bytes], object], str, bool, str], ...] = (
    (re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.I).match, "an HTML page", False,
     "download the file itself, not the page about it"),
    (re.compile(rb".{257}ustar", re.S).match, "a tar archive (torch's format before 0.1.10, or a packed folder)", True,
     "load it in an old torch and save it again, or unpack it"),
    (re.compile(rb"\x1f\x8b").match, "a gzip file", True, "unpack it first: gunzip"),
    (re.compile(rb"\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|7z\xbc\xaf").match, "a compressed file", True, "unpack it first"),
    (re.compile(rb"GGUF").match, "a GGUF file", True, ""),
    (re.compile(rb".{4}TFL3", re.S).match, "a TFLite model", True, ""),
    (re.compile(rb"\x93NUMPY").match, "a numpy array", True, ""),
    (re.compile(rb"\s*[\[{]").match, "a JSON file", True, ""),
    (re.compile(rb"PK\x03\x04").match, "a zip archive, but not a checkpoint (no data.pkl in it)", True, ""),
    (re.compile(rb"\x80[\x02-\x05]").match, "a Python pickle, but not one that torch.save wrote", True, ""),
)  # fmt: skip


def describe(source: Source) -> ChkptChannelsError:
    """The error for a file that no format claims."""
    head = source.read(0, min(HEAD, source.size))
    if not head:
        return UnknownFormatError("is empty (0 bytes)", file=source.name, hint="download it again")
    if head.startswith(LFS_POINTER):
        size = re.search(rb"size (\d{1,18})", head)
        content = f"{int(size[1]):,} bytes" if size else "content"
        return UnknownFormatError(
            f"is a Git-LFS pointer to {content} that are not downloaded",
            file=source.name,
            hint=f"git lfs pull --include={source.name}",
        )
    for looks, name, sound, hint in _ROWS:
        if looks(head):
            kind = UnsupportedError if sound else UnknownFormatError
            return kind(f"is {name}", file=source.name, hint=hint)
    if not head.strip(b"\0"):
        return UnknownFormatError("begins with nothing but zeros: its content was never written", file=source.name)
    return UnknownFormatError(
        "is no checkpoint of a known format", file=source.name, hint="chkpt-channels reads PyTorch and safetensors files"
    )

"""Files that are not a checkpoint of a known format: the common ones, named, each with what to do."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Container, Sequence

from chkpt_channels.core.errors import ChkptChannelsError, DamagedError, UnknownFormatError, UnsupportedError
from chkpt_channels.core.records import pattern
from chkpt_channels.formats.foreign import foreign, inflated
from chkpt_channels.storage.source import END_BYTES, Source

HEAD_BYTES = 1024
"""A Git-LFS pointer is shorter, and every magic number is in it."""
SHORTEST_PICKLE_BYTES = 64
"""torch.save of an empty dict has more, in every format."""

FOREIGN_SUFFIXES = frozenset({".gguf", ".tflite", ".pb"})
"""Extensions of formats that are not written here: no output may have one."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_INSIDE = pattern(rb"(?s)PK\x03\x04|\x80[\x02-\x05]|\x89HDF|.{8}\{\"|.{257}ustar")
"""The first bytes of checkpoints and of archives, in a compressed file."""
_KERNEL_SHAPE = pattern(rb"(?s)\((K.|M..|J.{4}){4,5}t|\((I\d+\n){4,5}t")
"""A tuple of four or five integers in a pickle, as numpy's arrays have their shape."""

# (pattern of the first bytes, name, whether it is a sound file of another format, hint)
_ROWS: tuple[tuple[bytes, str, bool, str], ...] = (
    (rb"(?i)\s*(<!doctype html|<html|<\?xml)", "an HTML page", False,
     "download the file itself, not the page about it"),
    (rb"(?s).{257}ustar", "a tar archive (torch's format before 0.1.10, or a packed folder)", True,
     "load it in an old torch and save it again, or unpack it"),
    (rb"\x1f\x8b", "a gzip file", True, "unpack it first: gunzip"),
    (rb"\xfd7zXZ|BZh|\x28\xb5\x2f\xfd|7z\xbc\xaf", "a compressed file", True, "unpack it first"),
    (rb"\x93NUMPY", "a numpy array", True, ""),
    (rb"\s*[\[{]", "a JSON file", True, "convert the weights that it describes, or the folder of both"),
    (rb"PK\x03\x04", "a zip archive, but not a checkpoint (no data.pkl in it)", True, ""),
    (rb"\x80[\x02-\x05]", "a Python pickle, but not one that torch.save wrote", True, ""),
)  # fmt: skip

_ARRAYS = pattern(rb"(?s)(\x80[\x02-\x05]|\(dp|[}\]]q).*(numpy[\w.]*\.(multiarray|numeric)|joblib\.numpy_pickle)")
"""A pickle of protocol 0 to 5 that names what makes numpy's arrays, or joblib's."""
_TENSORS = "load it, and torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, FILE)"
_EXPORTED = ("archive_format", "serialized_exported_program.json")
"""Members of torch.export's archives. Source: torch/export/pt2_archive/constants.py of torch 2.13, torch/export of 2.5."""
_EXPORTED_WEIGHTS = "import sys, torch; torch.save(torch.export.load(sys.argv[1]).state_dict, sys.argv[2])"


def describe(source: Source, families: Sequence[str], suffixes: Container[str] = ()) -> ChkptChannelsError:
    """The error for a file that no format claims; `families` are those that this package reads, `suffixes` their extensions."""
    if missing := _not_downloaded(source):
        return missing
    head = source.head[:HEAD_BYTES]
    if found := foreign(source):
        return found[0]
    if error := _zip_of_weights(source, suffixes):
        return error
    if cut := _cut_pickle(source):
        return cut
    if _ARRAYS.match(source.head):
        what = "is a Python pickle that torch.save did not write, and its weights are numpy arrays"
        return source.location.unsupported(what, _TENSORS)
    for looks, name, sound, hint in _ROWS:
        if re.match(looks, head):
            kind = UnsupportedError if sound else UnknownFormatError
            return kind(f"is {name}", file=source.name, hint=hint)
    if not head.strip(b"\0"):
        return UnknownFormatError("begins with nothing but zeros: its content was never written", file=source.name)
    if found := foreign(source, named=True):
        return found[0]
    hint = f"chkpt-channels reads {', '.join(families[:-1])} and {families[-1]} files"
    return UnknownFormatError("is not a checkpoint of a known format", file=source.name, hint=hint)


def _not_downloaded(source: Source) -> UnknownFormatError | None:
    """The error for a file whose content, or whose end, is not there; None for any other."""
    head = source.head[:HEAD_BYTES]
    if not head:
        return UnknownFormatError("is empty (0 bytes)", file=source.name)
    if head.startswith(LFS_POINTER):
        size = re.search(rb"size (\d{1,18})", head)
        content = f"{int(size[1]):,} bytes" if size else "content"
        what = f"is a Git-LFS pointer to {content} that are not downloaded"
        return UnknownFormatError(what, file=source.name, hint=f"git lfs pull --include={source.name}")
    if head.startswith(b"PK\x03\x04") and b"PK\x05\x06" not in source.tail:
        return UnknownFormatError("its end is missing: a zip archive ends in a central directory", file=source.name)
    if re.match(rb"\x80[\x02-\x05]", head) and source.size < SHORTEST_PICKLE_BYTES:
        return UnknownFormatError("is cut off: no checkpoint is that short", file=source.name)
    return None


def _cut_pickle(source: Source) -> DamagedError | None:
    """The error for a small pickle that is cut off: it may look like one of something else."""
    if re.match(rb"\x80[\x02-\x05]", source.head) and source.size <= END_BYTES:
        from chkpt_channels.containers.pickle.reader import OutOfData, Tree

        try:
            Tree(source.head, source.location)
        except OutOfData:
            return source.location.damaged("is cut off: its pickle does not end", at=source.size)
        except (DamagedError, UnsupportedError):
            return None
    return None


def foreign_weights(source: Source, suffixes: Container[str]) -> UnsupportedError | None:
    """The error for a file that no format claims, where it holds weights all the same; None for anything else. Raises
    FileSystemError."""
    found = foreign(source) or foreign(source, named=True)
    if found and found[1]:
        return found[0]
    if error := _zip_of_weights(source, suffixes):
        return error
    if source.head.startswith(b"\x1f\x8b") and _INSIDE.match(inflated(source.head)):
        return source.location.unsupported("is a gzip file around a checkpoint or an archive", "unpack it first: gunzip")
    pickled = _ARRAYS.match(source.head) or re.match(rb"\x93NUMPY.{,6}\{'descr': '\|O'", source.head, re.DOTALL)
    if pickled and any(_KERNEL_SHAPE.search(piece) for piece in source.chunks()):
        return source.location.unsupported("is a Python pickle of numpy arrays")
    if os.path.splitext(source.name)[1].lower() in FOREIGN_SUFFIXES:
        return source.location.unsupported("holds weights in another format")
    return None


def _zip_of_weights(source: Source, suffixes: Container[str]) -> UnsupportedError | None:
    """The error for a sound zip archive around weights files; None for anything else."""
    if not source.head.startswith(b"PK\x03\x04"):
        return None
    from chkpt_channels.containers.zip.directory import central_entries, find_directory

    try:
        names = [entry.name for entry in central_entries(source, *find_directory(source)[0])]
    except DamagedError:
        return None
    if any(name.rpartition("/")[2] in _EXPORTED for name in names):
        hint = f"python -c {shlex.quote(_EXPORTED_WEIGHTS)} {shlex.quote(source.name)} net.pth, and convert net.pth"
        return source.location.unsupported("is a torch.export archive: a program, with its weights inside", hint)
    weights = [name for name in names if posixpath.splitext(name)[1].lower() in suffixes]
    if not weights:
        return None
    more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
    what = f"is a zip archive around {weights[0]}{more}"
    return source.location.unsupported(what, f"unzip {shlex.quote(source.name)} {shlex.quote(weights[0])}")

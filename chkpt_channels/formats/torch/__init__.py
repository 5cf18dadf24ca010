"""PyTorch: zip archives, TorchScript, and the format before 1.6."""

from __future__ import annotations

from chkpt_channels.core.errors import DamagedError
from chkpt_channels.core.records import pattern
from chkpt_channels.formats.base import Format
from chkpt_channels.storage.source import Source

SUFFIXES = frozenset({"", ".pth", ".pt", ".bin", ".ckpt", ".tar"})
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of the old format. Source: torch/serialization.py, MAGIC_NUMBER."""

_LEGACY_HEAD_BYTES = 64
_LOCAL_HEADER_BYTES = 30
"""Of a zip's first member, before its name."""
_PICKLE = pattern(rb"([^/\0]*/)?data\.pkl")


def sniff_zip(source: Source) -> bool:
    """A zip with a data.pkl, which torch writes first, and re-zipped files have anywhere; no shard of a distributed checkpoint,
    which is such an archive for each tensor, one behind another. Source: torch/distributed/checkpoint/filesystem.py."""
    if not source.head.startswith(b"PK\x03\x04") or source.name.endswith(".distcp"):
        return False
    if _PICKLE.match(source.head, _LOCAL_HEADER_BYTES):
        return True
    if not any(mark in end for end in (source.head, source.tail) for mark in (b"data.pkl", b".data/serialization_id")):
        return False
    # a zip around a checkpoint has these words too, and so has an archive of torch.export: only the directory tells
    from chkpt_channels.containers.zip.directory import central_entries, find_directory

    try:
        names = [entry.name for entry in central_entries(source, *find_directory(source)[0])]
    except DamagedError:
        return True
    return any(name.rpartition("/")[2] == "data.pkl" for name in names)


def sniff_legacy(source: Source) -> bool:
    """The magic number as protocols 0 and 1 encode it, or as the others do."""
    head = source.head[:_LEGACY_HEAD_BYTES]
    return head.startswith(b"L%dL\n" % LEGACY_MAGIC) or (head[:1] == b"\x80" and LEGACY_MAGIC.to_bytes(10, "little") in head)


LEGACY = Format("torch_legacy", "PyTorch (legacy)", SUFFIXES, sniff_legacy, "torch.legacy_file:TorchLegacy", flat=True)
ZIP = Format(
    "torch_zip", "PyTorch (zip)", SUFFIXES, sniff_zip, "torch.zip_file:TorchZip", flat=True, writer="torch.writer:WRITER"
)
FORMATS = (LEGACY, ZIP)

"""PyTorch: zip archives, TorchScript, and the format before 1.6."""

from __future__ import annotations

from chkpt_channels.formats.base import Format
from chkpt_channels.storage.source import Source

SUFFIXES = frozenset({"", ".pth", ".pt", ".bin", ".ckpt", ".tar"})
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of the old format. Source: torch/serialization.py, MAGIC_NUMBER."""

_LEGACY_HEAD_BYTES = 64


def sniff_zip(source: Source) -> bool:
    """A zip whose first member, or whose directory, names a data.pkl."""
    if not source.head.startswith(b"PK\x03\x04"):
        return False
    # torch writes data.pkl first, and newer versions .data/serialization_id last; re-zipped files have them anywhere, and all
    # names again in the directory at the end
    return any(b"data.pkl" in end or b".data/serialization_id" in end for end in (source.head, source.tail))


def sniff_legacy(source: Source) -> bool:
    """The magic number as protocols 0 and 1 encode it, or as the others do."""
    head = source.head[:_LEGACY_HEAD_BYTES]
    return head.startswith(b"L%dL\n" % LEGACY_MAGIC) or (head[:1] == b"\x80" and LEGACY_MAGIC.to_bytes(10, "little") in head)


LEGACY = Format("torch_legacy", "PyTorch (legacy)", SUFFIXES, sniff_legacy, "torch.legacy_file:TorchLegacy", flat=True)
ZIP = Format(
    "torch_zip", "PyTorch (zip)", SUFFIXES, sniff_zip, "torch.zip_file:TorchZip", flat=True, writer="torch.writer:WRITER"
)
FORMATS = (LEGACY, ZIP)

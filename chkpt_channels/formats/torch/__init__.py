"""PyTorch: zip archives, TorchScript, and the format before 1.6."""

from __future__ import annotations

from chkpt_channels.formats.base import Format
from chkpt_channels.storage.source import Source

SUFFIXES = frozenset({"", ".pth", ".pt", ".bin", ".ckpt", ".tar"})
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of the old format. Source: torch/serialization.py, MAGIC_NUMBER."""

_LEGACY_HEAD_BYTES = 64
_ZIP_END_BYTES = 1 << 16
"""How much of each end of an archive is searched: torch writes data.pkl first, re-zipped files have it anywhere, and both the
names of the last members and the directory are at the end."""


def sniff_zip(source: Source) -> bool:
    """A zip whose first member, or whose directory, names a data.pkl."""
    if source.size < 4 or source.read(0, 4) != b"PK\x03\x04":
        return False
    head = source.read(0, min(_ZIP_END_BYTES, source.size))
    tail = source.read(max(0, source.size - _ZIP_END_BYTES), source.size)
    return b"data.pkl" in head or b"data.pkl" in tail or b".data/serialization_id" in tail  # the last member of newer files


def sniff_legacy(source: Source) -> bool:
    """The magic number as protocols 0 and 1 encode it, or as the others do."""
    head = source.read(0, min(_LEGACY_HEAD_BYTES, source.size))
    return head.startswith(b"L%dL\n" % LEGACY_MAGIC) or (head[:1] == b"\x80" and LEGACY_MAGIC.to_bytes(10, "little") in head)


LEGACY = Format("torch_legacy", "PyTorch (legacy)", SUFFIXES, sniff_legacy, "torch.legacy_file:TorchLegacy", flat=True)
ZIP = Format(
    "torch_zip", "PyTorch (zip)", SUFFIXES, sniff_zip, "torch.zip_file:TorchZip", flat=True, writer="torch.writer:WRITER"
)
FORMATS = (LEGACY, ZIP)

"""Keras: HDF5 files and .keras archives, whole models and weights."""

from __future__ import annotations

from chkpt_channels.formats.base import Format
from chkpt_channels.storage.source import END_BYTES, Source

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
"""The members of a .keras archive."""

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK_BYTES = 512
"""The smallest user block, foreign bytes before the HDF5 file; each larger one is twice as long."""


def sniff_h5(source: Source) -> bool:
    """HDF5's magic, at the beginning or after a user block of 512, 1024, … bytes."""
    if source.head.startswith(_HDF5_MAGIC):
        return True
    if source.head.startswith(b"PK\x03\x04") and not str(source.name).lower().endswith((".h5", ".hdf5")):
        return False  # a .keras archive, whose member may begin at such a place
    at = _USER_BLOCK_BYTES
    last = END_BYTES if source.is_remote else source.size  # each far look would be a request, and Keras writes no user block
    while at + len(_HDF5_MAGIC) <= min(source.size, last):
        if source.read(at, at + len(_HDF5_MAGIC)) == _HDF5_MAGIC:
            return True
        at *= 2
    return False


def sniff_zip(source: Source) -> bool:
    """A zip whose directory names a configuration, and weights or metadata."""
    if not source.head.startswith(b"PK\x03\x04"):
        return False
    directory = source.tail  # of three members
    return CONFIG.encode() in directory and (WEIGHTS.encode() in directory or b"metadata.json" in directory)


H5 = Format(
    "keras_h5",
    "Keras (HDF5)",
    frozenset({".h5", ".hdf5"}),
    sniff_h5,
    "keras.h5_file:KerasH5",
    ending=".weights.h5",
    in_place=True,
)
ZIP = Format("keras_zip", "Keras", frozenset({".keras"}), sniff_zip, "keras.zip_file:KerasZip")
FORMATS = (H5, ZIP)

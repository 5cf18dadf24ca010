"""How much a file may ask for before it is believed: checked before anything of that size is allocated."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Bytes, counts and depths. Real checkpoints stay far below each."""

    pickle_bytes: int = 256 << 20
    header_bytes: int = 100_000_000  # safetensors' own limit on its JSON header
    zip_directory_bytes: int = 128 << 20
    zip_gap_bytes: int = 1 << 16
    edited_tensor_bytes: int = 8 << 30
    name_depth: int = 500
    axes: int = 64  # torch's and numpy's own limit
    channels: int = 1 << 16
    hdf5_objects: int = 1_000_000
    hdf5_chunk_bytes: int = 1 << 30
    json_depth: int = 200
    json_digits: int = 400
    sidecar_bytes: int = 64 << 20
    apart_seconds: int = 8


LIMITS = Limits()

"""The files beside an ONNX model that keep its tensors: what they may be, and that they are what the model says.

Source: onnx/onnx.proto (external_data: location, offset, length, checksum) of onnx 1.23.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from chkpt_channels.core.errors import Location
from chkpt_channels.formats.onnx.model import Weight
from chkpt_channels.formats.onnx.tensor_data import Payload
from chkpt_channels.storage.source import CHUNK_BYTES, Source


def check(weights: Mapping[str, Weight], payloads: Mapping[str, Payload]) -> None:
    """Raise DamagedError where a tensor's part is not in its file. What is missing altogether is told when it is read."""
    sizes: dict[Path, int | None] = {}
    for name, found in payloads.items():
        if found.path is None:
            continue
        if found.path not in sizes:
            sizes[found.path] = _size(found.path)
        size = sizes[found.path]
        if size is not None and found.stop > size:
            location = Location(str(found.path), name)
            raise location.damaged(f"the file ends at {size}, inside its {weights[name].size} bytes", at=found.start)
        if size is not None and found.stop < size and "length" not in weights[name].external():
            location = Location(str(found.path), name)
            raise location.damaged(
                f"no length is given, and {size - found.start} bytes follow for its {weights[name].size}", at=found.start
            )


def _size(path: Path) -> int | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        kind = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO"}.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise Location(str(path)).damaged(f"is {kind}; the model says that it holds tensors")
    return status.st_size


def check_sum(path: Path, weight: Weight) -> None:
    """Raise DamagedError where a file's SHA-1 is given and is another. Few writers give it."""
    said = weight.external().get("checksum", "").lower()
    if not said:
        return
    digest = hashlib.sha1(usedforsecurity=False)
    with Source(path) as source:
        for at in range(0, source.size, CHUNK_BYTES):
            digest.update(source.read(at, min(at + CHUNK_BYTES, source.size)))
    if digest.hexdigest() != said:
        raise source.location.at(weight.name).damaged(f"the file's SHA-1 is {digest.hexdigest()}, not {said[:40]!r}")

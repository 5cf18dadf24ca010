"""The external data of an ONNX model: checks of its files against what the model says.

Source: onnx/onnx.proto (external_data: location, offset, length, checksum) of onnx 1.23.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from chkpt_channels.containers.protobuf import WireEdits, bytes_field
from chkpt_channels.core.errors import Location
from chkpt_channels.formats.onnx.model import OnnxModel, Weight
from chkpt_channels.formats.onnx.schema import ENTRY_KEY, ENTRY_VALUE, TENSOR_EXTERNAL
from chkpt_channels.formats.onnx.tensor_data import Payload
from chkpt_channels.storage.opening import named, open_file
from chkpt_channels.storage.source import Source


def check(weights: Mapping[str, Weight], payloads: Mapping[str, Payload | None], source: Source) -> None:
    """Raise DamagedError where a tensor's span is not in its file, UnsupportedError where no file can be beside the source. A
    missing one is an error only when it is read."""
    sizes: dict[Path, int | None] = {}
    for name, payload in payloads.items():
        if payload is None or payload.path is None:
            continue
        if source.is_alone:
            what = f"its elements are in the data file {payload.path.name}, and the model was given without it"
            where = "the folder that both are in" if source.is_remote else "the files with the command line"
            raise source.location.at(name).unsupported(what, hint=f"convert {where}")
        if payload.path not in sizes:
            sizes[payload.path] = _size(payload.path)
        size = sizes[payload.path]
        if size is None:
            continue
        location, needed = Location(named(payload.path), name), weights[name].size
        if payload.stop > size:
            raise location.damaged(f"the file ends at {size}, inside its {needed} bytes", at=payload.start)
        if payload.stop < size and "length" not in weights[name].external():
            what = f"no length is given, and {size - payload.start} bytes follow for its {needed}"
            raise location.damaged(what, at=payload.start)


def _size(path: Path) -> int | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        kind = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO"}.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise Location(named(path)).damaged(f"is {kind}; the model says that it holds tensors")
    return status.st_size


def check_sums(model: OnnxModel, folder: Path) -> None:
    """Raise DamagedError where the SHA-1 of a data file in the model's folder is given and differs. Few writers give it."""
    digests: dict[Path, str] = {}
    for weight in model.weights.values():
        external = weight.external() if weight.is_external else {}
        expected, path = external.get("checksum", "").lower(), folder / external.get("location", "")
        if not expected:
            continue
        if path not in digests:
            digests[path] = _sha1(path)
        if digests[path] != expected:
            where = Location(named(path)).at(weight.name)
            raise where.damaged(f"the file's SHA-1 is {digests[path]}, not {expected[:40]!r}")


def _sha1(path: Path) -> str:
    import hashlib

    digest = hashlib.sha1(usedforsecurity=False)
    with open_file(path) as source:
        for piece in source.chunks():
            digest.update(piece)
    return digest.hexdigest()


def locations(model: OnnxModel) -> Mapping[str, None]:
    """The files of external data that the model names, in file order."""
    return dict.fromkeys(w.external().get("location", "") for w in model.weights.values() if w.is_external)


def rename(wire: WireEdits, model: OnnxModel, companions: Mapping[str, str], done: Collection[str] = ()) -> None:
    """Rename the external data that is copied with the model; the `done` tensors have inline elements now."""
    for weight in model.weights.values():
        if not weight.is_external or weight.name in done:
            continue
        for entry in weight.message.messages(TENSOR_EXTERNAL):
            new = companions.get(entry.text(ENTRY_VALUE)) if entry.text(ENTRY_KEY) == "location" else None
            if new and new != entry.text(ENTRY_VALUE):
                wire.replace_last(entry, ENTRY_VALUE, bytes_field(ENTRY_VALUE, new.encode()))

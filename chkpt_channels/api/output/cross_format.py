"""Conversion of a flat state dict from PyTorch to safetensors or back.

Tensors are copied one by one, unchanged but for the edits. What the other format cannot hold is refused: tensors that share
memory, values that are not tensors, some names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from chkpt_channels.core.errors import Location, UsageError
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Edits, Tensor, TensorEdit
from chkpt_channels.formats.base import Checkpoint, FlatWriter, Format
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Progress
from chkpt_channels.transform.notices import listing


def write(
    checkpoint: Checkpoint,
    edits: Edits,
    state_dict: str | None,
    form: Format,
    out: int,
    location: Location,
    progress: Progress | None = None,
) -> Checkpoint:
    """Write one state dict, edited, to the empty file `out` in another format, reopen it and compare; returns the closed
    checkpoint. `location` names the output in messages, `progress` is called with bytes.

    Raises UnsupportedError for what the format cannot hold, UsageError for a state dict that does not exist.
    """
    writer = form.flat_writer()
    if writer is None:
        raise TypeError(f"{form.title} has no writer")
    group = _group(checkpoint, state_dict)
    kept = [t for t in checkpoint.tensors.values() if t.group == group and t.name not in edits.removed]
    entries = _entries(checkpoint, kept, edits, writer)

    def read(name: str) -> Iterator[bytes]:
        edit = entries[name].edit
        for piece in [edit.tobytes()] if edit else checkpoint.chunks(entries[name].old):
            yield piece
            if progress:
                progress(len(piece))

    with location.wrapping_os_errors("cannot be written"):
        writer.write([entry.tensor for entry in entries.values()], read, out)
        os.fsync(out)
    checkpoint.source.check_unchanged()
    return _check(form, out, location, entries)


class _Entry(NamedTuple):
    """One tensor with its name and shape in the output, its name in the source, and what makes it another one."""

    tensor: Tensor
    old: str
    edit: TensorEdit | None


def _group(checkpoint: Checkpoint, state_dict: str | None) -> str:
    """The key of the state dict that is written, "" for the root."""
    location = checkpoint.source.location
    groups = list(dict.fromkeys(t.group for t in checkpoint.tensors.values()))
    own = {t.group for entry in checkpoint.optimizer_entries for t in entry.tensors.values()}
    models = [group for group in groups if group not in own]
    if state_dict is not None and state_dict not in groups:
        raise UsageError(f"no state dict is called {state_dict!r}", file=location.file, hint=_offers(models))
    if state_dict is None and len(models) != 1:
        raise location.unsupported(f"holds {len(models)} state dicts; exactly one can be written", hint=_offers(models))
    group = state_dict if state_dict is not None else models[0]
    others = checkpoint.others(group)
    if others and (state_dict is None or any(name.startswith(f"{group}/") for name in others)):
        raise location.unsupported(f"holds {listing(others)} besides the tensors, which would be lost", hint=_offers([group]))
    return group


def _offers(groups: Sequence[str]) -> str:
    return "   or   ".join(f"--state-dict {group or repr('')}" for group in groups[:3])


def _entries(checkpoint: Checkpoint, tensors: Sequence[Tensor], edits: Edits, writer: FlatWriter) -> dict[str, _Entry]:
    """The tensors by their names in the output."""
    location = checkpoint.source.location
    if shared := checkpoint.shared([t.name for t in tensors]):
        message = f"{shared[0]} and {shared[1]} share memory, which would be stored twice"
        raise location.unsupported(message, hint="leave one of them out of the state dict and tie it again after loading")
    entries = {}
    for tensor in tensors:
        if not writer.keeps(tensor):
            raise location.at(tensor.name).unsupported(
                f"its name or its type {tensor.dtype.name} cannot be stored in that format"
            )
        edit = edits.tensors.get(tensor.name)
        renamed = tensor._replace(name=tensor.key, group="", shape=edit.shape if edit else tensor.shape)
        entries[renamed.name] = _Entry(renamed, tensor.name, edit)
    return entries


def _check(form: Format, out: int, location: Location, entries: dict[str, _Entry]) -> Checkpoint:
    """The output, reopened: it holds these tensors, the edited ones as planned. Raises RuntimeError otherwise."""
    with Source.of_descriptor(out, location.file, made_here=True) as source:
        after = form.open(source)
        tensors = {name: (t.dtype, t.shape) for name, t in after.tensors.items()}
        if tensors != {name: (entry.tensor.dtype, entry.tensor.shape) for name, entry in entries.items()}:
            raise RuntimeError(f"{location.file}: the written file has other tensors than planned")
        for name, entry in entries.items():
            if entry.edit and b"".join(after.chunks(name)) != entry.edit.tobytes():
                raise RuntimeError(f"{location.file}: {name} does not read back as it was written")
        if os.path.isdir("/proc/self/fd"):
            after.validate(f"/proc/self/fd/{out}")
    return after

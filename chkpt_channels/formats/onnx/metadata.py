"""The number of channels in an ONNX model's metadata, where the program that exported it reads it back: ultralytics makes images
of that many `channels`. Source: ultralytics/engine/exporter.py and nn/autobackend.py of 8.4."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from chkpt_channels.containers.protobuf import Message, WireEdits, bytes_field
from chkpt_channels.core.tensors import Declaration
from chkpt_channels.formats.onnx.schema import ENTRY_KEY, ENTRY_VALUE, MODEL_METADATA

COUNT, SIZE = "channels", "imgsz"
MOST_DIGITS = 9


def _stated(root: Message) -> Iterator[tuple[Declaration, Message]]:
    """The numbers that are stated, and the entries that state them."""
    for entry in root.messages(MODEL_METADATA):
        if entry.text(ENTRY_KEY) == COUNT:
            value = entry.text(ENTRY_VALUE)
            if value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS:
                yield Declaration(f"metadata_props {COUNT}", int(value)), entry


def declarations(root: Message, counts: Collection[int]) -> list[Declaration]:
    """The stated numbers that are one of the image's `counts`."""
    return [stated for stated, _ in _stated(root) if stated.channels in counts]


def contradictions(root: Message, counts: Collection[int]) -> list[tuple[Declaration, int]]:
    """The stated numbers that are none of the image's `counts`, in a model whose metadata has the size of the image too: under
    the same name others state something else."""
    if not counts or all(entry.text(ENTRY_KEY) != SIZE for entry in root.messages(MODEL_METADATA)):
        return []
    return [(stated, min(counts)) for stated, _ in _stated(root) if stated.channels not in counts]


def edit(wire: WireEdits, root: Message, numbers: Mapping[str, int]) -> None:
    """Write the new numbers, by `where`."""
    for stated, entry in _stated(root):
        if stated.where in numbers:
            wire.replace_last(entry, ENTRY_VALUE, bytes_field(ENTRY_VALUE, str(numbers[stated.where]).encode()))

"""The FRAMEs of an edited pickle: cut anew where CPython's pickler cut them, else with corrected lengths.

    FRAME (0x95) · u64 length · that many bytes of opcodes

The pickler ends a frame before the first value that begins 64 KiB or more behind its start, and around a text or byte string of
that size, which is in no frame; fewer than four bytes get none. Readers ignore all of this; frames that are cut as the pickler
would cut them make the file what `pickle.dumps` gives.
Source: CPython's Modules/_pickle.c, _Pickler_OpcodeBoundary, _Pickler_CloseFrame and _Pickler_write_bytes; PEP 3154.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable, Iterator, Sequence

from chkpt_channels.containers.pickle.machine import FRAME_HEAD_BYTES
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.storage.splice import Splice

TARGET_BYTES = 1 << 16
LEAST_BYTES = 4
PROTO_BYTES = 2
"""Of the PROTO opcode, which is in no frame."""
_BYTEARRAY8 = 0x96


def splices(tree: Tree, changes: Sequence[Splice]) -> list[Splice]:
    """What happens to the frames of a pickle where `changes`, in order, are made. What is left of a frame whose head goes needs
    no frame."""
    old = {at + FRAME_HEAD_BYTES: length for at, length in tree.frames}
    if tree.starts and dict(_cut(tree, ())) == old:
        new = dict(_cut(tree, changes))
    else:
        new = {begin: length + _growth(changes, begin, begin + length) for begin, length in old.items()}
    edits = []
    for begin in sorted(old.keys() | new.keys()):
        if new.get(begin) == old.get(begin):
            continue
        start = begin - FRAME_HEAD_BYTES if begin in old else begin
        if not any(change.start <= start < change.stop for change in changes):  # what is removed takes its frames along
            head = b"\x95" + struct.pack("<Q", new[begin]) if begin in new else b""
            edits.append(Splice.of(start, begin, head))
    return edits


def _growth(changes: Iterable[Splice], begin: int, end: int) -> int:
    """How many bytes more the changes leave in a frame [begin, end)."""
    added = sum(change.size for change in changes if begin <= change.start < end)
    return added - sum(max(0, min(change.stop, end) - max(change.start, begin)) for change in changes)


def _cut(tree: Tree, changes: Sequence[Splice]) -> Iterator[tuple[int, int]]:
    """(where its first opcode begins, its length) of each frame that the pickler would make, at offsets before the changes."""
    heads = {at for at, _ in tree.frames if not any(change.start <= at < change.stop for change in changes)}
    written = _Written([*changes, *(Splice.of(at, at + FRAME_HEAD_BYTES, b"") for at in heads)])
    begin = _behind_head(tree.start + PROTO_BYTES, heads)
    size = written.before(begin)
    for start, stop, ends in _events(tree, changes):
        length = written.before(start) - size
        if ends or length >= TARGET_BYTES:
            if length >= LEAST_BYTES:
                yield begin, length
            begin = _behind_head(stop, heads)
            size = written.before(begin)


def _behind_head(at: int, heads: Container[int]) -> int:
    return at + FRAME_HEAD_BYTES if at in heads else at


class _Written:
    """How many bytes are written before an offset of the source. Asked in ascending order."""

    def __init__(self, edits: Iterable[Splice]) -> None:
        self._left = sorted(edits, key=lambda edit: -edit.stop)
        self._growth = 0

    def before(self, at: int) -> int:
        while self._left and self._left[-1].stop <= at:
            edit = self._left.pop()
            self._growth += edit.size - (edit.stop - edit.start)
        return at + self._growth


def _events(tree: Tree, changes: Sequence[Splice]) -> list[tuple[int, int, bool]]:
    """(start, stop, whether a frame ends whatever its length): where values begin, what is too long for a frame, the end."""
    longs = {start: stop for start, begin, stop in tree.longs if stop - begin >= TARGET_BYTES}
    for change in changes:
        longs.pop(change.start, None)
        if change.size - (9 if tree.data[change.start] == _BYTEARRAY8 else 5) >= TARGET_BYTES:
            longs[change.start] = change.stop
    events = {(at, at, False) for at in tree.starts} | {(start, stop, True) for start, stop in longs.items()}
    kept = [e for e in events if not any(change.start < e[0] < change.stop for change in changes)]
    return [*sorted(kept), (tree.stop, tree.stop, True)]

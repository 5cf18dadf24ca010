"""Edits of a pickle: integers encoded anew, dictionary entries removed, FRAME lengths corrected; all other bytes stay.

A value that is encoded once and repeated through the memo is shared, as timm's `input_size` (3, 224, 224) is: an edit changes
only the occurrences that it names.
"""

# Only numbers are replaced, and tuples of them that the memo repeats: numbers are never memoized, so that memo indexes stay.
# Nothing is ever popped instead: the unpickler of torch.load(weights_only=True) and TorchScript's refuse POP.

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chkpt_channels.containers.pickle import framing
from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.storage.splice import Splice, spliced


def edited(tree: Tree, values: Mapping[PickleNode, Any], removed: Iterable[tuple[int, int]] = ()) -> bytes:
    """The pickle's bytes with the occurrences in `values` encoded anew, and the spans `removed` taken out.

    Raises UnsupportedError where what is removed is needed elsewhere and cannot be encoded there.
    """
    edits = [(s.start, s.stop, s.data()) for s in splices(tree, values, removed)]
    return spliced(tree.data[0 : tree.stop], edits)[tree.start :]


def splices(
    tree: Tree, values: Mapping[PickleNode, Any], removed: Iterable[tuple[int, int]] = (), others: Sequence[Splice] = ()
) -> list[Splice]:
    """The same as splices, in order, with `others`, which replace whole nodes. Raises as `edited`."""
    rewriting = _Rewriting(tree)
    for node, value in values.items():
        rewriting.want(node, value)
    changes = sorted([*others, *(Splice.of(*edit) for edit in rewriting.edits(list(removed)))], key=lambda s: (s.start, s.stop))
    return sorted([*changes, *framing.splices(tree, changes)], key=lambda s: (s.start, s.stop))


def encode(value: Any) -> bytes:
    """A number in the pickler's shortest form (BININT1, BININT2, BININT, LONG1), or a tuple of integers. A number that is edited
    there and back then has its old bytes again."""
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, tuple):
        inner = b"".join(map(encode, value))
        return b")" if not value else inner + bytes([0x84 + len(value)]) if len(value) < 4 else b"(" + inner + b"t"
    if 0 <= value < 1 << 8:
        return b"K" + bytes([value])
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw: bytes = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


class _Rewriting:
    """Collects wanted values occurrence by occurrence, then decides which bytes change.

    A value that is encoded once and repeated by GETs is edited where it is encoded if all occurrences are to change alike.
    Otherwise the new value takes the old one's place and memo index, and the old value is encoded again, and memoized under
    the same index, at the first GET that still wants it.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._wanted: dict[PickleNode, dict[PickleNode, Any]] = {}

    def want(self, occurrence: PickleNode, value: Any) -> None:
        self._wanted.setdefault(occurrence.target, {})[occurrence] = value

    def edits(self, removed: list[tuple[int, int]]) -> list[tuple[int, int, bytes]]:
        """The replacements [start, stop) → bytes for all that was wanted."""
        edits = [(start, stop, b"") for start, stop in removed]
        if removed:
            edits += self._reencode_memoized(removed)
        while self._wanted:
            node, places = self._wanted.popitem()
            if kept := {occurrence: value for occurrence, value in places.items() if not is_within(occurrence.start, removed)}:
                edits += self._edit(node, kept)
        return [edit for edit in edits if edit[2] or edit[0] != edit[1]]

    def _edit(self, node: PickleNode, places: dict[PickleNode, Any]) -> list[tuple[int, int, bytes]]:
        everywhere = [node, *(node.gets or ())]
        values = set(places.values())
        if len(values) == 1 and len(places) == len(everywhere):
            return self._in_place(node, values.pop())
        out = [(occurrence.start, occurrence.stop, encode(value)) for occurrence, value in places.items()]
        again = next((get for get in node.gets or () if get not in places), None)
        if node in places and again is not None:
            put = struct.pack("<I", node.put[0] if node.put else 0)
            out.append((again.start, again.stop, self._tree.data[node.start : node.stop] + b"r" + put))
        return out

    def _in_place(self, node: PickleNode, value: Any) -> list[tuple[int, int, bytes]]:
        if not isinstance(value, tuple):
            return [(node.start, node.stop, encode(value))] if node.value != value else []
        children = node.children
        if node.kind not in (Kind.TUPLE, Kind.LIST) or len(children) != len(value):
            raise TypeError("a tuple is edited element by element")
        for child, new in zip(children, value, strict=True):
            if child.target.value != new:
                self.want(child, new)
        return []

    def _reencode_memoized(self, removed: list[tuple[int, int]]) -> list[tuple[int, int, bytes]]:
        """What was memoized inside removed spans and is repeated outside is encoded at its first repetition."""
        edits = []
        for node in self._tree.memoized:
            if node.put is None or not is_within(node.put[1], removed):
                continue
            later = next((get for get in node.gets or () if not is_within(get.start, removed)), None)
            if later is not None:
                edits.append((later.start, later.stop, self._encode_alone(node) + b"r" + struct.pack("<I", node.put[0])))
        kept = [memoize for memoize in self._tree.memoize_opcodes if not is_within(memoize[0], removed)]
        if len(kept) < len(self._tree.memoize_opcodes):
            # MEMOIZE takes the next index: after a removed one each must be a LONG_BINPUT with the old index
            edits += [(at, at + 1, b"r" + struct.pack("<I", i)) for at, i in kept if at > min(removed)[0]]
        return edits

    def _encode_alone(self, node: PickleNode) -> bytes:
        data = self._tree.data
        if node.kind in (Kind.CONST, Kind.INT, Kind.FLOAT, Kind.TEXT, Kind.BYTES):
            return data[node.start : node.stop]
        if node.kind is Kind.GLOBAL and all("\n" not in part and part.isascii() for part in node.value):
            return b"c" + "\n".join(node.value).encode() + b"\n"
        raise self._tree.location.unsupported("an optimizer entry shares objects with the rest of the file and cannot be removed")


def is_within(at: int, spans: Iterable[tuple[int, int]]) -> bool:
    """Whether a byte is in one of the spans."""
    return any(start <= at < stop for start, stop in spans)

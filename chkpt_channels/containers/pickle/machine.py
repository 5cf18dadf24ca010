"""The pickle machine on nodes instead of objects: its stack, its marks, its memo, and the bytes that it reads.

Over a file it skips long texts and byte strings: what a pickle of arrays holds beside their elements is small, and these are
found by the span of the node that encodes them.
Source: CPython's Modules/_pickle.c. `opcodes` has the operation of each opcode.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.containers.pickle.window import FileBytes
from chkpt_channels.core.errors import Location

FRAME_HEAD_BYTES = 9
"""Bytes of a FRAME opcode: itself, and the length of what follows as eight bytes."""
KEPT_BYTES = 1 << 12
"""Of a text or byte string that is kept with its node, where the pickle stays in its file: names are shorter."""
LONGEST_DECIMAL_DIGITS = 400
"""Of numbers written as text: Python takes quadratic time to read them, and sizes and counts have 20 digits."""

PickleBytes = bytes | FileBytes


class OutOfData(Exception):
    """The pickle continues after the end of the bytes at hand."""


class Machine:
    """The pickle machine, on nodes instead of objects."""

    starts: Sequence[int] = ()
    longs: Sequence[tuple[int, int, int]] = ()

    def __init__(self, data: PickleBytes, location: Location, at: int) -> None:
        self.data, self.location, self.at = data, location, at
        self.stack: list[PickleNode] = []
        self.marks: list[tuple[int, int]] = []  # (depth of the stack, offset of the MARK)
        self.memo: dict[int, PickleNode] = {}
        self.memoized: list[PickleNode] = []
        self.persids: list[PickleNode] = []
        self.globals: dict[tuple[str, str], None] = {}  # in file order
        self.frames: list[tuple[int, int]] = []  # (offset of the FRAME, length of what it frames)
        self.memoize_opcodes: list[tuple[int, int]] = []  # (offset, memo index): MEMOIZE does not encode its index
        self.pair_stops: dict[PickleNode, int] = {}  # where a key and its value end, by key
        self._read: dict[PickleNode, int] = {}  # what calls and BUILD have read, with the number of items that it had

    def damaged(self, what: str, at: int) -> Exception:
        """The error for what is wrong with the opcode at `at`."""
        return self.location.damaged(what, at=at)

    def take(self, count: int, start: int) -> bytes:
        """The next `count` bytes."""
        if count < 0:
            raise self.damaged("a length is negative", start)
        at = self.at
        if at + count > len(self.data):
            raise OutOfData
        self.at = at + count
        return self.data[at : self.at]

    def byte(self) -> int:
        """The next byte."""
        at = self.at
        if at >= len(self.data):
            raise OutOfData
        self.at = at + 1
        return self.data[at]

    def number(self, size: int, start: int) -> int:
        """The next `size` bytes as an unsigned number."""
        return int.from_bytes(self.take(size, start), "little")

    def line(self, start: int) -> bytes:
        """The bytes up to the next line feed, as protocols 0 and 1 encode arguments."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise OutOfData
        line, self.at = self.data[self.at : end], end + 1
        return line

    def push(self, kind: int, start: int, value: Any) -> None:
        """Push a new value, encoded from `start` up to here."""
        self.stack.append(PickleNode(kind, start, self.at, value))

    def chunk(self, kind: int, count: int, start: int, errors: str = "") -> None:
        """Push a byte string of so many bytes, or the text that they are, in which `errors` pass."""
        raw = self.take(count, start)
        try:
            self.push(kind, start, raw.decode("utf-8", errors) if errors else raw)
        except UnicodeDecodeError:
            raise self.damaged("a text is not UTF-8", start) from None

    def pop(self) -> PickleNode:
        """Take the top of the stack. IndexError where the last MARK would be passed."""
        if self.marks and len(self.stack) <= self.marks[-1][0]:
            raise IndexError
        return self.stack.pop()

    def popped_to_mark(self) -> tuple[int, list[PickleNode]]:
        """(offset of the last MARK, what was pushed since)."""
        depth, start = self.marks.pop()
        nodes = self.stack[depth:]
        del self.stack[depth:]
        return start, nodes

    def top(self) -> PickleNode:
        """The top of the stack; for a GET the node that it repeats. IndexError as for `pop`."""
        if self.marks and len(self.stack) <= self.marks[-1][0]:
            raise IndexError
        return self.stack[-1].target

    def put(self, index: int, start: int) -> None:
        """Memoize the top of the stack; only the first index under which a node is known is kept with it."""
        stack = self.stack  # as `top` does, for every second opcode
        if self.marks and len(stack) <= self.marks[-1][0]:
            raise IndexError
        node = stack[-1]
        if node.kind is Kind.GET:
            node = node.value
        if self.memo.get(index) is not node:
            self.memo[index] = node
            if node.put is None:
                node.put = (index, start, self.at)
                self.memoized.append(node)

    def get(self, index: int, start: int) -> None:
        """Push a memoized node once more."""
        node = self.memo.get(index)
        if node is None:
            raise self.damaged(f"memo {index} is read before it is written", start)
        self.repeat(node, start)

    def repeat(self, node: PickleNode, start: int) -> None:
        """Push an occurrence of a node that was encoded before."""
        again = PickleNode(Kind.GET, start, self.at, node)
        if node.gets is None:
            node.gets = []
        node.gets.append(again)
        self.stack.append(again)

    def name(self, module: str, name: str, begin: int) -> None:
        """Push a global that is encoded from `begin` on, and remember its name; nothing is looked up. torch finds its own by the
        dotted name, wherever that is divided."""
        if module == "torch" or module.startswith("torch."):
            module, _, name = f"{module}.{name}".rpartition(".")
        self.globals[module, name] = None
        self.push(Kind.GLOBAL, begin, (module, name))

    def extend(self, node: PickleNode, items: Iterable[tuple[PickleNode, ...]]) -> None:
        """Give a node further items; they need not be encoded next to it."""
        if node.items is None:
            node.items = []
        node.items.extend(items)

    def read_by_call(self, node: PickleNode) -> None:
        """Remember the lists and dicts that a call, or BUILD, reads: what is made of them does not have what they get later."""
        if node.kind is Kind.GET:
            if (node := node.value) in self._read:
                return
            self._read[node] = len(node.items or ())
        for part in node.value if node.kind is Kind.TUPLE else (node,):
            part = part.value if part.kind is Kind.GET else part
            if part.kind in (Kind.LIST, Kind.DICT, Kind.SET) or (part.kind is Kind.CALL and part.items is not None):
                self._read.setdefault(part, len(part.items or ()))

    def check_read(self) -> None:
        """Raise UnsupportedError where something grew after it was read: then the tree does not show what was made of it."""
        if any(len(node.items or ()) != count for node, count in self._read.items()):
            raise self.location.unsupported("a list or dict in its pickle gets more after a call has read it")

    def pairs(self, nodes: list[PickleNode], start: int) -> list[tuple[PickleNode, ...]]:
        """What was pushed since a MARK, as keys and values."""
        if len(nodes) % 2:
            raise self.damaged("a key has no value", start)
        return list(zip(nodes[::2], nodes[1::2], strict=True))

    def decimal(self, raw: bytes, start: int) -> int:
        """The number of a text line."""
        digits = raw.removesuffix(b"L")
        if len(digits) > LONGEST_DECIMAL_DIGITS or not digits.removeprefix(b"-").isdigit():
            raise self.damaged("a number is not written in decimal digits", start)
        return int(digits)


class SkippingMachine(Machine):
    """The machine over a file. What is longer than KEPT_BYTES becomes a node of the kind BYTES without a value, and `longs` has
    its (start, first byte, stop). `starts` are the offsets at which values begin: where a pickler may end a frame."""

    starts: array[int]
    longs: list[tuple[int, int, int]]

    def __init__(self, data: FileBytes, location: Location, at: int) -> None:
        super().__init__(data, location, at)
        self.starts, self.longs = array("Q"), []

    def push(self, kind: int, start: int, value: Any) -> None:
        """Push a new value, and note where it begins."""
        self.starts.append(start)
        super().push(kind, start, value)

    def repeat(self, node: PickleNode, start: int) -> None:
        """Push an occurrence of a node, and note where it is."""
        self.starts.append(start)
        super().repeat(node, start)

    def take(self, count: int, start: int) -> bytes:
        """The next bytes: a number's."""
        if count > KEPT_BYTES:
            raise self.damaged(f"a number has {count} bytes", start)
        return super().take(count, start)

    def chunk(self, kind: int, count: int, start: int, errors: str = "") -> None:
        """Push a byte string or a text, or skip it."""
        if count <= KEPT_BYTES:
            super().chunk(kind, count, start, errors)
            return
        if count > len(self.data) - self.at:
            raise OutOfData
        self.longs.append((start, self.at, self.at + count))
        self.at += count
        self.push(Kind.BYTES, start, None)

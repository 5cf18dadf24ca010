"""A pickle as a tree of nodes that know which bytes spell them. Nothing is executed and no name is resolved.

Source: CPython's Lib/pickletools.py (opcodes of protocols 0 to 5) and Modules/_pickle.c (what each does to stack and memo).
The reader is iterative and runs one opcode after another on a stack of nodes; `pickleedit` changes what it found.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from chkpt_channels.core.errors import Place
from chkpt_channels.core.gc_pause import paused
from chkpt_channels.core.limits import LIMITS


class Kind:
    """What a node is. CALL is any object made by a callable: REDUCE, NEWOBJ, NEWOBJ_EX, INST, OBJ. (Plain integers: the
    machine compares them once an opcode, and members of an enumeration take three times as long to look up.)"""

    CONST, INT, FLOAT, TEXT, BYTES, TUPLE, LIST, DICT, SET, GLOBAL, CALL, PERSID, GET, MARK = range(14)


class Node:
    """One occurrence of a value, spelled by bytes [start, stop).

    value     constants and numbers: themselves; TUPLE, LIST: the children; GLOBAL: (module, name); CALL: (callable,
              arguments); PERSID: the id; GET: the node it repeats
    items     what was added later: pairs for dicts, (node,) for lists and sets
    state     the argument of BUILD
    put       (memo index, start, stop) of the opcode that memoised it
    gets      the GET nodes that repeat it
    """

    __slots__ = ("gets", "items", "kind", "put", "start", "state", "stop", "value")

    def __init__(self, kind: int, start: int, stop: int, value: Any) -> None:
        self.kind, self.start, self.stop, self.value = kind, start, stop, value
        self.items: list[tuple[Node, ...]] | None = None
        self.state: Node | None = None
        self.put: tuple[int, int, int] | None = None
        self.gets: list[Node] | None = None

    @property
    def target(self) -> Node:
        """The node itself, or the one that a GET repeats."""
        return self.value if self.kind is Kind.GET else self

    @property
    def children(self) -> Sequence[Node]:
        """The elements of a tuple, list or set, those appended later included; none of anything else."""
        spelled = self.value or () if self.kind in (Kind.TUPLE, Kind.LIST, Kind.SET) else ()
        return spelled if self.items is None else [*spelled, *(item[0] for item in self.items)]

    @property
    def inner(self) -> list[Node]:
        """Every node that this one is made of or was given, whatever it is."""
        found = [*self.value] if self.value and self.kind in (Kind.TUPLE, Kind.LIST, Kind.SET, Kind.CALL) else []
        for item in self.items or ():
            found += item
        return found if self.state is None else [*found, self.state]

    def entries(self) -> Iterator[tuple[Node, Node]]:
        """The (key, value) nodes of a dict or a dict-like object."""
        for item in self.items or ():
            if len(item) == 2:
                yield item[0].target, item[1]

    def lookup(self, key: str) -> Node | None:
        """The value node behind a text key of a dict or a dict-like object."""
        return next((v for k, v in self.entries() if k.kind is Kind.TEXT and k.value == key), None)

    def is_global(self, module: str, *names: str) -> bool:
        """Whether this is one of the named globals."""
        node = self.target
        return node.kind is Kind.GLOBAL and node.value[0] == module and node.value[1] in names


class OutOfData(Exception):
    """The pickle goes on behind the end of the bytes at hand."""


class Tree:
    """One parsed pickle: bytes [start, stop) of `data`, `base` bytes into the file."""

    def __init__(self, data: bytes, place: Place, *, start: int = 0, base: int = 0) -> None:
        """Parse. Raises DamagedError with the opcode's offset, UnsupportedError for protocol 0, OutOfData if cut off."""
        self.data, self.place, self.start = data, place, start
        machine = _Machine(data, place, start, base)
        with paused():
            self.root = machine.run()
        self.stop = machine.at
        for at, length in machine.frames[-1:]:
            if at + 9 + length > self.stop:
                raise machine.damaged("a FRAME reaches beyond the pickle", at)
        self.persids, self.globals = machine.persids, machine.globals
        self.frames, self.pair_stops = machine.frames, machine.pair_stops
        self.memoizes, self.memoised = machine.memoizes, machine.memoised

    @classmethod
    def whole(cls, data: bytes, place: Place) -> Tree:
        """The one pickle that fills `data`. Raises DamagedError where it is cut off or more stands behind it."""
        try:
            tree = cls(data, place)
        except OutOfData:
            raise place.damaged("the pickle is cut off", at=len(data)) from None
        if tree.stop != len(data):
            raise place.damaged("bytes stand behind the end of the pickle", at=tree.stop)
        return tree


def plain(node: Node) -> Any:
    """The value of an integer of up to 64 bits, or of a tuple or list of such; None for anything else."""
    node = node.target
    if node.kind is Kind.INT:
        return node.value if -(1 << 63) <= node.value < 1 << 63 else None
    if node.kind in (Kind.TUPLE, Kind.LIST):
        values = tuple(plain(child) if child.target.kind is Kind.INT else None for child in node.children)
        return None if None in values else values
    return None


class _Machine:
    """The pickle machine, on nodes instead of objects."""

    def __init__(self, data: bytes, place: Place, at: int, base: int) -> None:
        self.data, self.place, self.at, self.base = data, place, at, base
        self.begin = at
        self.stack: list[Node] = []
        self.marks: list[tuple[int, int]] = []  # (depth of the stack, offset of the MARK)
        self.memo: dict[int, Node] = {}
        self.memoised: list[Node] = []
        self.persids: list[Node] = []
        self.globals: dict[tuple[str, str], int] = {}
        self.frames: list[tuple[int, int]] = []
        self.memoizes: list[tuple[int, int]] = []
        self.pair_stops: dict[Node, int] = {}  # where the spelling of a key and its value ends, by key
        self.protocol = 0

    def run(self) -> Node:
        """Run to STOP; the one value left on the stack."""
        data, size, operations = self.data, len(self.data), _OPERATIONS
        for _ in range(LIMITS.pickle_opcodes):
            start = self.at
            if start >= size:
                raise OutOfData
            code = data[start]
            self.at = start + 1
            if code == 0x2E:
                break
            operation = operations[code]
            if operation is None:
                raise self.damaged(f"is no pickle: {code:#04x} is no opcode", start)
            try:
                operation(self, start)
            except (IndexError, struct.error):
                raise self.damaged("the pickle's stack runs empty", start) from None
        else:
            self.place.within("opcodes, or more", LIMITS.pickle_opcodes + 1, LIMITS.pickle_opcodes, at=self.at + self.base)
        if len(self.stack) != 1 or self.marks:
            raise self.damaged("the pickle ends with other than one value", start)
        return self.stack[0]

    def damaged(self, what: str, at: int) -> Exception:
        return self.place.damaged(what, at=at + self.base)

    def take(self, count: int, start: int) -> bytes:
        """The next `count` bytes."""
        if count < 0:
            raise self.damaged("a negative length", start)
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
        return int.from_bytes(self.take(size, start), "little")

    def line(self, start: int) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise OutOfData
        line, self.at = self.data[self.at : end], end + 1
        return line

    def push(self, kind: int, start: int, value: Any) -> None:
        self.stack.append(Node(kind, start, self.at, value))

    def text(self, raw: bytes, start: int) -> None:
        try:
            self.push(Kind.TEXT, start, raw.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise self.damaged("a text is not UTF-8", start) from None

    def pop(self) -> Node:
        if self.marks and len(self.stack) <= self.marks[-1][0]:
            raise IndexError
        return self.stack.pop()

    def popped_to_mark(self) -> tuple[int, list[Node]]:
        """(offset of the last MARK, what was pushed since)."""
        depth, start = self.marks.pop()
        found = self.stack[depth:]
        del self.stack[depth:]
        return start, found

    def top(self) -> Node:
        if self.marks and len(self.stack) <= self.marks[-1][0]:
            raise IndexError
        return self.stack[-1].target

    def put(self, index: int, start: int) -> None:
        node = self.top()
        if self.memo.get(index) is not node:
            self.memo[index] = node
            if node.put is None:
                node.put = (index, start, self.at)
                self.memoised.append(node)

    def get(self, index: int, start: int) -> None:
        node = self.memo.get(index)
        if node is None:
            raise self.damaged(f"memo {index} is read before it is written", start)
        self.repeat(node, start)

    def repeat(self, node: Node, start: int) -> None:
        again = Node(Kind.GET, start, self.at, node)
        if node.gets is None:
            node.gets = []
        node.gets.append(again)
        self.stack.append(again)

    def name(self, module: str, name: str, begin: int, start: int) -> None:
        self.globals.setdefault((module, name), start + self.base)
        self.push(Kind.GLOBAL, begin, (module, name))

    def extend(self, node: Node, items: Iterable[tuple[Node, ...]]) -> None:
        if node.items is None:
            node.items = []
        node.items.extend(items)

    def pairs(self, found: list[Node], start: int) -> list[tuple[Node, ...]]:
        if len(found) % 2:
            raise self.damaged("a key without a value", start)
        return list(zip(found[::2], found[1::2], strict=True))

    def decimal(self, raw: bytes, start: int) -> int:
        digits = raw.removesuffix(b"L")
        if len(digits) > 400 or not digits.removeprefix(b"-").isdigit():
            raise self.damaged("a number is no number", start)
        return int(digits)


_Operation = Callable[[_Machine, int], None]


def _const(value: object) -> _Operation:
    return lambda m, start: m.push(Kind.CONST, start, value)


def _unsigned(size: int) -> _Operation:
    return lambda m, start: m.push(Kind.INT, start, m.number(size, start))


def _int_line(m: _Machine, start: int) -> None:
    raw = m.line(start)
    if raw in (b"00", b"01"):  # how protocols 0 and 1 spell booleans
        m.push(Kind.CONST, start, raw == b"01")
    else:
        m.push(Kind.INT, start, m.decimal(raw, start))


def _long(size: int) -> _Operation:
    def operation(m: _Machine, start: int) -> None:
        raw = m.take(m.number(size, start) if size == 1 else _signed4(m, start), start)
        m.push(Kind.INT, start, int.from_bytes(raw, "little", signed=True))

    return operation


def _signed4(m: _Machine, start: int) -> int:
    return int(struct.unpack("<i", m.take(4, start))[0])


def _binint(m: _Machine, start: int) -> None:
    m.push(Kind.INT, start, _signed4(m, start))


def _float_line(m: _Machine, start: int) -> None:
    raw = m.line(start)
    try:
        m.push(Kind.FLOAT, start, float(raw))
    except ValueError:
        raise m.damaged("a number is no number", start) from None


def _text(size: int) -> _Operation:
    return lambda m, start: m.text(m.take(m.number(size, start), start), start)


def _bytes(size: int) -> _Operation:
    return lambda m, start: m.push(Kind.BYTES, start, m.take(m.number(size, start), start))


def _string(size: int) -> _Operation:
    """STRING of Python 2: bytes that torch decodes as text."""

    def operation(m: _Machine, start: int) -> None:
        raw = m.line(start)[1:-1] if size == 0 else m.take(m.number(size, start), start)
        m.push(Kind.TEXT, start, raw.decode("utf-8", "backslashreplace"))

    return operation


def _tuple(size: int) -> _Operation:
    def operation(m: _Machine, start: int) -> None:
        found = [m.pop() for _ in range(size)][::-1]
        m.push(Kind.TUPLE, found[0].start if found else start, found)

    return operation


def _from_mark(kind: int) -> _Operation:
    def operation(m: _Machine, start: int) -> None:
        begin, found = m.popped_to_mark()
        m.push(kind, begin, found)

    return operation


def _dict(m: _Machine, start: int) -> None:
    begin, found = m.popped_to_mark()
    m.push(Kind.DICT, begin, None)
    m.extend(m.stack[-1], m.pairs(found, start))


def _mark(m: _Machine, start: int) -> None:
    m.marks.append((len(m.stack), start))


def _memoize(m: _Machine, start: int) -> None:
    m.memoizes.append((start, len(m.memo)))
    m.put(len(m.memo), start)


def _frame(m: _Machine, start: int) -> None:
    length = m.number(8, start)
    if m.frames and m.frames[-1][0] + 9 + m.frames[-1][1] > start:
        raise m.damaged("a FRAME begins inside another", start)
    m.frames.append((start, length))
    if m.at + length > len(m.data):
        raise OutOfData


def _protocol(m: _Machine, start: int) -> None:
    m.protocol = m.number(1, start)
    if m.protocol > 5:
        raise m.damaged(f"pickle protocol {m.protocol} does not exist", start)


def _protocol_0(m: _Machine, start: int) -> None:
    raise m.place.unsupported(
        "is pickled with protocol 0, which torch cannot load either", hint="save it again with a newer protocol"
    )


def _get_line(m: _Machine, start: int) -> None:
    m.get(m.decimal(m.line(start), start), start)


def _put_line(m: _Machine, start: int) -> None:
    m.put(m.decimal(m.line(start), start), start)


def _global(m: _Machine, start: int) -> None:
    module, name = m.line(start), m.line(start)
    if not module or not name:  # for Python the pickle is cut off there
        raise m.damaged("a global has no name", start)
    m.name(module.decode("utf-8", "backslashreplace"), name.decode("utf-8", "backslashreplace"), start, start)


def _stack_global(m: _Machine, start: int) -> None:
    name, module = m.pop(), m.pop()
    if name.target.kind is not Kind.TEXT or module.target.kind is not Kind.TEXT:
        raise m.damaged("a global's name is no text", start)
    m.name(module.target.value, name.target.value, module.start, start)


def _inst(m: _Machine, start: int) -> None:
    begin, found = m.popped_to_mark()
    _global(m, start)
    called = m.pop()
    m.push(Kind.CALL, begin, (called, Node(Kind.TUPLE, begin, start, found)))


def _obj(m: _Machine, start: int) -> None:
    begin, found = m.popped_to_mark()
    m.push(Kind.CALL, begin, (found[0], Node(Kind.TUPLE, begin, start, found[1:])))


def _call(arguments: int) -> _Operation:
    def operation(m: _Machine, start: int) -> None:
        found = [m.pop() for _ in range(arguments)][::-1]
        called = m.pop()
        m.push(Kind.CALL, called.start, (called, *found))

    return operation


def _persid(m: _Machine, start: int) -> None:
    node = m.pop()
    m.push(Kind.PERSID, node.start, node)
    m.persids.append(m.stack[-1])


def _build(m: _Machine, start: int) -> None:
    state = m.pop()
    node = m.top()
    node.state = state


def _append(m: _Machine, start: int) -> None:
    item = m.pop()
    m.extend(m.top(), [(item,)])


def _appends(m: _Machine, start: int) -> None:
    _, found = m.popped_to_mark()
    m.extend(m.top(), [(item,) for item in found])


def _setitem(m: _Machine, start: int) -> None:
    value, key = m.pop(), m.pop()
    m.pair_stops[key] = m.at
    m.extend(m.top(), [(key, value)])


def _setitems(m: _Machine, start: int) -> None:
    _, found = m.popped_to_mark()
    pairs = m.pairs(found, start)
    stops = [*(key.start for key, _ in pairs[1:]), start]
    m.pair_stops.update(zip((key for key, _ in pairs), stops, strict=False))
    m.extend(m.top(), pairs)


def _pop(m: _Machine, start: int) -> None:
    if m.marks and m.marks[-1][0] == len(m.stack):
        m.marks.pop()
    else:
        m.pop()


def _pop_mark(m: _Machine, start: int) -> None:
    m.popped_to_mark()


def _dup(m: _Machine, start: int) -> None:
    m.repeat(m.top(), start)


def _extension(size: int) -> _Operation:
    return lambda m, start: m.name("copyreg", f"extension {m.number(size, start)}", start, start)


def _readonly(m: _Machine, start: int) -> None:
    m.top()


_BY_LETTER: dict[bytes, _Operation] = {
    b"(": _mark, b"0": _pop, b"1": _pop_mark, b"2": _dup,
    b"F": _float_line, b"G": lambda m, start: m.push(Kind.FLOAT, start, struct.unpack(">d", m.take(8, start))[0]),
    b"I": _int_line, b"J": _binint,
    b"K": lambda m, start: m.push(Kind.INT, start, m.byte()), b"M": _unsigned(2), b"\x8a": _long(1), b"\x8b": _long(4),
    b"L": lambda m, start: m.push(Kind.INT, start, m.decimal(m.line(start), start)),
    b"N": _const(None), b"\x88": _const(True), b"\x89": _const(False),
    b"P": _protocol_0, b"V": _protocol_0, b"Q": _persid,
    b"S": _string(0), b"T": _string(4), b"U": _string(1),
    b"X": _text(4), b"\x8c": _text(1), b"\x8d": _text(8),
    b"B": _bytes(4), b"C": _bytes(1), b"\x8e": _bytes(8), b"\x96": _bytes(8),
    b"c": _global, b"\x93": _stack_global, b"i": _inst, b"o": _obj,
    b"R": _call(1), b"\x81": _call(1), b"\x92": _call(2), b"b": _build,
    b"]": lambda m, start: m.push(Kind.LIST, start, None), b"l": _from_mark(Kind.LIST), b"a": _append, b"e": _appends,
    b"}": lambda m, start: m.push(Kind.DICT, start, None), b"d": _dict, b"s": _setitem, b"u": _setitems,
    b"\x8f": lambda m, start: m.push(Kind.SET, start, None), b"\x90": _appends, b"\x91": _from_mark(Kind.SET),
    b")": _tuple(0), b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3), b"t": _from_mark(Kind.TUPLE),
    b"g": _get_line, b"h": lambda m, start: m.get(m.byte(), start),
    b"j": lambda m, start: m.get(m.number(4, start), start),
    b"p": _put_line, b"q": lambda m, start: m.put(m.byte(), start),
    b"r": lambda m, start: m.put(m.number(4, start), start), b"\x94": _memoize,
    b"\x80": _protocol, b"\x95": _frame,
    b"\x82": _extension(1), b"\x83": _extension(2), b"\x84": _extension(4),
    b"\x97": lambda m, start: m.push(Kind.CONST, start, None), b"\x98": _readonly,
}  # fmt: skip

_OPERATIONS: list[_Operation | None] = [_BY_LETTER.get(bytes([code])) for code in range(256)]

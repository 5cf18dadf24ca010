"""What each pickle opcode does to the machine: one table, and the loop over it.

Source: CPython's Lib/pickletools.py (opcodes of protocols 0 to 5) and Modules/_pickle.c (what each does to stack and memo).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from chkpt_channels.containers.pickle.machine import FRAME_HEAD_BYTES, Machine, OutOfData
from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.core.limits import LIMITS

STOP = 0x2E
_ARGUMENTS_UNREAD = {("collections", "OrderedDict"), ("collections", "Counter"), ("__builtin__", "set"), ("builtins", "set")}
"""Classes whose __new__ reads no arguments."""
_TEXT = Kind.TEXT, "surrogatepass"
"""Python pickles lone surrogates, so they pass."""
_STRING = Kind.TEXT, "backslashreplace"
"""Of Python 2: bytes that are read as text."""

_Operation = Callable[[Machine, int], None]


def _const(value: object) -> _Operation:
    return lambda m, start: m.push(Kind.CONST, start, value)


def _unsigned(size: int) -> _Operation:
    return lambda m, start: m.push(Kind.INT, start, m.number(size, start))


def _int_line(m: Machine, start: int) -> None:
    raw = m.line(start)
    if raw in (b"00", b"01"):  # trap: protocols 0 and 1 have no opcode for booleans and write I00 and I01
        m.push(Kind.CONST, start, raw == b"01")
    elif raw.removeprefix(b"-").startswith(b"0") and raw != b"0":  # Python reads it as octal
        raise m.damaged("a number has a leading zero", start)
    else:
        m.push(Kind.INT, start, m.decimal(raw, start))


def _long(size: int) -> _Operation:
    def operation(m: Machine, start: int) -> None:
        raw = m.take(m.number(size, start) if size == 1 else _signed4(m, start), start)
        m.push(Kind.INT, start, int.from_bytes(raw, "little", signed=True))

    return operation


def _signed4(m: Machine, start: int) -> int:
    return int(struct.unpack("<i", m.take(4, start))[0])


def _float_line(m: Machine, start: int) -> None:
    raw = m.line(start)
    try:
        m.push(Kind.FLOAT, start, float(raw))
    except ValueError:
        raise m.damaged("a number is not written in decimal digits", start) from None


def _chunk(size: int, kind: int, errors: str = "") -> _Operation:
    return lambda m, start: m.chunk(kind, m.number(size, start), start, errors)


def _tuple(size: int) -> _Operation:
    def operation(m: Machine, start: int) -> None:
        items = [m.pop() for _ in range(size)][::-1]
        m.push(Kind.TUPLE, items[0].start if items else start, items)

    return operation


def _from_mark(kind: int) -> _Operation:
    def operation(m: Machine, start: int) -> None:
        begin, items = m.popped_to_mark()
        m.push(kind, begin, items)

    return operation


def _dict(m: Machine, start: int) -> None:
    begin, nodes = m.popped_to_mark()
    m.push(Kind.DICT, begin, None)
    m.extend(m.stack[-1], m.pairs(nodes, start))


def _memoize(m: Machine, start: int) -> None:
    m.memoize_opcodes.append((start, len(m.memo)))
    m.put(len(m.memo), start)


def _frame(m: Machine, start: int) -> None:
    length = m.number(8, start)
    if m.frames and m.frames[-1][0] + FRAME_HEAD_BYTES + m.frames[-1][1] > start:
        raise m.damaged("a FRAME begins inside another", start)
    m.frames.append((start, length))
    if m.at + length > len(m.data):
        raise OutOfData


def _protocol(m: Machine, start: int) -> None:
    if (protocol := m.number(1, start)) > 5:
        raise m.damaged(f"pickle protocol {protocol} does not exist", start)


def _protocol_0(m: Machine, start: int) -> None:
    raise m.location.unsupported(
        "is pickled with protocol 0, which torch cannot load either", hint="save it again with a newer protocol"
    )


def _global(m: Machine, start: int) -> None:
    module, name = m.line(start), m.line(start)
    if not module or not name:  # Python's unpickler takes an empty line for the end of the data
        raise m.damaged("a global has no name", start)
    m.name(module.decode("utf-8", "backslashreplace"), name.decode("utf-8", "backslashreplace"), start)


def _stack_global(m: Machine, start: int) -> None:
    name, module = m.pop(), m.pop()
    if name.target.kind is not Kind.TEXT or module.target.kind is not Kind.TEXT:
        raise m.damaged("a global's name is not text", start)
    m.name(module.target.value, name.target.value, module.start)


def _inst(m: Machine, start: int) -> None:
    begin, arguments = m.popped_to_mark()
    _global(m, start)
    called = m.pop()
    m.read_by_call(made := PickleNode(Kind.TUPLE, begin, start, arguments))
    m.push(Kind.CALL, begin, (called, made))


def _obj(m: Machine, start: int) -> None:
    begin, nodes = m.popped_to_mark()
    m.read_by_call(made := PickleNode(Kind.TUPLE, begin, start, nodes[1:]))
    m.push(Kind.CALL, begin, (nodes[0], made))


def _call(count: int, *, new: bool = False) -> _Operation:
    def operation(m: Machine, start: int) -> None:
        parts = [m.pop() for _ in range(count)][::-1]
        called = m.pop()
        for part in parts:
            m.read_by_call(part)
        if new and called.target.kind is Kind.GLOBAL and called.target.value in _ARGUMENTS_UNREAD:
            parts[0] = PickleNode(Kind.TUPLE, start, start, [])
        m.push(Kind.CALL, called.start, (called, *parts))

    return operation


def _persid(m: Machine, start: int) -> None:
    node = m.pop()
    m.push(Kind.PERSID, node.start, node)
    m.persids.append(m.stack[-1])


def _build(m: Machine, start: int) -> None:
    state = m.pop()
    node = m.top()
    if node.state is not None:
        raise m.location.unsupported("an object in its pickle is given a state twice")
    if node.kind is Kind.GLOBAL:  # a function's defaults, a class's methods: what it then does, its name does not say
        m.globals[node.value[0], f"{node.value[1]}.__setstate__"] = None
    m.read_by_call(state)
    node.state = state


def _append(m: Machine, start: int) -> None:
    item = m.pop()
    m.extend(m.top(), [(item,)])


def _appends(m: Machine, start: int) -> None:
    _, items = m.popped_to_mark()
    m.extend(m.top(), [(item,) for item in items])


def _setitem(m: Machine, start: int) -> None:
    value, key = m.pop(), m.pop()
    m.pair_stops[key] = m.at
    m.extend(_dict_like(m), [(key, value)])


def _setitems(m: Machine, start: int) -> None:
    _, nodes = m.popped_to_mark()
    pairs = m.pairs(nodes, start)
    stops = [*(key.start for key, _ in pairs[1:]), start]
    m.pair_stops.update(zip((key for key, _ in pairs), stops, strict=False))
    m.extend(_dict_like(m), pairs)


def _dict_like(m: Machine) -> PickleNode:
    """The top of the stack, which takes entries. Python sets those of lists too, and torch those of storages and tensors."""
    if (node := m.top()).kind not in (Kind.DICT, Kind.CALL):
        raise m.location.unsupported("entries are set in something in its pickle that is no dict")
    return node


def _pop(m: Machine, start: int) -> None:
    if m.marks and m.marks[-1][0] == len(m.stack):
        m.marks.pop()
    else:
        m.pop()


def _pop_mark(m: Machine, start: int) -> None:
    m.popped_to_mark()


def _extension(size: int) -> _Operation:
    return lambda m, start: m.name("copyreg", f"extension {m.number(size, start)}", start)


def _readonly(m: Machine, start: int) -> None:
    m.top()


_BY_LETTER: dict[bytes, _Operation] = {
    b"(": lambda m, start: m.marks.append((len(m.stack), start)), b"0": _pop, b"1": _pop_mark,
    b"2": lambda m, start: m.repeat(m.top(), start),
    b"F": _float_line, b"G": lambda m, start: m.push(Kind.FLOAT, start, struct.unpack(">d", m.take(8, start))[0]),
    b"I": _int_line, b"J": lambda m, start: m.push(Kind.INT, start, _signed4(m, start)),
    b"K": lambda m, start: m.push(Kind.INT, start, m.byte()), b"M": _unsigned(2), b"\x8a": _long(1), b"\x8b": _long(4),
    b"L": lambda m, start: m.push(Kind.INT, start, m.decimal(m.line(start), start)),
    b"N": _const(None), b"\x88": _const(True), b"\x89": _const(False),
    b"P": _protocol_0, b"S": _protocol_0, b"V": _protocol_0, b"Q": _persid, b"T": _chunk(4, *_STRING), b"U": _chunk(1, *_STRING),
    b"X": _chunk(4, *_TEXT), b"\x8c": _chunk(1, *_TEXT), b"\x8d": _chunk(8, *_TEXT),
    b"B": _chunk(4, Kind.BYTES), b"C": _chunk(1, Kind.BYTES), b"\x8e": _chunk(8, Kind.BYTES), b"\x96": _chunk(8, Kind.BYTES),
    b"c": _global, b"\x93": _stack_global, b"i": _inst, b"o": _obj,
    b"R": _call(1), b"\x81": _call(1, new=True), b"\x92": _call(2, new=True), b"b": _build,
    b"]": lambda m, start: m.push(Kind.LIST, start, None), b"l": _from_mark(Kind.LIST), b"a": _append, b"e": _appends,
    b"}": lambda m, start: m.push(Kind.DICT, start, None), b"d": _dict, b"s": _setitem, b"u": _setitems,
    b"\x8f": lambda m, start: m.push(Kind.SET, start, None), b"\x90": _appends, b"\x91": _from_mark(Kind.SET),
    b")": _tuple(0), b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3), b"t": _from_mark(Kind.TUPLE),
    b"g": lambda m, start: m.get(m.decimal(m.line(start), start), start), b"h": lambda m, start: m.get(m.byte(), start),
    b"j": lambda m, start: m.get(m.number(4, start), start),
    b"p": lambda m, start: m.put(m.decimal(m.line(start), start), start), b"q": lambda m, start: m.put(m.byte(), start),
    b"r": lambda m, start: m.put(m.number(4, start), start), b"\x94": _memoize,
    b"\x80": _protocol, b"\x95": _frame,
    b"\x82": _extension(1), b"\x83": _extension(2), b"\x84": _extension(4),
    b"\x97": _const(None), b"\x98": _readonly,
}  # fmt: skip

_OPERATIONS: list[_Operation | None] = [_BY_LETTER.get(bytes([code])) for code in range(256)]


def run(machine: Machine) -> PickleNode:
    """Run to STOP; the one value left on the stack. Depth costs no recursion, and what the memo repeats is not expanded."""
    data, size, operations = machine.data, len(machine.data), _OPERATIONS
    for _ in range(LIMITS.pickle_opcodes):
        start = machine.at
        if start >= size:
            raise OutOfData
        code = data[start]
        machine.at = start + 1
        if code == STOP:
            break
        operation = operations[code]
        if operation is None:
            raise machine.damaged(f"is not a pickle: {code:#04x} is not an opcode", start)
        try:
            operation(machine, start)
        except (IndexError, struct.error):
            raise machine.damaged("the pickle's stack underflows", start) from None
    else:
        most = LIMITS.pickle_opcodes
        machine.location.check_limit("opcodes, or more", most + 1, most, at=machine.at)
    if len(machine.stack) != 1 or machine.marks:
        raise machine.damaged("the pickle ends with more or fewer values than one", start)
    machine.check_read()
    return machine.stack[0]

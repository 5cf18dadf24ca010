"""The nodes of a pickle's tree: what each value is, and which bytes encode it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from chkpt_channels.core.records import NamedTuple


class Kind:
    """What a node is. CALL is any object made by a callable: REDUCE, NEWOBJ, NEWOBJ_EX, INST, OBJ. (Plain integers: the
    machine compares them once an opcode, and members of an enumeration take three times as long to look up.)"""

    CONST, INT, FLOAT, TEXT, BYTES, TUPLE, LIST, DICT, SET, GLOBAL, CALL, PERSID, GET = range(13)


class PickleNode:
    """One occurrence of a value, encoded in bytes [start, stop).

    value     constants and numbers: themselves; TUPLE, LIST: the children; GLOBAL: (module, name); CALL: (callable,
              arguments); PERSID: the id; GET: the node it repeats
    items     what was added later: pairs for dicts, (node,) for lists and sets
    state     the argument of BUILD
    put       (memo index, start, stop) of the opcode that memoized it
    gets      the GET nodes that repeat it
    """

    __slots__ = ("gets", "items", "kind", "put", "start", "state", "stop", "value")

    def __init__(self, kind: int, start: int, stop: int, value: Any) -> None:
        self.kind, self.start, self.stop, self.value = kind, start, stop, value
        self.items: list[tuple[PickleNode, ...]] | None = None
        self.state: PickleNode | None = None
        self.put: tuple[int, int, int] | None = None
        self.gets: list[PickleNode] | None = None

    @property
    def target(self) -> PickleNode:
        """The node itself, or the one that a GET repeats."""
        return self.value if self.kind is Kind.GET else self

    @property
    def children(self) -> Sequence[PickleNode]:
        """The elements of a tuple, list or set, those appended later included; the keys of a dict; none of what has none."""
        nodes = self.value or () if self.kind in (Kind.TUPLE, Kind.LIST, Kind.SET) else ()
        return nodes if self.items is None else [*nodes, *(item[0] for item in self.items)]

    @property
    def inner(self) -> list[PickleNode]:
        """Every node that this one is made of or was given, whatever it is."""
        nodes = [*self.value] if self.value and self.kind in (Kind.TUPLE, Kind.LIST, Kind.SET, Kind.CALL) else []
        for item in self.items or ():
            nodes += item
        return nodes if self.state is None else [*nodes, self.state]

    def entries(self) -> list[tuple[PickleNode, PickleNode]]:
        """The (key, value) nodes of a dict or a dict-like object; of a key that is repeated the node that encodes it."""
        return [(item[0].target, item[1]) for item in self.items or () if len(item) == 2]

    def lookup(self, key: str) -> PickleNode | None:
        """The value node of a text key of a dict or a dict-like object."""
        return next((v for k, v in self.entries() if k.kind is Kind.TEXT and k.value == key), None)

    def is_global(self, module: str, *names: str) -> bool:
        """Whether this is one of the named globals."""
        node = self.target
        return node.kind is Kind.GLOBAL and node.value[0] == module and node.value[1] in names


def elements(node: PickleNode) -> tuple[Sequence[PickleNode], list[Any]]:
    """The children of a node in one look: the occurrences, by which edits name them, and their values.

    A value is a text, an integer of up to 64 bits, a tuple of such integers, None, or the node of anything else, a list too,
    which may have grown after it was read. After parsing only: a list can still grow before.
    """
    nodes = node.target.children
    return nodes, [_value(child) for child in nodes]


class Call(NamedTuple):
    """A call of the global `name` = (module, name), and the elements of its argument tuple."""

    name: tuple[str, str]
    nodes: Sequence[PickleNode]
    values: Sequence[Any]


def call_of(names: Container[tuple[str, str]], function: PickleNode, arguments: PickleNode) -> Call | None:
    """The call of `function` with `arguments`, if it is one of these globals and its arguments are a tuple."""
    function, arguments = function.target, arguments.target
    if function.kind is not Kind.GLOBAL or function.value not in names or arguments.kind is not Kind.TUPLE:
        return None
    return Call(function.value, *elements(arguments))


def _value(node: PickleNode) -> Any:
    if node.kind is Kind.GET:
        node = node.value
    if node.kind is Kind.TEXT or (node.value is None and node.kind is Kind.CONST):
        return node.value
    if node.kind in (Kind.INT, Kind.TUPLE) and (integers := plain(node)) is not None:
        return integers
    return node


def plain(node: PickleNode) -> Any:
    """The value of an integer of up to 64 bits, or of a tuple or list of such; None for anything else."""
    node = node.target
    if node.kind is Kind.INT:
        return _integer(node)
    if node.kind in (Kind.TUPLE, Kind.LIST):
        values = tuple([_integer(child) for child in node.children])
        return None if None in values else values
    return None


def _integer(node: PickleNode) -> int | None:
    if node.kind is Kind.GET:
        node = node.value
    return node.value if node.kind is Kind.INT and -(1 << 63) <= node.value < 1 << 63 else None

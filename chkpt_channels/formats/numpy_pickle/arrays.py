"""Which calls of a pickle are arrays of numbers, and where their elements are."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode, plain
from chkpt_channels.core.dtypes import BY_NAME, DType
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS

_MODULES = ("numpy.core", "numpy._core")
_NUMBERS = {
    **{f"f{bits // 8}": BY_NAME[f"F{bits}"] for bits in (16, 32, 64)},
    **{f"{sign.lower()}{bits // 8}": BY_NAME[f"{sign}{bits}"] for sign in "IU" for bits in (8, 16, 32, 64)},
    "b1": BY_NAME["BOOL"],
    "c8": BY_NAME["C64"],
    "c16": BY_NAME["C128"],
}
_EXTENDED = {dtype.numpy: dtype for dtype in BY_NAME.values() if dtype.extended}
_MOST_ARGUMENTS = 16
"""The state of a dtype has up to nine."""
_NO_NUMBERS = "SUMmT"
"""Kinds of dtypes for text and dates: such arrays are no weights."""


class Array(NamedTuple):
    """An array of numbers. `shape_node` is the occurrence of its shape, `payload` the node that encodes its elements, none of an
    empty one of protocol 2; `latin1` says that they are a text, `fortran` that the first axis is the fastest."""

    dtype: DType
    shape: tuple[int, ...]
    fortran: bool
    shape_node: PickleNode
    payload: PickleNode | None
    latin1: bool

    @property
    def size(self) -> int:
        """The bytes of its elements."""
        return prod(self.shape) * self.dtype.bits // 8


class NoNumbers(NamedTuple):
    """An array that cannot be read, in words that follow its name, and what to do; without words one that is no weight."""

    shape: tuple[int, ...] | None
    what: str = ""
    hint: str = ""


class LatinText:
    """The elements of an array of protocol 2, a text in which each letter is a byte: a Checksum over the span that encodes it."""

    def __init__(self, location: Location, span: tuple[int, int], size: int) -> None:
        self.start, self.stop = span
        self._location, self._size, self._taken = location, size, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def taken(self, data: bytes | memoryview, *, last: bool = False) -> bytes:
        """The next elements. Raises DamagedError for letters that are no bytes."""
        try:
            raw = self._decoder.decode(bytes(data), last).encode("latin-1")
        except UnicodeError:
            raise self._location.damaged("its elements are no text of latin-1", at=self.start) from None
        self._taken += len(raw)
        return raw

    def update(self, data: memoryview) -> None:
        """Take the next bytes."""
        self.taken(data)

    def finish(self) -> None:
        """Raise DamagedError for more or fewer elements than the shape has."""
        self.taken(b"", last=True)
        if self._taken != self._size:
            what = f"its elements have {self._taken} bytes, and its shape needs {self._size}"
            raise self._location.damaged(what, at=self.start)


def array_of(node: PickleNode, location: Location) -> Array | NoNumbers | None:
    """The array that a call makes, None for anything else. Raises DamagedError for a shape that is none."""
    parts = _parts(node)
    if parts is None:
        return None
    shape_node, dtype_node, order, payload = parts
    sides = shape_node.target.value if shape_node.target.kind is Kind.TUPLE else ()
    location.check_limit("axes", len(sides), LIMITS.axes, at=shape_node.start)
    shape = plain(shape_node) if shape_node.target.kind is Kind.TUPLE else None
    if not isinstance(shape, tuple) or any(side < 0 for side in shape):
        raise location.damaged("an array's shape must be a tuple of non-negative integers", at=shape_node.start)
    dtype = _dtype(dtype_node)
    if isinstance(dtype, str):
        return NoNumbers(shape, dtype, "array.astype('float32')" if dtype else "")
    encoded = _payload(payload.target)
    if encoded is None or order is None:
        what = "has its elements outside of the file, or as objects"
        return NoNumbers(shape, what, "pickle.dump it without buffer_callback, as an array of numbers")
    return Array(dtype, shape, order, shape_node, *encoded)


def _parts(node: PickleNode) -> tuple[PickleNode, PickleNode, bool | None, PickleNode] | None:
    """(shape, dtype, whether in Fortran order, elements) of the call of one of both functions."""
    if node.kind is not Kind.CALL or len(node.value) != 2 or node.items is not None:
        return None
    function, arguments = node.value[0], _few(node.value[1])
    if any(function.is_global(f"{module}.numeric", "_frombuffer") for module in _MODULES):
        if len(arguments) != 4 or node.state is not None:
            return None
        return arguments[2], arguments[1], {"C": False, "F": True}.get(str(arguments[3].target.value)), arguments[0]
    if not any(function.is_global(f"{module}.multiarray", "_reconstruct") for module in _MODULES):
        return None
    state = _few(node.state)
    if not arguments or not arguments[0].is_global("numpy", "ndarray") or len(state) != 5:
        return None
    order = state[3].target.value
    return state[1], state[2], bool(order) if order in (False, True) else None, state[4]


def _few(node: PickleNode | None) -> Sequence[PickleNode]:
    """The elements of a tuple; none of a longer one than any of numpy's: many calls may repeat one."""
    node = node.target if node is not None else None
    return node.value if node is not None and node.kind is Kind.TUPLE and len(node.value) <= _MOST_ARGUMENTS else ()


def _dtype(node: PickleNode) -> DType | str:
    """A type of numbers, or why it is none."""
    node = node.target
    if node.kind is not Kind.CALL or not node.value[0].is_global("numpy", "dtype"):
        return "has no dtype of numpy's"
    name = next(iter(_few(node.value[1])), node).target
    state = _few(node.state)
    if name.kind is Kind.GLOBAL and name.value[0] == "ml_dtypes" and name.value[1] in _EXTENDED:
        return _EXTENDED[name.value[1]]
    text = str(name.value)
    if len(state) > 1 and state[1].target.value == ">" and text[1:] != "1":
        return "is big-endian, which is not converted"
    return _NUMBERS.get(text) or ("" if text[:1] in _NO_NUMBERS else f"has elements of the dtype {text}, and no numbers")


def _payload(node: PickleNode) -> tuple[PickleNode | None, bool] | None:
    """(the node that encodes the elements, whether as text); None where nothing does."""
    if node.kind in (Kind.BYTES, Kind.TEXT):
        return node, False
    if node.kind is not Kind.CALL:
        return None
    arguments = _few(node.value[1])
    if node.value[0].is_global("_codecs", "encode") and len(arguments) == 2 and arguments[1].target.value == "latin1":
        return arguments[0].target, True
    empty = not arguments and any(node.value[0].is_global(module, "bytes") for module in ("__builtin__", "builtins"))
    return (None, False) if empty else None

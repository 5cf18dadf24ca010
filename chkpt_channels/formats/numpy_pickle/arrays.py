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
_ORDERS = {False: "C", True: "F", "C": "C", "F": "F"}
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
    """The array that a call makes, None for anything else. Raises DamagedError for arguments that numpy refuses."""
    parts = _parts(node)
    if parts is None:
        return None
    flag = parts[2].target if len(parts) == 4 else node
    order = _ORDERS.get(flag.value) if flag.kind in (Kind.CONST, Kind.INT, Kind.TEXT) else None
    if order is None:
        raise location.damaged("an array is made of what numpy makes none of", at=node.start)
    shape_node, dtype_node, _, payload = parts
    sides = shape_node.target.value if shape_node.target.kind is Kind.TUPLE else ()
    location.check_limit("axes", len(sides), LIMITS.axes, at=shape_node.start)
    shape = plain(shape_node) if shape_node.target.kind is Kind.TUPLE else None
    if not isinstance(shape, tuple) or any(side < 0 for side in shape):
        raise location.damaged("an array's shape must be a tuple of non-negative integers", at=shape_node.start)
    dtype = _dtype(dtype_node.target)
    if dtype is None:
        raise location.damaged("an array's dtype is none of numpy's", at=dtype_node.start)
    if isinstance(dtype, str):
        return NoNumbers(shape, dtype, "array.astype('float32')" if dtype else "")
    if payload.target.kind is Kind.CONST:
        return NoNumbers(shape, "has its elements outside of the file", "pickle.dump it without buffer_callback")
    encoded = _payload(payload.target)
    if encoded is None:
        raise location.damaged("an array's elements are no bytes", at=payload.start)
    return Array(dtype, shape, order == "F", shape_node, *encoded)


def _parts(node: PickleNode) -> Sequence[PickleNode] | None:
    """(shape, dtype, order, elements) of the call of one of both functions, none of a call that is none of theirs."""
    function, arguments, built = (node.value[0], _few(node.value[1]), node.state) if node.kind is Kind.CALL else (node, (), None)
    made = function.target.value if function.target.kind is Kind.GLOBAL else ("", "")
    if made[0].startswith("jax.") and made[1] == "_reconstruct_array" and len(arguments) == 4 and built is None:
        function, arguments, built = arguments[0], _few(arguments[1]), arguments[2]
    if any(function.is_global(f"{module}.numeric", "_frombuffer") for module in _MODULES):
        whole = len(arguments) == 4 and built is None and node.items is None
        return (arguments[2], arguments[1], arguments[3], arguments[0]) if whole else ()
    if not any(function.is_global(f"{module}.multiarray", "_reconstruct") for module in _MODULES):
        return () if function.is_global("numpy", "ndarray") and node.kind is Kind.CALL else None
    if arguments and arguments[0].target.kind is Kind.GLOBAL and not arguments[0].is_global("numpy", "ndarray"):
        return None  # of a subclass
    empty = len(arguments) == 3 and arguments[0].target.kind is Kind.GLOBAL and plain(arguments[1]) == (0,)
    state = _few(built)
    whole = empty and _is_letter(arguments[2]) and node.items is None and len(state) == 5 and plain(state[0]) == 1
    return state[1:] if whole else ()


def _is_letter(node: PickleNode) -> bool:
    """Whether that is b"b", the dtype with which an array is made before it has its own."""
    node = node.target
    if node.kind is Kind.CALL and (found := _payload(node)) is not None and found[0] is not None:
        node = found[0]
    return node.kind in (Kind.BYTES, Kind.TEXT) and node.value in (b"b", "b")


def _few(node: PickleNode | None) -> Sequence[PickleNode]:
    """The elements of a tuple; none of a longer one than any of numpy's: many calls may repeat one."""
    node = node.target if node is not None else None
    return node.value if node is not None and node.kind is Kind.TUPLE and len(node.value) <= _MOST_ARGUMENTS else ()


def _dtype(node: PickleNode) -> DType | str | None:
    """A type of numbers, or why it is of none; None where numpy makes no dtype of it."""
    arguments = [child.target for child in _few(node.value[1])] if node.kind is Kind.CALL else []
    state = [child.target.value for child in _few(node.state)]
    if len(arguments) != 3 or not node.value[0].is_global("numpy", "dtype") or len(state) < 8 or node.items is not None:
        return None
    name = arguments[0]
    if name.kind is Kind.GLOBAL:
        dtype = _EXTENDED.get(name.value[1]) if name.value[0] == "ml_dtypes" else None
    else:
        dtype = _NUMBERS.get(str(name.value))
    if dtype is None:
        text = str(name.value)
        return "" if text[:1] in _NO_NUMBERS else f"has elements of the dtype {text}, and no numbers"
    if state[1] == ">" and dtype.bits > 8:
        return "is big-endian, which is not converted"
    flags = [child.value for child in arguments[1:]]
    return (
        dtype if flags == [False, True] and state[0] == 3 and state[1] in ("<", "|", "=") and state[2:5] == [None] * 3 else None
    )


def _payload(node: PickleNode) -> tuple[PickleNode | None, bool] | None:
    """(the node that encodes the elements, whether as text); None where nothing does."""
    if node.kind in (Kind.BYTES, Kind.TEXT):
        return node, False
    if node.kind is not Kind.CALL or node.state is not None or node.items is not None:
        return None
    arguments = _few(node.value[1])
    if node.value[0].is_global("_codecs", "encode") and len(arguments) == 2 and arguments[1].target.value == "latin1":
        return arguments[0].target, True
    made = any(node.value[0].is_global(module, "bytes") for module in ("__builtin__", "builtins"))
    return (None, False) if made and node.value[1].target.kind is Kind.TUPLE and not node.value[1].target.value else None

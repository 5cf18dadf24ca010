"""Which calls of a pickle are arrays of numbers, and where their elements are."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from math import prod

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode, plain
from chkpt_channels.core.dtypes import BY_NAME, DType
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple

_CLASSES = ("numpy.ndarray", "numpy.memmap")
"""The classes of plain arrays: in a pickle one that was mapped from a file is like others."""
_NUMBERS = {
    **{f"f{bits // 8}": BY_NAME[f"F{bits}"] for bits in (16, 32, 64)},
    **{f"{sign.lower()}{bits // 8}": BY_NAME[f"{sign}{bits}"] for sign in "IU" for bits in (8, 16, 32, 64)},
    "b1": BY_NAME["BOOL"],
    "c8": BY_NAME["C64"],
    "c16": BY_NAME["C128"],
}
_EXTENDED = {dtype.numpy: dtype for dtype in BY_NAME.values() if dtype.extended}
_ORDERS = {False: "C", True: "F", "C": "C", "F": "F"}
_NO_ARRAY = "an array is made of what numpy makes none of"
_MOST_ARGUMENTS = 16
"""The state of a dtype has up to nine."""
_NO_NUMBERS = "SUMmT"
"""Kinds of dtypes for text and dates: such arrays are no weights."""


class Array(NamedTuple):
    """An array of numbers. `axes` are its axes in the order of its elements, the slowest first. `shape_node` is the occurrence of
    its shape, which is that of its buffer where it is `transposed`; `payload` is the node that encodes its elements, none of an
    empty one of protocol 2; `latin1` says that they are a text."""

    dtype: DType
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    transposed: bool
    shape_node: PickleNode
    payload: PickleNode | None
    latin1: bool

    @property
    def size(self) -> int:
        """The bytes of its elements."""
        return prod(self.shape) * self.dtype.bits // 8

    @property
    def in_order(self) -> bool:
        """Whether the last axis is the fastest."""
        return [*self.axes] == sorted(self.axes)

    def listed(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What stands in the place of its shape where it has another one."""
        return tuple(shape[axis] for axis in self.axes) if self.transposed else shape


class NoNumbers(NamedTuple):
    """An array that cannot be read, in words that follow its name, and what to do; without words one that is no weight."""

    shape: tuple[int, ...] | None
    what: str = ""
    hint: str = ""


class LatinText:
    """The elements of an array of protocol 2, a text in which each letter is a byte: a Checksum over the span that encodes it."""

    stated_crc: int | None = None

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


class _Parts(NamedTuple):
    """What an array is made of, each by the node of its occurrence; `axes` where the order is K. `kind` is its class."""

    kind: str
    shape: PickleNode
    dtype: PickleNode
    order: PickleNode
    elements: PickleNode
    axes: PickleNode | None = None


def array_of(node: PickleNode, location: Location) -> Array | NoNumbers | None:
    """The array that a call makes, None for anything else. Raises DamagedError for arguments that numpy refuses."""
    parts = _parts(node, location)
    if parts is None:
        return None
    sides = parts.shape.target.value if parts.shape.target.kind is Kind.TUPLE else ()
    location.check_limit("axes", len(sides), LIMITS.axes, at=parts.shape.start)
    listed = plain(parts.shape) if parts.shape.target.kind is Kind.TUPLE else None
    if not isinstance(listed, tuple) or any(side < 0 for side in listed):
        raise location.damaged("an array's shape must be a tuple of non-negative integers", at=parts.shape.start)
    axes = _axes(parts, len(listed))
    if axes is None:
        raise location.damaged("an array's elements are in no order that numpy has", at=node.start)
    shape = listed if parts.axes is None else tuple(listed[axes.index(axis)] for axis in range(len(axes)))
    dtype = _dtype(parts.dtype.target)
    if dtype is None:
        raise location.damaged("an array's dtype is none of numpy's", at=parts.dtype.start)
    if isinstance(dtype, str):
        return NoNumbers(shape, dtype, "array.astype('float32')" if dtype else "")
    if parts.kind not in _CLASSES:
        return NoNumbers(shape, f"is an array of the class {parts.kind}", "numpy.asarray(array)")
    if parts.elements.target.kind is Kind.CONST:
        return NoNumbers(shape, "has its elements outside of the file", "pickle.dump it without buffer_callback")
    encoded = _payload(parts.elements.target)
    if encoded is None:
        raise location.damaged("an array's elements are no bytes", at=parts.elements.start)
    return Array(dtype, shape, axes, parts.axes is not None, parts.shape, *encoded)


def _axes(parts: _Parts, count: int) -> tuple[int, ...] | None:
    """The axes as the elements have them, the slowest first; None where that is no order. In order K axis i of the array is axis
    `axes[i]` of its buffer."""
    inner, flag = tuple(range(count)), parts.order.target
    if parts.axes is not None:
        order = plain(parts.axes)
        whole = flag.value == "K" and isinstance(order, tuple) and sorted(order) == [*inner]
        return tuple(order.index(axis) for axis in inner) if whole else None
    if flag.kind not in (Kind.CONST, Kind.INT, Kind.TEXT) or flag.value not in _ORDERS:
        return None
    return inner[::-1] if _ORDERS[flag.value] == "F" else inner


def _parts(node: PickleNode, location: Location) -> _Parts | None:
    """What a call makes an array of, None for a call of another function. Raises DamagedError for arguments of which numpy
    makes none."""
    function, arguments, built = (node.value[0], _few(node.value[1]), node.state) if node.kind is Kind.CALL else (node, (), None)
    made = function.target.value if function.target.kind is Kind.GLOBAL else ("", "")
    if made[0].startswith("jax.") and made[1] == "_reconstruct_array" and len(arguments) == 4 and built is None:
        function, arguments, built = arguments[0], _few(arguments[1]), arguments[2]
    if _is_numpys(function, "numeric", "_frombuffer"):
        if len(arguments) in (4, 5) and built is None and node.items is None:
            return _Parts(_CLASSES[0], arguments[2], arguments[1], arguments[3], arguments[0], *arguments[4:])
        raise location.damaged(_NO_ARRAY, at=node.start)
    masked = function.is_global("numpy.ma.core", "_mareconstruct")
    if not masked and not _is_numpys(function, "multiarray", "_reconstruct"):
        if node.kind is Kind.CALL and function.is_global("numpy", "ndarray"):
            raise location.damaged(_NO_ARRAY, at=node.start)
        return None
    kind = ".".join(arguments[0].target.value) if arguments and arguments[0].target.kind is Kind.GLOBAL else ""
    empty, state = arguments[masked:], _few(built)
    whole = kind and len(empty) == 3 and plain(empty[1]) == (0,) and _is_letter(empty[2]) and node.items is None
    if whole and len(state) == (7 if masked else 5) and plain(state[0]) == 1:
        return _Parts(kind, *state[1:5])
    if kind and kind not in _CLASSES:
        return None  # a subclass, whose state has what its author likes
    raise location.damaged(_NO_ARRAY, at=node.start)


def _is_numpys(function: PickleNode, module: str, name: str) -> bool:
    """Whether that is this function of numpy, by the name of its core before numpy 2 or since."""
    return function.is_global(f"numpy.core.{module}", name) or function.is_global(f"numpy._core.{module}", name)


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
    if node.kind is Kind.CALL and _is_numpys(node.value[0], "_internal", "_convert_to_stringdtype_kwargs"):
        return ""  # texts of any length
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
    whole = state[0] in (3, 4) and state[1] in ("<", "|", "=") and state[2:5] == [None] * 3
    return dtype if flags == [False, True] and whole else None


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

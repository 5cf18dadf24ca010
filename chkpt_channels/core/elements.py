"""The elements of small tensors in four floating-point types, without numpy, whose import takes longer than all else that a
small conversion does. Terms are Python's floats, which are float64, and are rounded to the bits of `dtypes.rounded`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from math import isfinite, prod
from operator import add
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.dtypes import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 250_000
"""The most elements that are mixed without numpy: some 50 ms. With more of them numpy is faster, its import included."""
PLAIN = frozenset(("F64", "F32", "F16", "BF16"))
"""The types."""
_BITS = {16: "H", 32: "I", 64: "Q"}

View = tuple[int, int, int]
"""(pre, count, post): what stands before an axis, the axis, what stands behind it."""


class Terms:
    """Terms that are scaled and added one by one, as an array of float64 is."""

    __slots__ = ("values",)

    def __init__(self, values: Sequence[float]) -> None:
        self.values = values

    def __rmul__(self, factor: float) -> Terms:
        return self if factor == 1 else Terms([factor * value for value in self.values])

    def __add__(self, other: Terms) -> Terms:
        return Terms([*map(add, self.values, other.values)])


class SmallTensor:
    """A small tensor: `raw` are its elements in C order."""

    __slots__ = ("dtype", "raw", "shape")

    def __init__(self, raw: bytes, dtype: DType, shape: Sequence[int]) -> None:
        self.raw, self.dtype, self.shape = raw, dtype, tuple(shape)

    def tobytes(self) -> bytes:
        """The elements."""
        return self.raw

    def reshape(self, shape: Sequence[int]) -> SmallTensor:
        """The same elements in another shape."""
        return SmallTensor(self.raw, self.dtype, shape)

    def array(self) -> NDArray[Any]:
        """An array of its own."""
        import numpy as np

        from chkpt_channels.core.dtypes import numpy_dtype

        return np.frombuffer(bytearray(self.raw), numpy_dtype(self.dtype)).reshape(self.shape)

    def values(self) -> list[float]:
        """The numbers."""
        match self.dtype.name:
            case "F16":
                return [*struct.unpack(f"{len(self.raw) // 2}e", self.raw)]
            case "BF16":  # the upper half of an F32
                wide = bytearray(2 * len(self.raw))
                wide[2::4], wide[3::4] = self.raw[::2], self.raw[1::2]
                return array("f", bytes(wide)).tolist()
            case name:
                return array("d" if name == "F64" else "f", self.raw).tolist()

    def parts(self, view: View) -> list[SmallTensor]:
        """Each position of the middle axis, [pre, post]."""
        bits = array(_BITS[self.dtype.bits], self.raw)
        pre, count, post = view
        found = []
        for i in range(count):
            part = array(bits.typecode, bytes(pre * post * bits.itemsize))
            for inner, outer in _places(view, i):
                part[inner] = bits[outer]
            found.append(SmallTensor(part.tobytes(), self.dtype, (pre, post)))
        return found

    def rows(self, view: View) -> list[list[float]]:
        """The numbers of each of them."""
        return [part.values() for part in self.parts(view)]

    def chosen(self, positions: Sequence[int]) -> SmallTensor:
        """These positions of the middle of three axes."""
        pre, count, post = self.shape
        parts = self.parts((pre, count, post))
        return joined([parts[i] for i in positions], self.dtype, (pre, len(positions), post))

    def not_finite(self, view: View) -> int | None:
        """The first position of the middle axis that holds a NaN or an infinity, None where there is none."""
        values = self.values()
        if all(map(isfinite, values)):
            return None
        return min(at // view[2] % view[1] for at, value in enumerate(values) if not isfinite(value))


def joined(parts: Sequence[SmallTensor], dtype: DType, view: View) -> SmallTensor:
    """These parts as the positions of a middle axis, [pre, count, post]."""
    bits = array(_BITS[dtype.bits], bytes(prod(view) * dtype.bits // 8))
    for i, part in enumerate(parts):
        own = array(bits.typecode, part.raw)
        for inner, outer in _places(view, i):
            bits[outer] = own[inner]
    return SmallTensor(bits.tobytes(), dtype, view)


def _places(view: View, i: int) -> Iterator[tuple[slice, slice]]:
    """Where the elements at position i of the middle axis are, in [pre, post] and in [pre, count, post]: in few slices."""
    pre, count, post = view
    if pre < post:
        starts = ((p * post, (p * count + i) * post) for p in range(pre))
        yield from ((slice(inner, inner + post), slice(outer, outer + post)) for inner, outer in starts)
    else:
        yield from ((slice(q, None, post), slice(i * post + q, None, count * post)) for q in range(post))


def strided(raw: bytes, width: int, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    """The elements of `width` bytes that stand at these strides, in elements, from the beginning of `raw`: in C order."""
    if prod(shape) <= MOST:
        places = [0]
        for size, stride in zip(shape, strides, strict=True):
            places = [place + i * stride for place in places for i in range(size)]
        return b"".join([raw[place * width : (place + 1) * width] for place in places])
    import numpy as np

    steps = [stride * width if size > 1 else 0 for size, stride in zip(shape, strides, strict=True)]
    return np.lib.stride_tricks.as_strided(np.frombuffer(raw, f"V{width}"), shape, steps, writeable=False).tobytes()


def dense_strides(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """The strides of a dense tensor whose axes have this order in memory, slowest first; an axis without elements counts as one,
    as in torch."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def rounded(numbers: Terms, dtype: DType, shape: Sequence[int]) -> SmallTensor:
    """These numbers in the dtype: what is too large becomes infinite."""
    values = numbers.values
    match dtype.name:
        case "F64":
            raw = array("d", values).tobytes()
        case "F16":
            raw = _halves(values)
        case "BF16":  # rounded to F32 first
            wide = array("I", array("f", values).tobytes())
            raw = array("H", [(bits + 0x7FFF + (bits >> 16 & 1)) >> 16 for bits in wide]).tobytes()
        case _:
            raw = array("f", values).tobytes()
    return SmallTensor(raw, dtype, shape)


def _halves(values: Sequence[float]) -> bytes:
    try:
        return struct.pack(f"{len(values)}e", *values)
    except OverflowError:
        # 65520 lies half-way between the largest finite number and the next one, which would be even
        return struct.pack(f"{len(values)}e", *(v if abs(v) < 65520 else v * float("inf") for v in values))

"""A convolution of several pixels that goes into the kernel behind it: x_old[u] = Σ over its taps a of A_a · x_new[u + a] + t.

A kernel W behind it becomes larger, and each A_a is a mixing of its own:

    W'[o, j, near · a + far · b] = Σ over i, a, b of W[o, i, b] · A_a[i, j]
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.transform.mixing.matrix import Mixing

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shape = tuple[int, ...]
Place = tuple[slice, ...] | EllipsisType
"""Where in the new kernel the old one is."""


def grown(mixing: Mixing, layout: Layout, shape: Shape) -> Shape:
    """The shape of a kernel of `shape` with the taps that it gets."""
    taps = iter(mixing.window.settings["kernel_shape"] if mixing.window else ())
    return tuple(next(taps, n) if letter in "DHW" else n for n, letter in zip(shape, layout.axes, strict=True))


def parts(mixing: Mixing, layout: Layout, shape: Shape) -> Iterator[tuple[Mixing, Place]]:
    """The mixing by each tap, and where in the new kernel it puts the old one, of `shape`; the whole one where it has no taps."""
    window = mixing.window
    if window is None:
        yield mixing, ...
        return
    counts = [n for n, letter in zip(shape, layout.axes, strict=True) if letter in "DHW"]
    for matrix, taps in zip(window.matrices, product(*map(range, window.taps)), strict=True):
        starts = [near * tap for near, tap in zip(window.near, taps, strict=True)]
        slices = iter(
            slice(start, start + far * (n - 1) + 1, far) for start, far, n in zip(starts, window.far, counts, strict=True)
        )
        yield Mixing(mixing.method, matrix), tuple(next(slices) if letter in "DHW" else slice(None) for letter in layout.axes)


def composed(mixing: Mixing, layout: Layout, old: NDArray[Any]) -> NDArray[Any]:
    """The new kernel in float64, from a dense one."""
    import numpy as np

    view = layout.view(old.shape, mixing.old)
    narrow = layout.with_channels(old.shape, mixing.old, mixing.new)
    new = np.zeros(grown(mixing, layout, narrow))
    for part, place in parts(mixing, layout, old.shape):
        new[place] += part.apply(old.astype(np.float64), view, BY_NAME["F64"]).reshape(narrow)
    return new


def gains(mixing: Mixing, layout: Layout, old: NDArray[Any]) -> NDArray[Any]:
    """By how much each tap of the old kernel answers to an image in -1..1 at most, viewed as [pre, post]; zero without taps."""
    import numpy as np

    view = layout.view(old.shape, mixing.old)
    total = np.zeros((view[0], view[2]))
    for part, _ in parts(mixing, layout, old.shape) if mixing.window else ():
        total += np.abs(part.apply(old.astype(np.float64), view, BY_NAME["F64"])).sum(axis=1)
    return total

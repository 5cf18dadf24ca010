"""A convolution of several pixels that goes into the kernel behind it: x_old[u] = Σ over its taps a of A_a · x_new[u + a] + t.

A kernel W behind it becomes larger, and each A_a is a mixing of its own:

    W'[o, j, near · a + far · b] = Σ over i, a, b of W[o, i, b] · A_a[i, j]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Window
from chkpt_channels.transform.mixing.matrix import Mixing

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shape = tuple[int, ...]
Spans = Sequence[tuple[int, int]]
Place = tuple[slice, ...] | EllipsisType
"""A part of a kernel."""


def grown(mixing: Mixing, layout: Layout, shape: Shape) -> Shape:
    """The shape of a kernel of `shape` with the taps that it gets."""
    taps = iter(mixing.window.settings["kernel_shape"] if mixing.window else ())
    return tuple(next(taps, n) if letter in "DHW" else n for n, letter in zip(shape, layout.axes, strict=True))


def _place(layout: Layout, slices: Iterable[slice]) -> tuple[slice, ...]:
    """All channels at these taps."""
    along = iter(slices)
    return tuple(next(along) if letter in "DHW" else slice(None) for letter in layout.axes)


def parts(mixing: Mixing, layout: Layout, shape: Shape) -> Iterator[tuple[Mixing, Place]]:
    """The mixing by each tap, and where in the new kernel it puts the old one, of `shape`; the whole one where it has no taps."""
    window = mixing.window
    if window is None:
        yield mixing, ...
        return
    counts = [n for n, letter in zip(shape, layout.axes, strict=True) if letter in "DHW"]
    for matrix, taps in zip(window.matrices, product(*map(range, window.taps)), strict=True):
        starts = [near * tap for near, tap in zip(window.near, taps, strict=True)]
        reach = zip(starts, window.far, counts, strict=True)
        yield Mixing(mixing.method, matrix), _place(layout, (slice(at, at + far * (n - 1) + 1, far) for at, far, n in reach))


def _mixed(mixing: Mixing, layout: Layout, old: NDArray[Any]) -> Iterator[tuple[NDArray[Any], Place]]:
    """What each tap makes of a dense kernel, in float64, and where that is in the new one."""
    import numpy as np

    view, narrow = layout.view(old.shape, mixing.old), layout.with_channels(old.shape, mixing.old, mixing.new)
    for part, place in parts(mixing, layout, old.shape):
        yield part.apply(old.astype(np.float64), view, BY_NAME["F64"]).reshape(narrow), place


def composed(mixing: Mixing, layout: Layout, old: NDArray[Any]) -> NDArray[Any]:
    """The new kernel in float64, from a dense one."""
    import numpy as np

    new = np.zeros(grown(mixing, layout, layout.with_channels(old.shape, mixing.old, mixing.new)))
    for mixed, place in _mixed(mixing, layout, old):
        new[place] += mixed
    return new


def largest(mixing: Mixing, layout: Layout, old: NDArray[Any], borders: Sequence[Spans]) -> Iterator[NDArray[Any]]:
    """The most that an image in -1..1 makes of each filter, [O], for each of these borders: by the old taps that are not within
    its spans. They were on zeros there, where a window takes pixels. Without spans by all."""
    import numpy as np

    others = tuple(axis for axis, letter in enumerate(layout.axes) if letter != "O")
    mixed = list(_mixed(mixing, layout, old))
    shape = grown(mixing, layout, layout.with_channels(old.shape, mixing.old, mixing.new))
    taps = [n if letter in "DHW" else 1 for n, letter in zip(old.shape, layout.axes, strict=True)]
    for spans in borders:
        new, outside = np.zeros(shape), np.ones(taps)
        if spans:
            outside[_place(layout, (slice(*span) for span in spans))] = 0
        for values, place in mixed:
            new[place] += values * outside
        seen = _place(layout, _on_pixels(mixing.window, spans, shape, layout)) if spans and mixing.window else ...
        yield np.abs(new[seen]).sum(axis=others)


def _on_pixels(window: Window, spans: Spans, shape: Shape, layout: Layout) -> Iterator[slice]:
    """The new taps that are on pixels where the old ones within `spans` are."""
    sizes = [n for n, letter in zip(shape, layout.axes, strict=True) if letter in "DHW"]
    each = zip(spans, sizes, window.taps, window.near, window.far, window.edges, strict=True)
    for (start, stop), size, taps, near, far, (lead, trail) in each:
        count = (size - 1 - near * (taps - 1)) // far + 1
        first = far * (start - 1) + lead if start else 0
        last = far * stop + near * (taps - 1) + trail if stop < count else size
        yield slice(min(first, size), max(last, 0))

"""The axes of a value between the image and a convolution, in terms of the image's axes: whole, cut into pieces, or folded.

An axis is a list of pieces, the slowest first: after a Reshape to [1, 3, 8, 2, 8, 2] a Transpose and a Reshape to [1, 12, 8, 8],
axis 1 is (the channels, 2 of the rows, 2 of the columns). The channels are never cut: what cuts them is not followed. Exporters
encode space-to-depth (Focus, pixel_unshuffle) and Linear patch embeddings so; the pieces say in which order channels and pixels
are folded, which no shape does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

OPEN = 720720 << 6
"""Stands in for a size that the file does not give: 720720, the least common multiple of 1 to 16, times 64 is divisible as sizes
are, and no constant of a graph equals it."""


NEW = -1
"""The `of` of a piece that is of no axis of the image."""


class Piece(NamedTuple):
    """`size` steps along the image's axis `of`."""

    of: int
    size: int


Axis = tuple[Piece, ...]
Axes = tuple[Axis, ...]


def image_axes(dims: Sequence[int | None]) -> Axes:
    """The image itself."""
    return tuple((Piece(k, n if n and n > 0 else opened(k)),) for k, n in enumerate(dims))


def opened(k: int) -> int:
    """The stand-in for the size of axis k."""
    return OPEN * (k + 1)


def size(axis: Axis) -> int:
    """The steps of an axis."""
    return prod(piece.size for piece in axis)


def counted(axis: Axis, channel: int, count: int) -> int:
    """The steps of an axis if the image had `count` channels."""
    return prod(count if piece.of == channel else piece.size for piece in axis)


def holder(axes: Axes, channel: int) -> int | None:
    """The axis that holds the channels."""
    return next((k for k, axis in enumerate(axes) if any(piece.of == channel for piece in axis)), None)


def around(axis: Axis, channel: int) -> tuple[int, int]:
    """How many steps are slower than the channels, and how many faster."""
    at = next(i for i, piece in enumerate(axis) if piece.of == channel)
    return size(axis[:at]), size(axis[at + 1 :])


def resized(axes: Axes, k: int, new: int | None = None) -> Axes:
    """Axis k with another size, None where that is unknown."""
    of = axes[k][0].of if axes[k] else NEW
    return (*axes[:k], (Piece(of, new or opened(k)),), *axes[k + 1 :])


def reshaped(axes: Axes, shape: Sequence[int], channel: int) -> Axes | None:
    """The axes after a Reshape to `shape`; None where it cuts the channels or where the sizes do not match.

    Leading axes of the same size stay; from the first other one on, the pieces are dealt out again in C order."""
    whole = 0
    while whole < min(len(axes), len(shape)) and size(axes[whole]) == shape[whole]:
        whole += 1
    pieces = [piece for axis in axes[whole:] for piece in axis if piece.size != 1 or piece.of == channel]
    new = list(axes[:whole])
    for steps in shape[whole:]:
        axis = _pop_axis(pieces, steps, channel)
        if axis is None:
            return None
        new.append(axis)
    if pieces and size(tuple(pieces)) == 1 and new:  # a single channel has one step: no axis took it
        new[-1] = (*new[-1], *pieces)
        pieces = []
    return None if pieces else tuple(new)


def _pop_axis(pieces: list[Piece], steps: int, channel: int) -> Axis | None:
    """Remove an axis of so many steps from the front of `pieces`, the last piece in part where needed."""
    axis: list[Piece] = []
    while steps > 1:
        if not pieces:
            return None
        piece = pieces.pop(0)
        if steps % piece.size == 0:
            axis.append(piece)
            steps //= piece.size
        elif piece.size % steps == 0 and piece.of != channel:
            axis.append(piece._replace(size=steps))
            pieces.insert(0, piece._replace(size=piece.size // steps))
            steps = 1
        else:
            return None
    return tuple(axis)

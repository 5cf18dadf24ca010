"""The axes of a value between the image and a convolution, in terms of the image's axes: whole, cut into pieces, or folded.

An axis is a list of pieces, the slowest first: after a Reshape to [1, 3, 8, 2, 8, 2] a Transpose and a Reshape to [1, 12, 8, 8],
axis 1 is (the channels, 2 of the rows, 2 of the columns). The channels are never cut: what cuts them is not followed. Exporters
encode space-to-depth (Focus, pixel_unshuffle) and Linear patch embeddings so; the pieces say in which order channels and pixels
are folded, which no shape does. The channels themselves may be a piece of the image's axis: of the frames and colors of a video
[24, 32, 32], of the pixels of a list [3072].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from chkpt_channels.core.records import NamedTuple

OPEN = 720720 << 6
"""Stands in for a size that the file does not give: 720720, the least common multiple of 1 to 16, times 64 is divisible as sizes
are, and no constant of a graph equals it."""


NEW, NOWHERE = -1, -2
"""The `of` of a piece that is of no axis of the image; the axis of the channels where it is still looked for."""
WHOLE = 0
"""The `step` of a piece that is a whole axis."""


class Piece(NamedTuple):
    """`size` steps along the image's axis `of`; a step of a part of that axis is `step` of the axis. A resized axis has another
    size than the image's."""

    of: int
    size: int
    step: int = WHOLE
    resized: bool = False


Axis = tuple[Piece, ...]
Axes = tuple[Axis, ...]


class Place(NamedTuple):
    """Where the channels are: so many, 0 where the file leaves that open, along an axis of the image; NOWHERE where it has none
    for its one channel. `slower` and `faster` are 1 but where that axis holds more than channels."""

    axis: int
    channels: int = 0
    slower: int = 1
    faster: int = 1


def image_axes(dims: Sequence[int | None], place: Place | None = None) -> Axes:
    """The image itself."""
    axes = [(Piece(k, n if n and n > 0 else opened(k)),) for k, n in enumerate(dims)]
    if place is None or place.axis == NOWHERE:
        return tuple(axes)
    parts = (Piece(NEW, place.slower), Piece(place.axis, place.channels or size(axes[place.axis])), Piece(NEW, place.faster))
    return (*axes[: place.axis], tuple(p for p in parts if p.size != 1 or p.of != NEW), *axes[place.axis + 1 :])


def place_of(piece: Piece, dims: Sequence[int | None]) -> Place:
    """Where the channels are if they are this piece of an image of these sizes."""
    if piece.step == WHOLE:
        return Place(piece.of, dims[piece.of] or (piece.size if piece.size < OPEN and not piece.resized else 0))
    total = dims[piece.of] or opened(piece.of)
    return Place(piece.of, piece.size, total // (piece.size * piece.step), piece.step)


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
    return (*axes[:k], (Piece(source(axes[k]), new or opened(k), resized=True),), *axes[k + 1 :])


def unsized(axes: Axes, which: Iterable[int]) -> Axes:
    """These axes with sizes that are unknown."""
    for k in which:
        axes = resized(axes, k % len(axes))
    return axes


def source(axis: Axis) -> int:
    """The axis of the image that a whole axis is of, NEW for others."""
    return axis[0].of if len(axis) == 1 and axis[0].step == WHOLE else NEW


def reshaped(axes: Axes, shape: Sequence[int], channel: int) -> Axes | None:
    """The axes after a Reshape to `shape`, where -1 is what is left; None where it cuts the channels or where the sizes do not
    match."""
    total, others = prod(size(axis) for axis in axes), prod(n for n in shape if n != -1)
    filled = [] if -1 in shape and total % others else [total // others if n == -1 else n for n in shape]
    new = _dealt(axes, filled, channel) if filled else None
    if new is None or (-1 in shape and _is_guess(axes, new[shape.index(-1)])):
        return _aligned(axes, shape)
    return new


def _dealt(axes: Axes, shape: Sequence[int], channel: int) -> Axes | None:
    """Leading axes of the same size stay; from the first other one on, the pieces are dealt out again in C order."""
    whole = 0
    while whole < min(len(axes), len(shape)) and size(axes[whole]) == shape[whole]:
        whole += 1
    pieces = [piece for axis in axes[whole:] for piece in axis if piece.size != 1 or channel in (piece.of, NOWHERE)]
    new = list(axes[:whole])
    for k, steps in enumerate(shape[whole:], whole + 1):
        axis = _pop_axis(pieces, steps, channel)
        if axis is None:
            return None
        # a single channel has one step: it is folded with what stands before it, but where an axis is left to it, or where it
        # stands before the pixels of a block
        is_folded = steps > 1 and len(pieces) > 1 and pieces[0].size == 1 and shape[k:][:1] != [1] and pieces[1].step != 1
        new.append((*axis, pieces.pop(0)) if is_folded else axis)
    if pieces and size(tuple(pieces)) == 1 and new:  # no axis took it
        new[-1] = (*new[-1], *pieces)
        pieces = []
    return None if pieces else tuple(new)


def _aligned(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes after a Reshape to `shape` that leaves leading and trailing axes and makes one of those between (its -1): a size
    that the file leaves open is then what the shape says. None where it is another Reshape."""
    left = shape.index(-1) if -1 in shape else len(shape)
    trailing = len(shape) - left - (left < len(shape))
    if len(axes) < left + trailing or (left == len(shape) != len(axes)):
        return None
    stop = len(axes) - trailing
    pairs = [*zip(axes[:left], shape[:left], strict=True), *zip(axes[stop:], shape[len(shape) - trailing :], strict=True)]
    new = [axis if size(axis) == n else (axis[0]._replace(size=n),) if is_open(axis) and n < OPEN else None for axis, n in pairs]
    kept = [axis for axis in new if axis is not None]
    if len(kept) < len(new):
        return None
    between = [tuple(piece for axis in axes[left:stop] for piece in axis)] if left < len(shape) else []
    return (*kept[:left], *between, *kept[left:])


def is_open(axis: Axis) -> bool:
    """Whether it is a whole axis whose size the file leaves open."""
    return len(axis) == 1 and axis[0].step == WHOLE and axis[0].size >= OPEN


def _is_guess(before: Axes, rest: Axis) -> bool:
    """Whether the axis that takes the rest of a Reshape cuts a size that the file leaves open, and has taken others: what follows
    need not be of the axes that it seems to be of."""
    whole = {piece for axis in before for piece in axis}
    left_open = {piece.of for piece in whole if piece.size >= OPEN}
    return sum(piece.size > 1 for piece in rest) > 1 and any(piece.of in left_open and piece not in whole for piece in rest)


def _pop_axis(pieces: list[Piece], steps: int, channel: int) -> Axis | None:
    """Remove an axis of so many steps from the front of `pieces`, the last piece in part where needed."""
    axis: list[Piece] = []
    if steps == 1 and pieces and pieces[0].size == 1:
        return (pieces.pop(0),)
    while steps > 1:
        if not pieces:
            return None
        piece = pieces.pop(0)
        if steps % piece.size == 0:
            axis.append(piece)
            steps //= piece.size
        elif piece.size % steps == 0 and piece.of != channel:
            rest, step = piece.size // steps, max(piece.step, 1)
            axis.append(piece._replace(size=steps, step=step * rest))
            pieces.insert(0, piece._replace(size=rest, step=step))
            steps = 1
        else:
            return None
    return tuple(axis)

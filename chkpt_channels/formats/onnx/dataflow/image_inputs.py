"""The inputs of an ONNX graph that are images, and which of their axes holds the channels.

An image is what a convolution slides over: its rows and columns are of the input. The channels are what the convolution takes as
such, followed back to the input; the place of an axis says nothing: [N,3,H,W] or [N,H,W,3] (tf2onnx), [3,H,W] or [H,W,3] without
a batch (torchvision's detectors, SAM), [B,T,3,H,W], [B,3,T,H,W] or [T·3,H,W] (video), pixels in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from chkpt_channels.core.errors import Location, UnsupportedError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.onnx.dataflow.axes import NEW, NOWHERE, WHOLE, Axes, Place, place_of, size
from chkpt_channels.formats.onnx.dataflow.operators import CONVOLUTIONS
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from chkpt_channels.formats.onnx.dataflow.values import ReachedConv, kernel_layout
from chkpt_channels.formats.onnx.model import Info, OnnxModel
from chkpt_channels.formats.onnx.nodes import Node

COLORS = 3
"""Channels of the image that is meant, where several are joined."""
MOST_CHANNELS = 32
"""Of an image that is not named, as in discovery: the widest public pretrained input has 13 bands."""
MOST_AXES = 6
"""Of an image whose shape is not declared."""
RANKS = (3, 4, 5)
"""Of what a convolution takes."""


class Unfollowed(NamedTuple):
    """An input that reaches a convolution, and whose channels are not known: `node` is in the way, None where there are several
    places that they could be in. `kernels` are those that slide over it, or may."""

    image: Info
    node: Node | None
    places: tuple[Place, ...] = ()
    kernels: frozenset[str] = frozenset()

    @property
    def is_vector(self) -> bool:
        """Whether it has one row of numbers for each image of a batch: a message, a style, a pose; rarely pixels."""
        return bool(self.image.shape) and len(self.image.dims) == 2


def refusal(one: Unfollowed, location: Location) -> UnsupportedError:
    """Why such an image is refused, and what settles it."""
    image, where, counts = one.image, location.at(one.image.name), [place.channels for place in one.places if place.channels]
    if len(counts) == 1:
        return where.unsupported(f"has {counts[0]} channels, more than images have", hint=f"--input {image.name}")
    if counts:
        what = f"a convolution takes {' and '.join(map(str, counts))} steps of its axes together: which are the channels?"
        return where.unsupported(what, hint="   or   ".join(f"--from {count}" for count in dict.fromkeys(counts)))
    once = [n for n in image.dims if n and n <= MOST_CHANNELS and image.dims.count(n) == 1 and n > 1]
    hint = f"--from {once[0]}, if these are its channels" if once else ""
    what = "which of its axes holds the channels is not known"
    if one.node is None:
        return where.unsupported(what, hint=hint)
    through = f"the image {image.name!r} is not followed through this {one.node.op}"
    return location.at(one.node.label).unsupported(f"{through}: {what}", hint=hint)


class Images(NamedTuple):
    """A trace for each image, and the other inputs that reach a convolution."""

    traces: tuple[ImageTrace, ...]
    unfollowed: tuple[Unfollowed, ...]


def images(model: OnnxModel, named: Sequence[str] = (), channels: int | None = None) -> Images:
    """The images among the inputs, or those that are `named`. `channels` is their number where the user states it."""
    traces, unfollowed, model.steps = [], [], 0
    for info in model.inputs:
        if named and info.name not in named:
            continue
        made = _Input(model, info, channels, is_named=bool(named)).trace()
        if isinstance(made, ImageTrace):
            traces.append(made)
            model.location.check_limit("images that reach convolutions", len(traces), LIMITS.first_convs)
        elif made:
            unfollowed.append(made)
    return Images(tuple(traces), tuple(unfollowed))


class _Input:
    """One input of a graph, and what is known of it."""

    def __init__(self, model: OnnxModel, info: Info, channels: int | None, *, is_named: bool) -> None:
        self._model, self._info, self._channels, self._named = model, info, channels, is_named

    def trace(self) -> ImageTrace | Unfollowed | None:
        """From the channels on; None for what is no image."""
        if (self._info.shape and len(self._info.dims) < 2) or self._info.name not in self._model.computed.readers:
            return None  # a condition, a factor, or not used
        shapes = [self._info] if self._info.shape else [self._info._replace(dims=(None,) * n) for n in range(1, MOST_AXES + 1)]
        scouts = [ImageTrace(self._model, info, None) for info in shapes]
        slid = [scout for scout in scouts if any(_slides(reached) for reached in scout.reached)]
        if slid:  # an image with fewer axes would get them from constants that are broadcast
            return self._of_convolutions(slid[-1])
        if any(r.node.op in CONVOLUTIONS and r.axes is None for scout in scouts for r in scout.reached):
            lost = next((node for scout in scouts for node in scout.lost), None)
            stated = [Place(k, n) for k, n in enumerate(self._info.dims) if n and n == self._channels]
            return self._from_one(self._info, stated) or Unfollowed(self._info, lost, kernels=_kernels(scouts))
        is_product = any(reached.node.op not in CONVOLUTIONS for scout in scouts for reached in scout.reached)
        return self._of_products(scouts) if is_product else None

    def _of_convolutions(self, scout: ImageTrace) -> ImageTrace | Unfollowed:
        info = scout.image
        slid = [self._places(reached, info.dims) for reached in scout.reached if _slides(reached)]
        places = list(dict.fromkeys(chain(*slid)))
        # where no place has the count that the user states, it is another image's
        likely = [place for place in places if self._is_stated(place)] or [p for p in places if self._may_be(p)]
        return self._from_one(info, likely) or Unfollowed(info, next(iter(scout.lost), None), tuple(places), _kernels([scout]))

    def _from_one(self, info: Info, places: Sequence[Place]) -> ImageTrace | None:
        """The trace from the one place that a kernel takes as channels, or from the only one."""
        known = [place._replace(channels=place.channels or self._channels or 0) for place in places]
        traces = [ImageTrace(self._model, info, place) for place in known]
        direct = [path for path in traces if path.stems] or traces
        return direct[0] if len(direct) == 1 else None

    def _is_stated(self, place: Place) -> bool:
        return self._channels is not None and place.channels in (0, self._channels)

    def _may_be(self, place: Place) -> bool:
        return place.channels <= MOST_CHANNELS or self._named

    def _has_count(self, place: Place) -> bool:
        return self._is_stated(place) if self._channels is not None else self._may_be(place)

    def _places(self, reached: ReachedConv, dims: Sequence[int | None]) -> Iterator[Place]:
        """Where the channels of this convolution are in the image. If none of them are the image's own, they were mixed from the
        one axis that holds neither the batch nor rows or columns; [H,W] has none for its one channel."""
        batch, channels, *rest = reached.axes or ((), ())
        pixels = {piece.of for axis in rest for piece in axis if piece.size > 1}
        taken = [piece for piece in channels if piece.of != NEW and not (piece.resized and piece.step)]
        for piece in [piece for piece in taken if piece.of not in pixels] or taken:
            place = place_of(piece, dims)
            if not place.channels and not piece.resized:
                place = place._replace(channels=_width(reached) // (size(channels) // piece.size))
            yield place
        if not taken:
            seen = pixels | {piece.of for piece in batch}
            left = [k for k in range(len(dims)) if k not in seen]
            longer = [k for k in left if dims[k] != 1]
            # an axis that is cut for pixels may hold the channels as well
            if self._channels == 1 or all(_is_covered(k, n, (batch, *rest)) for k, n in enumerate(dims) if k in seen):
                yield from (Place(k, dims[k] or 0) for k in (longer if len(longer) == 1 else [] if longer else left))
                yield from [] if left else [Place(NOWHERE, 1)]

    def _of_products(self, scouts: Sequence[ImageTrace]) -> ImageTrace | None:
        """Where no convolution is reached: an image of four axes or more, whose channels are the axis that a product takes whole,
        or else the shortest one."""
        dims = self._info.dims
        if len(dims) < 2 or (not self._named and len(dims) not in (4, 5)):
            return None
        whole = {place for scout in scouts for reached in scout.reached for place in _whole(reached, dims)}
        if len(whole) == 1 and (path := self._from_one(self._info, [place for place in whole if self._has_count(place)])):
            return path
        places = [Place(axis, dims[axis] or self._channels or 0) for axis in dict.fromkeys((1, len(dims) - 1))]
        traces = [ImageTrace(self._model, self._info, place) for place in places]
        direct = [path for path in traces if path.stems]
        shortest = min((n for n in dims[1:] if n is not None), default=0)
        counted = [path for path in traces if path.count and len(dims) < 5]  # of video it could be the frames
        traces = [path for path in direct if path.count in (0, shortest)] or ([] if direct else counted)
        likely = [path for path in traces if path.reached and self._has_count(Place(0, path.count))]
        return min(likely, key=lambda path: path.count or MOST_CHANNELS + 1, default=None)


def _kernels(scouts: Sequence[ImageTrace]) -> frozenset[str]:
    reached = [one for scout in scouts for one in scout.reached if one.axes is None or _slides(one)]
    return frozenset(one.kernel.name for one in reached if one.kernel)


def _whole(reached: ReachedConv, dims: Sequence[int | None]) -> Iterator[Place]:
    """The axes of the image that a product of patches takes whole; of rows and columns it takes parts."""
    *others, last = reached.axes or ((),)
    parts = {piece.of for axis in others for piece in axis if piece.size > 1}
    yield from (place_of(piece, dims) for piece in last if piece.of != NEW and piece.of not in parts)


def _slides(reached: ReachedConv) -> bool:
    """Whether a convolution slides over axes of the image."""
    axes, spatial = reached.axes or (), len(reached.node.integers("kernel_shape"))
    rank = len(reached.kernel.shape) if reached.kernel else spatial + 2 if spatial else len(axes)
    is_conv = reached.node.op in CONVOLUTIONS and len(axes) == rank in RANKS
    return is_conv and any(piece.of != NEW and piece.size > 1 for axis in axes[2:] for piece in axis)


def _is_covered(k: int, steps: int | None, axes: Axes) -> bool:
    """Whether these axes hold all of an image's axis: one that is only cut for rows and columns may hold channels as well."""
    pieces = [piece for axis in axes for piece in axis if piece.of == k]
    return any(piece.step == WHOLE or piece.resized for piece in pieces) or size(tuple(pieces)) == steps


def _width(reached: ReachedConv) -> int:
    """How many channels a convolution takes, 0 where its kernel is not stored."""
    layout = kernel_layout(reached.node, reached.kernel, 1, 1) if reached.kernel else None
    return reached.kernel.shape[layout.channel_axis] * reached.node.integer("group", 1) if layout and reached.kernel else 0

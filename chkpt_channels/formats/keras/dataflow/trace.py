"""The path of an image in a Keras model: from its input through layers that keep channels apart to the convolutions it reaches.

The walk follows tensors, call by call, into nested models and out of them. A layer that mixes channels is a block: what follows
it is reached, but then only a graph edit is right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.keras.config import OUTSIDE, KerasModel, Layer, Path, Ref, all_layers, at
from chkpt_channels.formats.keras.dataflow.effects import Image, effect, moved, pads, repeats
from chkpt_channels.formats.keras.layers import CONVS, data_format, is_pointwise

MOST_STEPS = 200_000
"""Nested models that call one another twice each take exponentially many; a large model takes thousands."""
MOST_COLORS = 4
"""Of an axis that is taken for the channels without a convolution that says so."""


class ChannelOp(NamedTuple):
    """An operation on the path, channel by channel: a layer, the index of its call, the image that it takes, and what it does:
    "shifts" all channels by the same constants, "scales" each by its own, or "bends" them all alike."""

    layer: Layer
    call: int
    image: Image
    effect: str


class ReachedLayer(NamedTuple):
    """A convolution that the image reaches, through which operations and layers; `blocked` is the first layer that mixed channels
    before it, None where none did. `is_padded` says that a layer on the way puts zeros around the image."""

    layer: Layer
    operations: tuple[ChannelOp, ...]
    steps: tuple[str, ...]
    blocked: Layer | None
    is_padded: bool = False


class _State(NamedTuple):
    image: Image
    operations: tuple[ChannelOp, ...] = ()
    steps: tuple[str, ...] = ()
    blocked: Layer | None = None
    is_padded: bool = False


class _Frame(NamedTuple):
    """One call of a nested model: `outer` is the frame of the call, -1 for the top model."""

    model: KerasModel
    outer: int
    layer: Layer | None
    call: int


def traces(top: KerasModel) -> list[InputTrace]:
    """For each input of the top model that has the shape of an image, a signal, a volume or a video and reaches a kernel, its
    trace.

    The axis that a kernel sums over, followed back, is that of the channels. A Dense layer sums over the last axis whatever it
    holds: it shows the channels where that axis is the shortest. Where layers in between mix axes, the axis must be as short as
    colors are.
    """
    formats = {data_format(layer.config) for layer in all_layers(top) if layer.kind in CONVS and not is_pointwise(layer.kind)}
    chosen = []
    for number, ref in enumerate(top.inputs):
        images = _images(top, ref, number, first=formats == {"channels_first"})
        candidates = [trace for image in images if (trace := InputTrace(top, image)).reached]
        clear = [trace for trace in candidates if trace.shows_channels]
        chosen += clear[:1] or _as_short_as_colors(candidates, first=formats == {"channels_first"})
    return chosen


def _as_short_as_colors(candidates: list[InputTrace], *, first: bool) -> list[InputTrace]:
    """The one whose axis is as short as colors are, and stands where the model's convolutions have the channels; none where time
    or another axis is as short."""
    short = [trace for trace in candidates if trace.image.channels <= MOST_COLORS]
    if not first and short and short[0].image.axis == short[0].image.rank - 1:
        return short[:1]
    return short if len(short) == 1 and (first or short[0].image.rank < 5) else []


def _images(top: KerasModel, ref: Ref, number: int, *, first: bool) -> list[Image]:
    """The input with each axis as that of the channels that may be it: the last, or that before the pixels, behind time too;
    first those that are likely."""
    layer = top.layers.get(ref[0])
    if ref[0] == OUTSIDE:  # a Sequential without an InputLayer: its first layer, or the first one in it, says the shape
        layer = next(iter(top.layers.values()), None)
        while layer is not None and layer.inner is not None and not layer.inner.wrapper:
            layer = next(iter(layer.inner.layers.values()), None)
    if layer is None or not isinstance(layer.config, dict):
        return []
    for key in ("batch_shape", "batch_input_shape"):
        shape = layer.config.get(key)
        if isinstance(shape, list) and 3 <= len(shape) <= 5:
            rank, path = len(shape), (*layer.path, "config", key)
            order = [*([1, rank - 1] if first else [rank - 1, 1]), *([2] if rank == 5 else [])]
            axes = [axis for axis in dict.fromkeys(order) if type(shape[axis]) is int and shape[axis] > 0]
            return [Image(ref, number, layer, path, shape[axis], axis, rank) for axis in axes]
    return []


class InputTrace:
    """The path of one image.

    `reached` are convolutions, `blocks` layers that mix its channels (None: the model's own output), `calls` the calls of
    each layer that take it with its channels apart, `numbers` the paths that repeat its channel count, `stale` those that
    contradict it. `is_repeated` says that a layer repeats its only channel.
    """

    def __init__(self, top: KerasModel, image: Image) -> None:
        self.image, self._document = image, top.entry
        self.reached: list[ReachedLayer] = []
        self.blocks: list[Layer | None] = []
        self.calls: defaultdict[tuple[str, ...], set[tuple[int, int]]] = defaultdict(set)
        self.numbers: dict[str, Path] = {}
        self.stale: list[str] = []
        self.is_repeated = False
        self._frames = [_Frame(top, -1, None, 0)]
        self._known: dict[tuple[int, tuple[str, ...], int], int] = {}
        if image.path:  # of an input
            self._note(f"layers/{image.layer.where}/{image.path[-1]}", image.path, image)
            self._note_model(top, image.number, image)
        self._walk(image.ref)

    @property
    def shows_channels(self) -> bool:
        """Whether the axis holds the channels for sure: a kernel takes it as it comes, unmixed, one with a window or one of
        single pixels along the shortest axis; or it is repeated."""
        shape = [n for n in at(self._document, self.image.path)[1:] if n is not None]
        return self.is_repeated or any(
            reached.blocked is None and (not is_pointwise(reached.layer.kind) or self.image.channels == min(shape))
            for reached in self.reached
        )

    @property
    def entrance(self) -> list[str]:
        """Those of `numbers`, in their order, that state the shape of the input itself, before every layer."""
        home = self.image.layer.path

        def is_outside(path: Path) -> bool:
            common = next((i for i, (a, b) in enumerate(zip(path, home, strict=False)) if a != b), min(len(path), len(home)))
            rest = path[common:]
            return not isinstance(rest[0], int) and not {"layers", "inbound_nodes"} & set(rest)

        return [where for where, path in self.numbers.items() if is_outside(path)]

    def _walk(self, ref: Ref) -> None:
        waiting: list[tuple[int, Ref, _State]] = [(0, ref, _State(self.image))]
        seen: set[tuple[int, Ref, bool]] = set()
        while waiting:
            frame, ref, state = waiting.pop()
            if (key := (frame, ref, state.blocked is not None)) in seen:
                continue
            seen.add(key)
            if len(seen) > MOST_STEPS:
                raise ValueError(f"following the image through its nested models takes more than {MOST_STEPS} steps")
            model = self._frames[frame].model
            waiting += self._outwards(frame, ref, state)
            for layer, call, position in model.takers.get(ref, ()):
                if state.blocked is None:
                    self.calls[layer.trail].add((frame, call))
                waiting += reversed(list(self._through(frame, layer, call, position, state)))

    def _outwards(self, frame: int, ref: Ref, state: _State) -> Iterator[tuple[int, Ref, _State]]:
        """The tensors outside of a nested model, where this one is one of its outputs."""
        model, outer, layer, call = self._frames[frame]
        if model.wrapper == "TimeDistributed":
            state = state._replace(image=state.image._replace(axis=state.image.axis + 1, rank=state.image.rank + 1))
        for number, output in enumerate(model.outputs):
            if output == ref and layer is not None:
                yield outer, (layer.name, call, number), state
            elif output == ref and state.blocked is None:
                self.blocks.append(None)

    def _through(self, frame: int, layer: Layer, call: int, position: int, state: _State) -> Iterator[tuple[int, Ref, _State]]:
        """The tensors that a call produces of the image, with what is known of them."""
        if state.blocked is None:
            self._note_shapes(layer, call, position, state.image)
        if layer.inner is not None:
            yield from self._into(frame, layer, call, position, state)
            return
        what, image = effect(layer, call, state.image) if state.blocked is None else "mixes", state.image
        if layer.kind in CONVS and (what == "conv" or not is_pointwise(layer.kind)):
            if what != "conv" and state.blocked is None:
                self.blocks.append(layer)
                state = state._replace(blocked=layer)
            self.reached.append(ReachedLayer(layer, *state[1:]))
            return
        # constants that differ by channel cannot be moved across a nonlinear layer into the kernel
        stops = what == "bends" and any(operation.effect == "scales" for operation in state.operations)
        if (what == "mixes" or stops) and state.blocked is None:
            self.is_repeated |= repeats(layer, call, image)
            self.blocks.append(layer)
            state = state._replace(blocked=layer)
        elif what == "bends":  # constants that all channels share can stay where they are
            state = state._replace(operations=(ChannelOp(layer, call, image, what),))
        elif what in ("scales", "shifts"):
            state = state._replace(operations=(*state.operations, ChannelOp(layer, call, image, what)))
        elif what == "keeps" and (after := moved(layer, image)):
            state = state._replace(image=after)
            if layer.kind == "Reshape":
                self._note_target(layer, after)
        state = state._replace(steps=(*state.steps, layer.name), is_padded=state.is_padded or pads(layer))
        for ref in self._frames[frame].model.produced.get((layer.name, call), ()):
            yield frame, ref, state

    def _into(self, frame: int, layer: Layer, call: int, position: int, state: _State) -> Iterator[tuple[int, Ref, _State]]:
        model = layer.inner
        if model is None or position >= len(model.inputs):
            return
        if model.wrapper == "TimeDistributed":  # one frame at a time
            image = state.image._replace(axis=state.image.axis - 1, rank=state.image.rank - 1)
            if image.axis < 1 and state.blocked is None:
                self.blocks.append(layer)
                state = state._replace(blocked=layer)
            state = state._replace(image=image)
        inner = self._known.setdefault((frame, layer.trail, call), len(self._frames))
        if inner == len(self._frames):
            self._frames.append(_Frame(model, frame, layer, call))
        if state.blocked is None:
            self._note_model(model, position, state.image)
        yield inner, model.inputs[position], state

    def _note_shapes(self, layer: Layer, call: int, position: int, image: Image) -> None:
        """Note the shapes that the layer was built on and that this call takes."""
        where = f"layers/{layer.where}"
        self._note(f"{where}/build_config/input_shape", (*layer.path, "build_config", "input_shape"), image, position)
        if shape := layer.nodes[call].inbound[position].shape:
            self._note(f"{where}/inbound_nodes/{call}/{position}", shape, image)

    def _note_target(self, layer: Layer, after: Image) -> None:
        """Note the channels in the shape that a Reshape asks for."""
        key, batch = ("newshape", 0) if layer.is_function else ("target_shape", 1)
        self.numbers[f"layers/{layer.where}/{key}"] = (*layer.path, "config", key, after.axis - batch)

    def _note_model(self, model: KerasModel, position: int, image: Image) -> None:
        """Note the shapes that a model states for its inputs."""
        where = "layers/" + "/".join((*model.trail, "")) if model.trail else ""
        self._note(f"{where}build_config/input_shape", (*model.path, "build_config", "input_shape"), image, position)
        self._note(f"{where}build_input_shape", (*model.path, "config", "build_input_shape"), image, position)
        entrance = model.layers.get(model.inputs[position][0])
        if entrance is not None:
            for key in ("batch_shape", "batch_input_shape"):
                self._note(f"layers/{entrance.where}/{key}", (*entrance.path, "config", key), image)

    def _note(self, where: str, path: Path, image: Image, position: int = 0) -> None:
        """Remember a shape, or one of a list of shapes, if it states the image's channels."""
        shape = at(self._document, path)
        if isinstance(shape, list) and shape and isinstance(shape[0], list):
            path, shape = (*path, position), at(shape, (position,))
        if isinstance(shape, list) and len(shape) == image.rank:
            if shape[image.axis] == image.channels:
                self.numbers[where] = (*path, image.axis)
            elif shape[image.axis] is not None:
                self.stale.append(where)

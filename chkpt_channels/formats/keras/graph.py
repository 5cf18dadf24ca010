"""What a Keras model's graph says about its first convolutions: which they are, what precedes them, what must change with
them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

from chkpt_channels.core.tensors import Adapter, Declaration, Edits, FirstConv, PreprocessingOp
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.formats.graph import ModelGraph
from chkpt_channels.formats.keras import adapter, config_edits
from chkpt_channels.formats.keras.adapter import AddedLayer
from chkpt_channels.formats.keras.config import KerasModel, Layer, Path
from chkpt_channels.formats.keras.dataflow.constants import ChannelConstants, constants
from chkpt_channels.formats.keras.dataflow.trace import ChannelOp, InputTrace, ReachedLayer, traces
from chkpt_channels.formats.keras.layers import CONVS, one_channel_shape

TapSpans = tuple[tuple[int, int], ...]
"""The taps [start, stop) of a window that are on pixels, along each axis."""
Arrival = tuple[InputTrace, ReachedLayer]
"""An image at a convolution that it reaches."""
COLORS = 3
"""Channels of the image that is meant where others are beside it."""


class KerasGraph(ModelGraph):
    """The graph of a configuration, traced from every image. `of` gives a layer's tensors in the store by the names of its
    weights; `document` is the name of the configuration in messages, `text` what it is."""

    knows_outputs = folds = decides = True

    def __init__(
        self, store: TensorStore, of: Callable[[Layer], Mapping[str, str]], model: KerasModel, document: str, text: str
    ) -> None:
        self._store, self._of, self._model, self._document, self._text = store, of, model, document, text
        self._location = store.location
        self._traces = traces(model)
        self._folded: Layer | None = None

    @cached_property
    def _arrivals(self) -> Mapping[str, list[Arrival]]:
        """Every first kernel and how images reach it: of each image those that it reaches channel by channel, else all."""
        by_kernel: defaultdict[str, list[Arrival]] = defaultdict(list)
        for trace in self._traces:
            for reached in [reached for reached in trace.reached if reached.blocked is None] or trace.reached:
                for name in self._kernels(reached.layer):
                    by_kernel[name].append((trace, reached))
        return {name: _of_one_count(arrivals) for name, arrivals in by_kernel.items()}

    def _kernels(self, layer: Layer) -> Sequence[str]:
        """The kernel of a layer; and its copy, where SpectralNormalization around the layer keeps one."""
        name = self._of(layer).get(CONVS[layer.kind].weights[0])
        if name is None:
            raise self._location.at(layer.where).unsupported("the kernel of this layer is not where Keras puts it")
        around = layer.parent.around if layer.parent.wrapper == "SpectralNormalization" else None
        copy = self._of(around).get("kernel", name) if around else name
        return (name,) if copy == name else (name, copy)

    def first_convs(self) -> Sequence[FirstConv]:
        """The convolutions that images reach; of images of other counts those with three channels, for a mask or a depth map has
        one."""
        convs = [self._first_conv(name, *arrivals[0]) for name, arrivals in self._arrivals.items()]
        return [conv for conv in convs if conv.in_channels == COLORS] or convs

    def check_reached(self, *, each: bool = False) -> None:
        if not self._arrivals:
            raise self._location.unsupported("no image reaches a convolution in its graph")

    def _first_conv(self, name: str, trace: InputTrace, reached: ReachedLayer) -> FirstConv:
        tensor, layer, channels = self._store.tensors[name], reached.layer, trace.image.channels
        location = self._location.at(name)
        if tensor.layout is None:
            raise location.damaged(f"shape {list(tensor.shape)} is not that of a {layer.kind} kernel")
        depthwise = CONVS[layer.kind].depthwise
        width = tensor.shape[tensor.layout.channel_axis]
        groups = width if depthwise else layer.config.get("groups") or 1
        if type(groups) is not int:
            raise self._location.at(layer.where).damaged(f"its groups is {groups!r}, which is no integer")
        if reached.blocked is None and channels != (width if depthwise else width * groups):
            raise location.damaged(f"shape {list(tensor.shape)} does not take the {channels} channels of the image")
        steps = [step for step in reached.steps if step != trace.image.layer.name]
        why = f"the image reaches it through {', '.join(steps)}" if steps else "the image reaches it"
        inputs = tuple(dict.fromkeys(trace.image.layer.where for trace, _ in self._arrivals[name]))
        return FirstConv(tensor, tensor.layout, channels, "graph", why, groups if channels > 1 else 1, inputs)

    def _arrivals_at(self, first_convs: Sequence[FirstConv]) -> list[Arrival]:
        return [arrival for conv in first_convs for arrival in self._arrivals.get(conv.tensor.name, ())]

    def preprocessing(self, first_convs: Sequence[FirstConv]) -> Sequence[PreprocessingOp]:
        """What precedes these, and what else takes their images and cannot take another number of channels."""
        arrivals = self._arrivals_at(first_convs)
        if name := next((conv.tensor.name for conv in first_convs if conv.tensor.name not in self._arrivals), None):
            hint = " ".join(f"--layer {kernel}" for kernel in self._arrivals)
            raise self._location.at(name).unsupported("no image reaches this kernel in the model's graph", hint=hint)
        return [*dict.fromkeys(self._blocks(arrivals)), *self._operations(arrivals)]

    def _operations(self, arrivals: Sequence[Arrival]) -> Sequence[PreprocessingOp]:
        """What the image goes through before these kernels. Where it goes several ways, and what is on them differs, mixes of
        channels would leave another constant on each."""
        ways = list(dict.fromkeys(tuple(map(self._operation, reached.operations)) for _, reached in arrivals))
        if len(ways) < 2:
            return ways[0] if ways else ()
        layer, alike = arrivals[0][1].layer, all(operation.uniform for way in ways for operation in way)
        return [PreprocessingOp(layer.where, layer.kind, apart=alike, why="takes the image in several ways")]

    def _blocks(self, arrivals: Sequence[Arrival]) -> Iterator[PreprocessingOp]:
        """What makes an edit of the kernels wrong: layers that mix channels, and layers that are called on other tensors too."""
        for trace in dict.fromkeys(trace for trace, _ in arrivals):
            for layer in trace.blocks:
                yield PreprocessingOp(layer.where, layer.kind) if layer else PreprocessingOp("the model's output", "output")
        for trace, reached in arrivals:
            if trace.image.channels == 1 and CONVS[reached.layer.kind].depthwise:  # each filter serves one channel of the image
                yield PreprocessingOp(reached.layer.where, reached.layer.kind)
        clear = [reached for _, reached in arrivals if reached.blocked is None]
        for layer in dict.fromkeys(layer for r in clear for layer in (r.layer, *(operation.layer for operation in r.operations))):
            if sum(len(trace.calls[layer.trail]) for trace in self._traces) != self._count_calls(layer):
                yield PreprocessingOp(layer.where, layer.kind, why="takes other tensors too")

    def _count_calls(self, layer: Layer) -> int:
        """How often a layer is called, the calls of the models around it counted."""
        counts, model = [], self._model
        for name in layer.trail:
            around = model.layers[name]
            counts.append(len(around.nodes))
            model = around.inner or model
        return prod(counts)

    def _operation(self, operation: ChannelOp) -> PreprocessingOp:
        layer = operation.layer
        where = _name(layer, operation.call)
        if operation.effect == "bends":
            return PreprocessingOp(where, layer.kind, apart=True, why="precedes the kernel and is not linear")
        values = self._constants(operation)
        if values is None:
            return PreprocessingOp(where, layer.kind)
        names = self._of(layer)
        tensors = tuple((names[weight], 0) for weight in values.tensors)
        return PreprocessingOp(where, layer.kind, values.scale, values.shift, tensors)

    def _constants(self, operation: ChannelOp) -> ChannelConstants | None:
        layer = operation.layer

        def weight(name: str) -> Sequence[float] | None:
            tensor = self._of(layer).get(name)
            return [float(x) for x in self._store.load(tensor).reshape(-1)] if tensor else None

        try:
            return constants(layer, operation.call, operation.image, weight)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            return None

    def graph_methods(self, first_convs: Sequence[FirstConv]) -> Sequence[str]:
        """`stack`, where every image's model has room for the layer."""
        images = [trace.image for trace, _ in self._arrivals_at(first_convs)]
        return ("stack",) if images and all(map(config_edits.can_stack, images)) else ()

    def adapter_obstacle(self, first_convs: Sequence[FirstConv]) -> str:
        """Why no layer can be put in front of the images of these."""
        images = {trace.image.ref: trace.image for trace, _ in self._arrivals_at(first_convs)}
        return adapter.obstacle(self._model, list(images.values()), self._store.tensors)

    def fold(self, conv: FirstConv) -> Adapter:
        layer = self._arrivals[conv.tensor.name][0][1].layer
        why, hint = adapter.fold_obstacle(self._model, layer, conv, self._store.tensors)
        if why:
            raise self._location.at(layer.where).unsupported(f"{why}: it is not folded", hint=hint)
        self._check_shapes()  # those of the input, which is followed no more
        self._folded, self._traces = layer, [adapter.behind(self._model, layer, conv)]
        del self._arrivals
        names = self._of(layer)
        return Adapter(layer.where, names.get("bias", ""), tuple(names.values()))

    def bias_target(self, conv: FirstConv) -> tuple[str, int] | None:
        """The bias (+1), or the moving mean of the BatchNormalization that alone takes the layer's output (-1). None for a
        separable convolution: its bias takes what its pointwise kernel makes of a constant."""
        arrivals = self._arrivals.get(conv.tensor.name)
        if not arrivals or "pointwise_kernel" in CONVS[arrivals[0][1].layer.kind].weights:
            return None
        layer = arrivals[0][1].layer
        if bias := self._of(layer).get("bias"):
            return bias, 1
        norm = layer.only_taker if layer.is_linear else None
        mean = self._of(norm).get("moving_mean") if norm and norm.kind == "BatchNormalization" else None
        return (mean, -1) if mean else None

    def padding(self, conv: FirstConv) -> Sequence[TapSpans]:
        """By the layers that pad in front of it, which may be wider than its window, and by its own `padding`."""
        letters = conv.layout.axes if conv.layout else ""
        taps = [size for size, letter in zip(conv.tensor.shape, letters, strict=False) if letter in "DHW"] or [1]
        spans: dict[TapSpans, None] = {}
        for _, reached in self._arrivals.get(conv.tensor.name, ()):
            config = reached.layer.config
            is_same = config.get("padding", config.get("border_mode")) != "valid"
            most = [n if reached.is_padded else n // 2 if is_same else 0 for n in taps]
            overlaps = [[(max(0, i), min(n, n + i)) for i in range(-k, k + 1)] for n, k in zip(taps, most, strict=True)]
            spans |= dict.fromkeys(product(*overlaps))
        return list(spans)

    def is_depthwise(self, name: str) -> bool:
        """Whether each channel has its own filters in this kernel."""
        return any(CONVS[reached.layer.kind].depthwise for _, reached in self._arrivals.get(name, ()))

    def dense_shape(self, conv: FirstConv, channels: int) -> tuple[int, ...] | None:
        """Toward one channel only: then a depthwise kernel is one with as many filters."""
        return one_channel_shape(conv.tensor.shape, depthwise=self.is_depthwise(conv.tensor.name)) if channels == 1 else None

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        """What the configuration says about these convolutions' images where they enter; edits change the shapes that
        repeat it with them."""
        declarations: dict[str, Declaration] = {}
        for trace, _ in self._arrivals_at(first_convs):
            for where in trace.entrance:
                name = f"{self._document}: {where}"
                declarations[name] = Declaration(name, trace.image.channels)
        return list(declarations.values())

    def edited(self, edits: Edits) -> tuple[str | None, AddedLayer | None]:
        """The configuration's text after the edits, None where it stays; and the layer that they add."""
        document = json.loads(self._text)
        encode = config_edits.encoder(self._text, document, self._location.at(self._document))
        self._check_shapes()
        for trace in self._entered(edits):
            kernels = {n for reached in trace.reached for n in self._kernels(reached.layer)}
            for name in kernels if not (edits.method or edits.folded) else ():
                if name not in edits.tensors:
                    hint = "   ".join(f"--layer {kernel}" for kernel in self._arrivals)
                    raise self._location.at(name).unsupported("sees the same image, and would keep its channels", hint=hint)
            for where, path in trace.numbers.items():
                if not edits.method or where in trace.entrance:
                    config_edits.set_at(document, path, edits.channels)
        self._choose(document, edits)  # also where channels change places, and their number stays
        for name, arrivals in self._arrivals.items():
            if name in edits.tensors:
                config_edits.ungroup(document, arrivals[0][1].layer, edits.tensors[name].shape)
        added = None
        for trace in self._entered(edits) if edits.method else ():
            if edits.adapter:
                added = adapter.put_in_front(document, self._model, trace.image, edits.adapter)
            else:
                config_edits.stack(document, trace.image)
        if self._folded and edits.folded:
            config_edits.take_out(document, self._folded)
        text = encode(document)
        return text if text != self._text else None, added

    def _check_shapes(self) -> None:
        if self.contradiction:
            raise self._location.at(self._document).unsupported(self.contradiction)

    def _choose(self, document: Any, edits: Edits) -> None:
        """Keep the constants of the chosen channels in the lists of the configuration."""
        done: set[Path] = set()
        arrivals = self._arrivals_at([conv for conv in self.first_convs() if conv.tensor.name in edits.tensors])
        for operation in (operation for _, reached in arrivals for operation in reached.operations):
            channels = edits.constants.get(_name(operation.layer, operation.call)) if operation.effect != "bends" else None
            values = self._constants(operation) if channels else None
            for path in values.lists if values and channels else ():
                if path not in done:
                    config_edits.choose(document, path, channels or ())
                    done.add(path)

    @property
    def contradiction(self) -> str:
        """The first shape on the images' paths that contradicts their channels, in words; "" where all agree."""
        stale = next((where for trace in self._traces for where in trace.stale), "")
        return stale and f"{stale} contradicts the channels of the image"

    def _entered(self, edits: Edits) -> list[InputTrace]:
        """The images whose channels change, the last input first: an inserted layer moves those after it."""
        named = {where.removeprefix(f"{self._document}: ") for where in edits.numbers}
        chosen = [trace for trace in self._traces if edits.folded or named.intersection(trace.entrance)]
        return sorted(chosen, key=lambda trace: trace.image.layer.path, reverse=True)


def _of_one_count(arrivals: list[Arrival]) -> list[Arrival]:
    """Of images of several counts at one kernel those with three channels, or those like the first, whose channels it takes."""
    clear = [arrival for arrival in arrivals if arrival[1].blocked is None]
    arrivals = [*clear, *(arrival for arrival in arrivals if arrival not in clear)]
    counts = [trace.image.channels for trace, _ in clear or arrivals]
    count = COLORS if COLORS in counts else counts[0]
    return [arrival for arrival in arrivals if arrival[0].image.channels == count]


def _name(layer: Layer, call: int) -> str:
    return layer.where if len(layer.nodes) < 2 else f"{layer.where}/{call}"

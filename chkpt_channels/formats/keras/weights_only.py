"""What weights without a configuration say about the first convolutions: names, shapes and the order of the layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import FirstConv, Notice, PreprocessingOp, Tensor
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.formats.graph import ModelGraph
from chkpt_channels.formats.keras.dataflow.constants import EPSILON
from chkpt_channels.formats.keras.layers import CONVS, UNTRAINED, WEIGHT_NAMES, one_channel_shape, snake_case

HWIO = {3: Layout("WIO"), 4: Layout("HWIO"), 5: Layout("DHWIO")}
OIHW = {3: Layout("OIW"), 4: Layout("OIHW"), 5: Layout("OIDHW")}
MOST_COLORS = 4
"""Of an image, where a depthwise first layer leaves the count to its kernel."""
_STORED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **{snake_case(kind): (kind, conv.weights) for kind, conv in CONVS.items()},
    **dict.fromkeys(("layer", "forward_layer", "backward_layer", "cell"), ("", ("kernel",))),
    "normalization": ("Normalization", ("mean", "variance", "count")),
    "batch_normalization": ("BatchNormalization", ("gamma", "beta", "moving_mean", "moving_variance")),
}
"""By the name of a layer's group, without its number: the class, "" where the file does not say it, and the weights in order."""


class Group(NamedTuple):
    """One layer's weights: the tensors by the names of the weights."""

    kind: str
    weights: dict[str, str]


class WeightsOnlyGraph(ModelGraph):
    """The weights of a checkpoint, layer by layer; in the order of the layers where `ordered`. `custom` is the name of the
    configuration where the file has one, of a custom class that does not list its layers."""

    knows_outputs = True

    def __init__(self, store: TensorStore, *, ordered: bool, custom: str = "") -> None:
        self._store, self._ordered, self._custom = store, ordered, custom
        self._groups = _groups(name for name, tensor in store.tensors.items() if not tensor.group)
        self._places = {name: (i, weight) for i, group in enumerate(self._groups) for weight, name in group.weights.items()}
        self._kernels = [name for name, (_, weight) in self._places.items() if weight.endswith("kernel")]
        self._begins_depthwise = ordered and any(map(self.is_depthwise, self._kernels[:1]))

    def first_convs(self) -> Sequence[FirstConv]:
        """A depthwise first layer; discovery searches for others in `search_view`."""
        if not self._begins_depthwise:
            return []
        tensor = self._store.tensors[self._kernels[0]]
        channels = tensor.shape[-2] if len(tensor.shape) > 2 else 0
        if not 0 < channels <= MOST_COLORS:
            return []
        return [FirstConv(tensor, tensor.layout, channels, "shapes", "the first conv in module order, depthwise", channels)]

    def search_view(self) -> Mapping[Tensor, str]:
        """The kernels with PyTorch-style names and OIHW shapes, each with its own name; none where a depthwise one is first."""
        names = () if self._begins_depthwise else self._kernels
        return {view: name for name in names if (view := self._torch_view(name))}

    def notices(self, first_convs: Sequence[FirstConv]) -> Sequence[Notice]:
        """That a normalization is folded, and that there may be more of it in the model's code."""
        if not any(op.scale for op in self.preprocessing(first_convs)):
            return ()
        message = "a Normalization is folded; constants in the model's code (EfficientNet's second Rescaling) are not in the file"
        return (Notice("code_constants", message),)

    def with_groups(self, conv: FirstConv) -> FirstConv:
        """A depthwise kernel has a group for each channel."""
        return conv._replace(groups=conv.in_channels) if self.is_depthwise(conv.tensor.name) else conv

    def dense_shape(self, conv: FirstConv, channels: int) -> tuple[int, ...] | None:
        """Toward one channel only: then a depthwise kernel is one with as many filters."""
        return one_channel_shape(conv.tensor.shape, depthwise=self.is_depthwise(conv.tensor.name)) if channels == 1 else None

    def _torch_view(self, name: str) -> Tensor | None:
        """A kernel with a PyTorch-style name and an OIHW shape; None for another tensor."""
        tensor = self._store.tensors[name]
        module = re.sub(r"[/.]+", ".", re.sub(r"/?vars$", "", name.rpartition("/")[0])) or "model"
        suffix = "pointwise.weight" if self._places[name][1] == "pointwise_kernel" else "weight"
        if len(tensor.shape) == 2:
            return tensor._replace(name=f"{module}.{suffix}", shape=tensor.shape[::-1], layout=Layout("OI"))
        layout = tensor.layout
        if layout is None or len(tensor.shape) not in OIHW:
            return None
        sizes = dict(zip(layout.axes, tensor.shape, strict=True))
        if self.is_depthwise(name):
            sizes |= {"O": sizes["O"] * sizes["I"], "I": 1}  # PyTorch stores a depthwise kernel with one channel per group
        other = OIHW[len(tensor.shape)]
        return tensor._replace(name=f"{module}.{suffix}", shape=tuple(sizes[letter] for letter in other.axes), layout=other)

    def is_depthwise(self, name: str) -> bool:
        """Whether each channel has its own filters in this kernel."""
        if name not in self._places:
            return False
        index, weight = self._places[name]
        kind = self._groups[index].kind
        return kind in CONVS and CONVS[kind].depthwise and "pointwise" not in weight

    def preprocessing(self, first_convs: Sequence[FirstConv]) -> Sequence[PreprocessingOp]:
        """The normalizations whose weights precede these kernels, with one value per input channel each.

        Raises UnsupportedError where the file has a configuration, of a model that does not list its layers.
        """
        if self._custom and first_convs:
            raise self._store.location.at(self._custom).unsupported(
                "the model is a custom class that does not list its layers: its channel count is in its code",
                hint="convert its weights: model.save_weights('….weights.h5')",
            )
        return list(dict.fromkeys(op for conv in first_convs for op in self._preprocessing_of(conv)))

    def _preprocessing_of(self, conv: FirstConv) -> Iterator[PreprocessingOp]:
        index, _ = self._places.get(conv.tensor.name, (0, ""))
        for name in [name for name in self._kernels if self._places[name][0] < index][-1:]:  # a layer of single pixels before it
            shape = self._store.tensors[name].shape
            if shape[-1:] == (conv.in_channels,) and set(shape[:-2]) <= {1} and self._ordered:
                yield PreprocessingOp(name.rpartition("/vars")[0] or name, "layer", why="makes the kernel's channels")
        if conv.in_channels == 1 and self.is_depthwise(conv.tensor.name):  # each filter serves one channel of the image
            yield PreprocessingOp(conv.tensor.name, self._groups[index].kind)
        if "spectral_normalization" in conv.tensor.name:
            yield PreprocessingOp(conv.tensor.name, "SpectralNormalization", why="keeps a copy of the kernel")
        taken = {self._store.tensors[name].shape[-2:-1] for name in self._kernels}
        for group in self._groups[:index]:
            shapes = {self._store.tensors[name].shape for name in group.weights.values()} - {()}
            constants = [group.weights[key] for key in ("mean", "variance") if key in group.weights]
            sizes = [self._store.tensors[name].shape for name in constants]
            where = next(iter(group.weights.values())).rpartition("/")[0]
            is_wide = group.kind == "Normalization" and sizes and sizes[0] not in ((), (conv.in_channels,))
            if is_wide and sizes[0] not in taken:
                yield PreprocessingOp(where, group.kind, why="has channels that no kernel takes")
            if shapes != {(conv.in_channels,)} and sizes != [(), ()]:
                continue
            if conv.in_channels == 1 and conv.tensor.name.startswith(f"{where}/"):
                continue  # a number of the model itself, as TFCLIPModel's logit_scale, and no layer
            if group.kind == "Normalization" and sizes in ([(conv.in_channels,)] * 2, [(), ()]):
                yield self._normalization(where, group)
            else:
                yield PreprocessingOp(where, "normalization", why="precedes the kernel, and its configuration is not in the file")

    def _normalization(self, where: str, group: Group) -> PreprocessingOp:
        names = [group.weights[key] for key in ("mean", "variance")]
        mean, variance = (self._store.load(name).reshape(-1).tolist() for name in names)
        deviation = [max(max(v, 0.0) ** 0.5, EPSILON) for v in variance]
        scale, shift = tuple(1 / d for d in deviation), tuple(-m / d for m, d in zip(mean, deviation, strict=True))
        tensors = tuple((name, 0) for name in names if self._store.tensors[name].shape)
        return PreprocessingOp(where, "Normalization", scale, shift, tensors)

    def bias_target(self, conv: FirstConv) -> tuple[str, int] | None:
        """The bias beside the kernel (+1), or the moving mean of a BatchNormalization that is the next layer (-1)."""
        if conv.tensor.name not in self._places or conv.layout is None:
            return None
        index, _ = self._places[conv.tensor.name]
        group, following = self._groups[index], self._groups[index + 1 : index + 2]
        if "pointwise_kernel" in group.weights:
            return None
        if "bias" in group.weights:
            return group.weights["bias"], 1
        mean = following[0].weights.get("moving_mean") if following else None
        filters = conv.tensor.shape[conv.layout.axes.index("O")]
        return (mean, -1) if mean and self._store.tensors[mean].shape == (filters,) else None


def _groups(names: Iterable[str]) -> list[Group]:
    """The weights of these names, layer by layer."""
    by_layer: dict[str, list[str]] = {}
    for name in names:
        by_layer.setdefault(name.rpartition("/")[0], []).append(name)
    return [_group(layer, members) for layer, members in by_layer.items()]


def _group(layer: str, names: Sequence[str]) -> Group:
    """One layer's weights, numbered (Keras 3) or named."""
    if layer.endswith("/vars") or layer == "vars":
        kind, listed = _stored(layer.removesuffix("vars").rstrip("/"))
        # a BatchNormalization without gamma or beta has fewer variables, and the statistics are the last
        listed = listed[-len(names) :] if kind == "BatchNormalization" else listed
        listed = (*listed, *map(str, range(len(listed), len(names))))
        return Group(kind, dict(zip(listed, names, strict=False)))
    weights = {_weight(name): name for name in names}
    if {"mean", "variance", "count"} <= weights.keys():
        return Group("Normalization", weights)
    kinds = {"moving_mean": "BatchNormalization", "pointwise_kernel": "SeparableConv2D", "depthwise_kernel": "DepthwiseConv2D"}
    return Group(next((kind for weight, kind in kinds.items() if weight in weights), ""), weights)


def _stored(layer: str) -> tuple[str, tuple[str, ...]]:
    return _STORED.get(re.sub(r"_\d+$", "", layer.rpartition("/")[2]), ("", ()))


def _weight(name: str) -> str:
    """A weight's name without what Keras 1 (conv_W_1) or Keras 2 (kernel:0) added."""
    last = re.sub(r":\d+$", "", name.rpartition("/")[2])
    last = re.sub(r"^.+_(W|b)(_\d+)?$", r"\1", last)
    return next((weight for weight, names in WEIGHT_NAMES.items() if last in names and weight != "depthwise_kernel"), last)


def trained(names: Iterable[str]) -> list[str]:
    """The weights that an optimizer trains, as far as their classes are known."""
    return [name for group in _groups(names) for weight, name in group.weights.items() if weight not in UNTRAINED]


def layout_of(layer: str, tensor: Tensor, *, theano: bool) -> Layout | None:
    """The layout of a kernel, by its class where the file names it."""
    kind, _ = _stored(layer)
    if kind in CONVS:
        layout = CONVS[kind].layout
        return layout if len(layout.axes) == len(tensor.shape) else None
    return (OIHW if theano else HWIO).get(len(tensor.shape))


def looks_like_theano(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether most windows are last: small squares at the end of the shape, not at its beginning."""
    last = sum(c == d < min(a, b) for a, b, c, d in shapes)
    return last > sum(a == b < min(c, d) for a, b, c, d in shapes)

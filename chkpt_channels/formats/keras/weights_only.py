"""What weights without a configuration say about the first convolutions: names, shapes and the order of the layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from chkpt_channels.core.layout import Layout
from chkpt_channels.discovery import search as firstconv
from chkpt_channels.formats.base import Declaration, Edits, FirstConv, Front, Notice
from chkpt_channels.formats.keras.layers import CONVS, SPELLINGS, UNTRAINED, snake_case
from chkpt_channels.formats.keras.preprocessing import EPSILON

if TYPE_CHECKING:
    from chkpt_channels.formats.base import Tensor
    from chkpt_channels.formats.keras.checkpoint import KerasCheckpoint

HWIO = {3: Layout("WIO"), 4: Layout("HWIO"), 5: Layout("DHWIO")}
OIHW = {3: Layout("OIW"), 4: Layout("OIHW"), 5: Layout("OIDHW")}
MOST_COLOURS = 4
_CLASSES = {snake_case(kind): kind for kind in CONVS}
_STORED = {
    "normalization": ("mean", "variance", "count"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


class Group(NamedTuple):
    """One layer's weights: the tensors by the names of the weights."""

    kind: str
    weights: dict[str, str]


class Bare:
    """The weights of a checkpoint, layer by layer."""

    is_stale = False
    """Without a configuration nothing is stated that could contradict itself."""

    def __init__(self, checkpoint: KerasCheckpoint) -> None:
        self._checkpoint = checkpoint
        by_layer: dict[str, list[str]] = {}
        for name, tensor in checkpoint.tensors.items():
            if not tensor.group:
                by_layer.setdefault(name.rpartition("/")[0], []).append(name)
        self._groups = [_group(layer, names) for layer, names in by_layer.items()]

    def first_convs(self) -> Sequence[FirstConv]:
        """What names and shapes tell, asked in PyTorch's words: module.weight, OIHW, groups over one channel each. A first layer
        that is depthwise is taken as it is. None where that is open."""
        names = [name for group in self._groups for weight, name in group.weights.items() if weight.endswith("kernel")]
        asked = {other: name for name in names if (other := self._in_other_words(name))}
        if names and self._checkpoint.ordered and self.is_depthwise(names[0]):
            found = self._depthwise(names[0])
        else:
            answer = firstconv.find(asked, ordered=self._checkpoint.ordered).first_convs
            mine = [(conv, self._checkpoint.tensors[asked[conv.tensor]]) for conv in answer]
            found = [conv._replace(tensor=tensor, layout=tensor.layout) for conv, tensor in mine]
            if any(self.is_depthwise(tensor.name) for _, tensor in mine):
                found = []
        if any(front.scale for front in self.fronts(found)):
            told = (
                "a Normalization is folded; constants in the model's code, such as EfficientNet's second Rescaling, are not here"
            )
            self._checkpoint.warnings.append(Notice("code_constants", told))
        return found

    def _depthwise(self, name: str) -> list[FirstConv]:
        tensor = self._checkpoint.tensors[name]
        channels = tensor.shape[-2]
        if channels > MOST_COLOURS:
            return []
        return [FirstConv(tensor, tensor.layout, channels, "shapes", "the first conv in module order, depthwise", channels)]

    def _in_other_words(self, name: str) -> Tensor | None:
        """A kernel as PyTorch would have it; None for what is none."""
        tensor = self._checkpoint.tensors[name]
        module = re.sub(r"[/.]+", ".", re.sub(r"/?vars$", "", name.rpartition("/")[0])) or "model"
        suffix = "pointwise.weight" if self._weight_of(name) == "pointwise_kernel" else "weight"
        if len(tensor.shape) == 2:
            return tensor._replace(name=f"{module}.{suffix}", shape=tensor.shape[::-1], layout=Layout("OI"))
        layout = tensor.layout
        if layout is None or len(tensor.shape) not in OIHW:
            return None
        sizes = dict(zip(layout.axes, tensor.shape, strict=True))
        if self.is_depthwise(name):
            sizes |= {"O": sizes["O"] * sizes["I"], "I": 1}
        other = OIHW[len(tensor.shape)]
        return tensor._replace(name=f"{module}.{suffix}", shape=tuple(sizes[letter] for letter in other.axes), layout=other)

    def is_depthwise(self, name: str) -> bool:
        """Whether every channel has filters of its own in this kernel."""
        group = self._group_of(name)
        return (
            group is not None and group.kind in CONVS and CONVS[group.kind].depthwise and "pointwise" not in self._weight_of(name)
        )

    def _weight_of(self, name: str) -> str:
        group = self._group_of(name)
        return next((weight for weight, its in group.weights.items() if its == name), "") if group else ""

    def _group_of(self, name: str) -> Group | None:
        return next((group for group in self._groups if name in group.weights.values()), None)

    def fronts(self, first_convs: Sequence[FirstConv]) -> Sequence[Front]:
        """The normalisation whose weights stand directly in front of these kernels: one number an input channel each.

        Raises UnsupportedError where there is a configuration after all, of a model that does not list its layers.
        """
        if self._checkpoint.is_configured and first_convs:
            raise self._checkpoint.source.place.inside(self._checkpoint.document).unsupported(
                "the model is a class of its own, which does not list its layers: its code says how many channels it takes",
                hint="convert its weights: model.save_weights('….weights.h5')",
            )
        return list(dict.fromkeys(front for conv in first_convs for front in self._in_front(conv)))

    def _in_front(self, conv: FirstConv) -> Sequence[Front]:
        place = next((i for i, group in enumerate(self._groups) if conv.tensor.name in group.weights.values()), 0)
        found = []
        for group in self._groups[:place]:
            shapes = {self._checkpoint.tensors[name].shape for name in group.weights.values()} - {()}
            if shapes != {(conv.in_channels,)}:
                continue
            where = next(iter(group.weights.values())).rpartition("/")[0]
            constants = [group.weights[key] for key in ("mean", "variance") if key in group.weights]
            sizes = [self._checkpoint.tensors[name].shape for name in constants]
            if group.kind == "Normalization" and sizes == [(conv.in_channels,)] * 2:
                found.append(self._normalization(where, group))
            else:
                found.append(Front(where, "normalisation, whose configuration is not in the file,"))
        return found

    def _normalization(self, where: str, group: Group) -> Front:
        mean, variance = (self._checkpoint.load(group.weights[key]).reshape(-1).tolist() for key in ("mean", "variance"))
        deviation = [max(max(v, 0.0) ** 0.5, EPSILON) for v in variance]
        scale, shift = tuple(1 / d for d in deviation), tuple(-m / d for m, d in zip(mean, deviation, strict=True))
        return Front(where, "Normalization", scale, shift, tuple((group.weights[key], 0) for key in ("mean", "variance")))

    def graph_methods(self, first_convs: Sequence[FirstConv]) -> Sequence[str]:
        """None: there is no graph."""
        return ()

    def shift_taker(self, conv: FirstConv) -> tuple[str, int] | None:
        """The bias beside the kernel (+1), or the moving mean of a BatchNormalization that is the next layer (-1)."""
        place = next((i for i, group in enumerate(self._groups) if conv.tensor.name in group.weights.values()), None)
        if place is None or conv.layout is None:
            return None
        group, behind = self._groups[place], self._groups[place + 1 : place + 2]
        if "bias" in group.weights:
            return group.weights["bias"], 1
        mean = behind[0].weights.get("moving_mean") if behind else None
        filters = conv.tensor.shape[conv.layout.axes.index("O")]
        return (mean, -1) if mean and self._checkpoint.tensors[mean].shape == (filters,) else None

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        """None: the model's code says its shapes."""
        return ()

    def judge(self) -> None:
        """Nothing is stated that could contradict itself."""

    def edited(self, edits: Edits) -> str | None:
        """None: there is no configuration."""
        return None


def _group(layer: str, names: Sequence[str]) -> Group:
    """One layer's weights, numbered (Keras 3) or named."""
    if layer.endswith("/vars") or layer == "vars":
        kind = re.sub(r"_\d+$", "", layer.removesuffix("vars").rstrip("/").rpartition("/")[2])
        listed = CONVS[_CLASSES[kind]].weights if kind in _CLASSES else _STORED.get(kind, ())
        listed = listed[-len(names) :] if kind == "batch_normalization" else listed
        words = {"normalization": "Normalization", "batch_normalization": "BatchNormalization"}
        listed = (*listed, *map(str, range(len(listed), len(names))))
        return Group(_CLASSES.get(kind, words.get(kind, "")), dict(zip(listed, names, strict=False)))
    weights = {_weight(name): name for name in names}
    if {"mean", "variance", "count"} <= weights.keys():
        return Group("Normalization", weights)
    kinds = {"moving_mean": "BatchNormalization", "pointwise_kernel": "SeparableConv2D", "depthwise_kernel": "DepthwiseConv2D"}
    return Group(next((kind for weight, kind in kinds.items() if weight in weights), ""), weights)


def _weight(name: str) -> str:
    """What a weight is called, whatever Keras 1 or 2 added to it."""
    last = re.sub(r":\d+$", "", name.rpartition("/")[2])
    last = re.sub(r"^.+_(W|b)(_\d+)?$", r"\1", last)
    return next((weight for weight, spellings in SPELLINGS.items() if last in spellings and weight != "depthwise_kernel"), last)


def trained(names: Iterable[str]) -> list[str]:
    """The weights that an optimizer trains, as far as their classes are known."""
    by_layer: dict[str, list[str]] = {}
    for name in names:
        by_layer.setdefault(name.rpartition("/")[0], []).append(name)
    groups = (_group(layer, found) for layer, found in by_layer.items())
    return [name for group in groups for weight, name in group.weights.items() if weight not in UNTRAINED]


def layout_of(layer: str, tensor: Tensor, *, theano: bool) -> Layout | None:
    """The layout of a kernel, by its class where the file says it."""
    kind = re.sub(r"_\d+$", "", layer.rpartition("/")[2])
    if kind in _CLASSES:
        layout = CONVS[_CLASSES[kind]].layout
        return layout if len(layout.axes) == len(tensor.shape) else None
    return (OIHW if theano else HWIO).get(len(tensor.shape))


def looks_like_theano(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether most windows stand behind: small squares at the end of the shape, not at its beginning."""
    behind = sum(c == d < min(a, b) for a, b, c, d in shapes)
    return behind > sum(a == b < min(c, d) for a, b, c, d in shapes)

"""From an image input to every convolution that it reaches, and what stands on the way.

Each value on the way knows which axis of the image each of its axes is. An operation keeps the channels apart and passes; or
it treats them by constants of their own (a Front with scale and shift); or it mixes, selects or folds them (a Front without):
then only `stack` makes one channel of it. The axis that a convolution takes as channels tells which one of the image it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..model import Front
from ._onnx_model import Info, Node, OnnxModel, Weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONVOLUTIONS = {"Conv": (0, 1), "ConvTranspose": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
"""Operation → (input that is the image, input that is the kernel)."""
PRODUCTS = {"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"}
LINEAR = frozenset(("Identity", "Cast", "CastLike", "Dropout", "Pad", "Resize", "Upsample", "AveragePool", "GlobalAveragePool"))
"""What treats every channel alike, keeps the axes where they are, and is linear."""
ELEMENTWISE = frozenset(
    (
        *("Relu", "LeakyRelu", "ThresholdedRelu", "Sigmoid", "Tanh", "Clip", "Abs", "Neg", "Sqrt", "Reciprocal", "Exp", "Log"),
        *("Floor", "Ceil", "Round", "Erf", "Sign", "HardSwish", "HardSigmoid", "Elu", "Selu", "Celu", "Gelu", "Mish"),
        *("Softplus", "Softsign", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("MaxPool", "LpPool", "GlobalMaxPool"),
    )
)
"""The same, but not linear: constants in front of it cannot be moved behind it."""
BINARY = frozenset(["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod"])
SHAPES = frozenset(("Shape", "Size"))
MOST_CHANNELS = 32

Load = Callable[[Weight], "NDArray[Any]"]


class Flow(NamedTuple):
    """A value on the way. `axes[k]` is the axis of the image that axis k is, None where they were folded or mixed; `wide`
    means that per-channel constants have spread one channel over all by then; `fronts` are the constants it went through."""

    axes: tuple[int, ...] | None
    wide: bool = False
    fronts: tuple[Front, ...] = ()


class Reached(NamedTuple):
    """A convolution or product that sees the image; `direct` where its channels are the image's."""

    node: Node
    kernel: str
    direct: bool
    fronts: tuple[Front, ...] = ()


class Constants(NamedTuple):
    """A Front and its node."""

    front: Front
    node: Node


class ImagePath:
    """Everything behind one graph input, if axis `channel` of it holds the channels."""

    def __init__(self, model: OnnxModel, image: Info, channel: int, load: Load) -> None:
        self.model, self.image, self.channel, self._load = model, image, channel, load
        self.reached: list[Reached] = []
        self.fronts: list[Constants] = []
        self.values: dict[str, Flow] = {image.name: Flow(tuple(range(len(image.dims))))}
        self.broadcasts = True
        for node in model.nodes:
            if any(name in self.values for name in node.inputs):
                self._through(node)
        if any(name in model.captured for name in self.values):
            self.fronts.append(Constants(Front("a subgraph", "subgraph"), model.nodes[0]))
            self.broadcasts = False
        self.broadcasts &= not any(not flow.wide for name, flow in self.values.items() if name in model.outputs)

    def _through(self, node: Node) -> None:
        op = node.op if node.domain in ("", "ai.onnx") else ""
        if op in SHAPES:
            return
        if op in CONVOLUTIONS and node.inputs[CONVOLUTIONS[op][0]] in self.values:
            self._reach(node, node.inputs[CONVOLUTIONS[op][1]])
        elif op in PRODUCTS:
            self._product(node)
        elif op in LINEAR and node.inputs[0] in self.values:
            self._give(node, self.values[node.inputs[0]])
        elif op in ELEMENTWISE and node.inputs[0] in self.values:
            self._pass(node)
        elif op == "Transpose":
            flow = self.values[node.inputs[0]]
            order = node.integers("perm") or list(range(len(flow.axes or ())))[::-1]
            self._give(node, flow._replace(axes=tuple(flow.axes[i] for i in order) if flow.axes else None))
        elif op in BINARY:
            self._binary(node)
        elif op == "BatchNormalization" and node.inputs[0] in self.values:
            self._batch_normalization(node)
        else:
            self._mix(node)

    def _give(self, node: Node, flow: Flow) -> None:
        for name in node.outputs:
            if name:
                self.values[name] = flow

    def _mix(self, node: Node) -> None:
        """Channels may be selected, mixed or folded here: whoever follows is reached, but not through channels of their own."""
        flows = [self.values[name] for name in node.inputs if name in self.values]
        where = node.label
        if all(flow.axes is not None for flow in flows):
            self.fronts.append(Constants(Front(where, node.op), node))
        self.broadcasts &= all(flow.wide for flow in flows)
        self._give(node, Flow(None, all(flow.wide for flow in flows)))

    def _pass(self, node: Node) -> None:
        flow = self.values[node.inputs[0]]
        if node.op in ("QuantizeLinear", "DequantizeLinear") and self._per_channel(node, flow):
            self._mix(node)
        else:
            self._give(node, _bent(flow, node))

    def _per_channel(self, node: Node, flow: Flow) -> bool:
        scale = self.model.stored(node.inputs[1])
        return scale is None or max(scale.shape, default=1) > 1

    def _reach(self, node: Node, kernel: str) -> None:
        flow = self.values[node.inputs[CONVOLUTIONS[node.op][0]]]
        direct = flow.axes is not None and len(flow.axes) > 1 and flow.axes[1] == self.channel
        self.broadcasts &= flow.wide
        self.reached.append(Reached(node, kernel, direct, flow.fronts))

    def _product(self, node: Node) -> None:
        """A matrix product over folded patches; over plain pixels it mixes the channels itself."""
        data = [i for i, name in enumerate(node.inputs[:2]) if name in self.values]
        flow = self.values[node.inputs[data[0]]] if data else Flow(None)
        self.broadcasts &= flow.wide
        other = node.inputs[1 - data[0]] if data else ""
        self.reached.append(Reached(node, other, False))

    def _binary(self, node: Node) -> None:
        tracked = [name for name in node.inputs if name in self.values]
        flow = self.values[tracked[0]]
        if len(tracked) == len(node.inputs):
            alike = all((self.values[name].axes, self.values[name].fronts) == (flow.axes, flow.fronts) for name in tracked)
            if alike and flow.axes is not None:
                self._give(node, _bent(flow, node))
            else:
                self._mix(node)
            return
        index = next(i for i, name in enumerate(node.inputs) if name not in self.values)
        weight = self.model.stored(node.inputs[index])
        if weight is None or flow.axes is None:
            self._mix(node)
            return
        axis = flow.axes.index(self.channel) - len(flow.axes) + len(weight.shape) if self.channel in flow.axes else -1
        if axis >= 0 and weight.shape[axis] > 1:
            self._constant(node, flow, weight, axis, index)
        elif all(n == 1 for n in weight.shape):
            self._scalar(node, flow, weight, index)
        else:
            self._give(node, _bent(flow, node))

    def _scalar(self, node: Node, flow: Flow, weight: Weight, index: int) -> None:
        affine = _affine(node.op, index, [float(v) for v in self._load(weight).reshape(-1)])
        front = Front(node.label, node.op, *affine) if affine else None
        self._give(node, flow._replace(fronts=(*flow.fronts, front)) if front else _bent(flow, node))

    def _constant(self, node: Node, flow: Flow, weight: Weight, axis: int, index: int) -> None:
        """x ∘ constant or constant ∘ x, the constant different for each channel."""
        alone = all(n == 1 for i, n in enumerate(weight.shape) if i != axis)
        affine = _affine(node.op, index, [float(v) for v in self._load(weight).reshape(-1)]) if alone else None
        scale, shift = affine or (None, None)
        front = Front(node.label, node.op, scale, shift, ((weight.name, axis),))
        self.fronts.append(Constants(front, node))
        self._give(node, Flow(flow.axes, True, (*flow.fronts, front)))

    def _batch_normalization(self, node: Node) -> None:
        flow = self.values[node.inputs[0]]
        weights = [self.model.stored(name) for name in node.inputs[1:5]]
        self.broadcasts &= flow.wide
        if any(w is None for w in weights) or flow.axes is None or flow.axes[1] != self.channel:
            self._mix(node)
            return
        found = [w for w in weights if w is not None]
        gamma, beta, mean, variance = (self._load(w).astype("float64").reshape(-1) for w in found)
        scale = gamma / (variance + node.real("epsilon", 1e-5)) ** 0.5
        affine = tuple(map(float, scale)), tuple(map(float, beta - scale * mean))
        front = Front(node.label, node.op, *affine, tuple((w.name, 0) for w in found))
        self.fronts.append(Constants(front, node))
        self._give(node, flow._replace(fronts=(*flow.fronts, front)))


def _affine(op: str, index: int, values: list[float]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(scale, shift) of x op constant (index 1) or constant op x (index 0)."""
    ones, zeros = (1.0,) * len(values), (0.0,) * len(values)
    given = tuple(values)
    if op == "Add":
        return ones, given
    if op == "Sub":
        return (ones, tuple(-v for v in values)) if index == 1 else (tuple(-v for v in ones), given)
    if op == "Mul":
        return given, zeros
    if op == "Div" and index == 1 and all(values):
        return tuple(1 / v for v in values), zeros
    return None


def _bent(flow: Flow, node: Node) -> Flow:
    """Behind an operation that is not linear, the constants in front of it can no longer be moved into a kernel."""
    fronts = (front._replace(kind=f"{front.kind} before a {node.op}", scale=None, shift=None) for front in flow.fronts)
    return flow._replace(fronts=tuple(fronts))


def image_paths(model: OnnxModel, load: Load, named: Sequence[str] = ()) -> list[ImagePath]:
    """One path for each input that looks like an image and reaches a convolution as data, or that is `named`."""
    found = []
    for info in model.inputs:
        if named and info.name not in named:
            continue
        if not named and (len(info.dims) not in (4, 5) or _is_constant_like(info)):
            continue
        paths = [ImagePath(model, info, axis, load) for axis in dict.fromkeys((1, len(info.dims) - 1))]
        paths = [path for path in paths if path.reached and _declares(path)]
        direct = [path for path in paths if any(r.direct and _fits(path, r) for r in path.reached)]
        if direct or paths:
            found.append((direct or sorted(paths, key=lambda p: info.dims[p.channel] or MOST_CHANNELS + 1))[0])
    return found


def _is_constant_like(info: Info) -> bool:
    """Constants that an exporter leaked as inputs ([1, 1, 1, 3]) are no images: an image is larger than one pixel."""
    return sum(n is None or n > 1 for n in info.dims[1:]) < 2


def _declares(path: ImagePath) -> bool:
    channels = path.image.dims[path.channel]
    return channels is None or 1 <= channels <= MOST_CHANNELS


def _fits(path: ImagePath, reached: Reached) -> bool:
    """Whether the kernel takes as many channels as the input declares."""
    channels, kernel = path.image.dims[path.channel], kernel_of(path.model, reached.node, reached.kernel)
    return kernel is None or channels is None or in_channels(reached.node, kernel) == channels


def kernel_of(model: OnnxModel, node: Node, name: str) -> Weight | None:
    """The stored kernel behind an input, looked for through DequantizeLinear."""
    weight = model.stored(name)
    producer = model.producers.get(name)
    if weight is None and producer is not None and producer.op in ("DequantizeLinear", "Cast"):
        weight = model.stored(producer.inputs[0])
    return weight


def in_channels(node: Node, kernel: Weight) -> int:
    """How many channels a convolution takes."""
    if node.op == "ConvTranspose":
        return kernel.shape[0]
    return kernel.shape[1] * node.integer("group", 1)

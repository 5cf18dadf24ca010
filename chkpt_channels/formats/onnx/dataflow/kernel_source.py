"""The stored tensor behind a convolution's kernel, and the nodes that make the one of the other.

    stored, Identity                as it is
    Cast, DequantizeLinear          other numbers, in the same places
    Transpose                       HWIO, as TensorFlow stores it
    Reshape                         [8, 27] to [8, 3, 3, 3]
    Mul, Div by a constant          weight_norm, or a gain

Followed from the convolution back to the file, and then forward by their shapes.
Source: onnx/docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from chkpt_channels.core.dtypes import BY_NAME, DType
from chkpt_channels.core.layout import KNOWN, Layout
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.onnx.model import OnnxModel, Weight
from chkpt_channels.formats.onnx.nodes import Node
from chkpt_channels.formats.onnx.schema import DTYPES

MOST_MAKERS = 16
"""In a row before a kernel; a circle of them ends here."""
KEEPING = ("Identity", "Cast", "DequantizeLinear")
SCALING = ("Mul", "Div")
Shape = tuple[int, ...]
Places = tuple[tuple[int, ...], ...]
"""For each axis of a value, the axes of the kernel that it holds, the slowest first."""


class Maker(NamedTuple):
    """A node between the stored tensor and the convolution, and the shapes of what it takes and makes; `other` is the constant
    that is its second input: a target shape, or a factor."""

    node: Node
    taken: Shape
    made: Shape
    other: Weight | None = None

    @property
    def is_even(self) -> bool:
        """Whether it multiplies two tensors of one size."""
        return self.node.op in SCALING and self.other is not None and prod(self.other.shape) == prod(self.taken)


class KernelSource(NamedTuple):
    """A kernel: `weight` is the stored tensor, in the shape that the convolution takes. `places` are those of each stored axis,
    then of what each maker makes; empty where they are not known."""

    weight: Weight
    makers: tuple[Maker, ...] = ()
    places: tuple[Places, ...] = ()

    @property
    def is_computed(self) -> bool:
        """Whether its taps or values are not those that are stored: then no constant can be folded."""
        return any(maker.node.op in ("Reshape", *SCALING) for maker in self.makers)

    @property
    def kind(self) -> DType:
        """The element type of the kernel that the convolution takes."""
        casts = [maker.node.integer("to", 0) for maker in self.makers if maker.node.op == "Cast"]
        return BY_NAME[DTYPES[casts[-1]]] if casts and casts[-1] in DTYPES else self.weight.dtype

    def layout(self, taken: Layout) -> Layout | None:
        """The layout of the stored tensor where the convolution takes `taken`; None where there is none, or where the channels
        are not treated alike."""
        pairs = zip(self.makers, self.places[1:], strict=True)
        if not self.places or any(_tells_apart(maker, places, taken.channel_axis) for maker, places in pairs):
            return None
        letters = ["".join(taken.axes[k] for k in group) for group in self.places[0]]
        text = "".join(group if len(group) == 1 else f"({group})" for group in letters)
        return Layout(text) if text in KNOWN else None

    def held(self, channel: int, count: int) -> Iterator[tuple[Maker, int, int]]:
        """(maker, axis, steps for each channel) of each value between the stored tensor and the convolution, whose kernel has
        `count` channels on the axis `channel`."""
        for maker, places in zip(self.makers, self.places[1:], strict=True):
            axis = _holder(places, channel)
            yield maker, axis, prod(self.weight.shape[k] for k in places[axis]) // count

    def counts(self, channel: int, count: int, model: OnnxModel) -> Iterator[tuple[Weight, int, int, Node]]:
        """(weight, position, steps for each channel, reader) of the stored target shapes that hold the number of channels."""
        for maker, axis, each in self.held(channel, count):
            if maker.node.op == "Reshape" and maker.other and int(model.load(maker.other).reshape(-1)[axis]) > 0:
                yield maker.other, axis, each, maker.node


def kernel_source(model: OnnxModel, name: str) -> KernelSource | None:
    """The source of a kernel; None where it is not made of one stored tensor by nodes that are followed."""
    back: list[tuple[Node, Weight | None]] = []
    while (weight := model.stored(name)) is None:
        node = model.producers.get(name)
        if node is None or node.domain or not node.inputs or len(back) == MOST_MAKERS:
            return None
        index = _followed(model, node)
        if index is None:
            return None
        others = [other for i, other in enumerate(node.inputs) if i != index]
        back.append((node, model.stored(others[0]) if others else None))
        name = node.inputs[index]
    makers, shape = [], weight.shape
    for node, other in reversed(back):
        made = _made(model, node, shape, other)
        if made is None:
            return None
        makers.append(Maker(node, shape, made, other))
        shape = made
    return KernelSource(weight._replace(shape=shape), tuple(makers), _places(makers, shape))


def _followed(model: OnnxModel, node: Node) -> int | None:
    """The input of a node that leads to the stored kernel; of a product the larger one, where the other is stored."""
    if node.op in (*KEEPING, "Transpose", "Reshape"):
        return 0
    if node.op not in SCALING:
        return None
    stored = [model.stored(name) for name in node.inputs]
    sizes = [prod(weight.shape) if weight else None for weight in stored]
    if sizes[0] is None or sizes[1] is None:
        return 0 if sizes[1] is not None else 1 if sizes[0] is not None and node.op == "Mul" else None
    return 1 if node.op == "Mul" and sizes[1] > sizes[0] else 0


def _made(model: OnnxModel, node: Node, shape: Shape, other: Weight | None) -> Shape | None:
    """The shape that a node makes of this one."""
    if node.op == "Transpose":
        order = node.integers("perm") or list(range(len(shape)))[::-1]
        return tuple(shape[k] for k in order) if sorted(order) == list(range(len(shape))) else None
    if node.op == "Reshape":
        return _reshaped(shape, [int(n) for n in model.load(other).reshape(-1)]) if other and other.size <= 64 else None
    if node.op in SCALING:
        return shape if other and len(other.shape) <= len(shape) and prod(other.shape) <= prod(shape) else None
    return shape


def _reshaped(shape: Shape, target: Sequence[int]) -> Shape | None:
    if any(n < -1 or (n == 0 and k >= len(shape)) for k, n in enumerate(target)) or target.count(-1) > 1:
        return None
    new = [n or shape[k] for k, n in enumerate(target)]
    rest = prod(n for n in new if n != -1)
    new = [n if n != -1 else prod(shape) // max(rest, 1) for n in new]
    return tuple(new) if prod(new) == prod(shape) else None


def _places(makers: Sequence[Maker], shape: Shape) -> tuple[Places, ...]:
    """The places of the stored tensor and of what each maker makes, from the kernel's own axes back; none where a Reshape cuts an
    axis of the kernel."""
    places: Places = tuple((k,) for k in range(len(shape)))
    found = [places]
    for maker in reversed(makers):
        if maker.node.op == "Transpose":
            order = maker.node.integers("perm") or list(range(len(maker.made)))[::-1]
            places = tuple(places[order.index(k)] for k in range(len(order)))
        elif maker.node.op == "Reshape":
            joined = _joined(places, maker)
            if joined is None:
                return ()
            places = joined
        found.append(places)
    return tuple(reversed(found))


def _joined(places: Places, maker: Maker) -> Places | None:
    """The places before a Reshape, each of which holds whole axes of what it makes."""
    rest, sizes = list(places), list(maker.made)
    before = []
    for steps in maker.taken:
        held: tuple[int, ...] = ()
        left = steps
        while sizes and left % sizes[0] == 0 and (left > 1 or (sizes[0] == 1 and not held)):
            left //= sizes.pop(0)
            held += rest.pop(0)
        if left != 1:
            return None
        before.append(held)
    return tuple(before) if not rest else None


def _holder(places: Places, channel: int) -> int:
    """The axis that holds the kernel's axis `channel`."""
    return next(k for k, group in enumerate(places) if channel in group)


def _tells_apart(maker: Maker, places: Places, channel: int) -> bool:
    """Whether a factor has a number for each channel."""
    if maker.node.op not in SCALING or maker.other is None:
        return False
    axis = _holder(places, channel) - len(places) + len(maker.other.shape)
    return axis >= 0 and maker.other.shape[axis] > 1

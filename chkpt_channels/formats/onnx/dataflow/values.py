"""The records of the data-flow analysis: what is known about a value that comes from the image, and about what it reaches.

Source: onnx/docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import PreprocessingOp, TensorEdit
from chkpt_channels.formats.onnx.dataflow.axes import Axes
from chkpt_channels.formats.onnx.dataflow.kernel_source import KernelSource
from chkpt_channels.formats.onnx.dataflow.operators import ROUNDING
from chkpt_channels.formats.onnx.model import OnnxModel, Weight
from chkpt_channels.formats.onnx.nodes import Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYOUTS = {"Conv": {3: "OIW", 4: "OIHW", 5: "OIDHW"}, "ConvTranspose": {3: "IOW", 4: "IOHW", 5: "IODHW"}}


class Flow(NamedTuple):
    """A value that comes from the image. `axes` are its axes in terms of the image's, None where that is not known; `mixed` that
    its channels are no longer the image's own; `wide` that per-channel constants would have broadcast one channel to all by then;
    `operations` the constants applied to it; `padded` that zeros were padded around it after them."""

    axes: Axes | None
    wide: bool = False
    operations: tuple[PreprocessingOp, ...] = ()
    padded: bool = False
    mixed: bool = False

    @property
    def own(self) -> Axes | None:
        """The axes where the channels are the image's own."""
        return None if self.mixed else self.axes


class ReachedConv(NamedTuple):
    """A convolution or product that sees the image. `source` says what its kernel is made of, `layout` are the axes of the kernel
    that it takes and `channels` their number, where the channels are the image's and the kernel can be edited; else None and 0.
    `sizes` are those of the axes after the channels, `padded` and `axes` are as in Flow."""

    node: Node
    source: KernelSource | None
    layout: Layout | None
    channels: int
    operations: tuple[PreprocessingOp, ...]
    sizes: tuple[int, ...]
    padded: bool
    axes: Axes | None

    @property
    def kernel(self) -> Weight | None:
        """The stored kernel, in the shape that it takes."""
        return self.source.weight if self.source else None

    @property
    def width(self) -> int:
        """The channels that each filter takes."""
        return self.channels // self.node.integer("group", 1)

    @property
    def keeps_constants(self) -> bool:
        """Whether a constant in what it takes is one in what it gives, by the kernel as it is stored: not where nodes compute the
        kernel, nor where a folded tap covers both padded and unpadded pixels."""
        is_cut = self.padded and self.layout is not None and self.layout.folded
        return not (is_cut or (self.source is not None and self.source.is_computed))

    @property
    def factors(self) -> Sequence[str]:
        """The stored factors of the kernel that are as large as it is: which of them is the kernel does not show."""
        return [maker.other.name for maker in self.source.makers if maker.is_even and maker.other] if self.source else []

    @property
    def stored(self) -> Layout | None:
        """The layout of the stored kernel."""
        return self.source.layout(self.layout) if self.source and self.layout else self.layout


class LocatedOp(NamedTuple):
    """A PreprocessingOp and its node."""

    operation: PreprocessingOp
    node: Node


class Count(NamedTuple):
    """A stored number that is `each` times the channels: position `at` of `weight`, for the node `reader`."""

    weight: Weight
    at: int
    each: int
    reader: Node


def kernel_layout(node: Node, kernel: Weight, slower: int, faster: int) -> Layout | None:
    """The layout of a convolution's kernel whose channels are folded with so many slower and faster steps."""
    plain = LAYOUTS.get(node.op, LAYOUTS["Conv"]).get(len(kernel.shape))
    if plain is None or slower == faster == 1:
        return Layout(plain) if plain else None
    if plain != "OIHW" or node.integer("group", 1) != 1 or 1 not in (slower, faster):
        return None
    return Layout("O(GI)HW" if faster == 1 else "O(IG)HW")


def product_layout(node: Node, kernel: Weight, slower: int, faster: int) -> Layout | None:
    """The same for a matrix product with the stored kernel, or with its transpose."""
    plain = node.op in ("MatMul", "Gemm") and kernel.dtype.floating and len(kernel.shape) == 2
    if not plain or node.integer("transA", 0) or not node.real("alpha", 1.0) == node.real("beta", 1.0) == 1.0:
        return None
    if slower == faster == 1 or 1 not in (slower, faster):
        return None
    folded = "(HWI)" if faster == 1 else "(IHW)"
    return Layout("O" + folded if node.integer("transB", 0) else folded + "O")


def after_constants(flow: Flow, operation: PreprocessingOp) -> Flow:
    """After a per-channel shift, earlier zero padding is no longer zero."""
    return flow._replace(operations=(*flow.operations, operation), padded=flow.padded and not any(operation.shift or ()))


def affine(op: str, index: int, values: list[float]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(scale, shift) of x op constant (index 1) or constant op x (index 0)."""
    ones, zeros = (1.0,) * len(values), (0.0,) * len(values)
    constants = tuple(values)
    if op == "Add":
        return ones, constants
    if op == "Sub":
        return (ones, tuple(-v for v in values)) if index == 1 else (tuple(-v for v in ones), constants)
    if op == "Mul":
        return constants, zeros
    if op == "Div" and index == 1 and all(values):
        return tuple(1 / v for v in values), zeros
    return None


def normalizing(node: Node, numbers: Sequence[NDArray[Any]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(scale, shift) of a BatchNormalization with this scale, bias, mean and variance."""
    gamma, beta, mean, variance = numbers
    scale = gamma / (variance + node.real("epsilon", 1e-5)) ** 0.5
    return tuple(map(float, scale)), tuple(map(float, beta - scale * mean))


def after_pixels(flow: Flow, node: Node) -> Flow:
    """After an operation that does the same to each channel, the constants before it can no longer be moved into a kernel; only
    reordered."""
    if all(op.scale is None for op in flow.operations):
        return flow
    blocked = (
        op._replace(kind=f"{op.kind} before a {node.op}", scale=None, shift=None, apart=op.apart or op.scale is not None)
        for op in flow.operations
    )
    return flow._replace(operations=tuple(blocked))


def after_nonlinear(flow: Flow, node: Node) -> Flow:
    """After an operation that is not linear too: channels that are mixed in front of it are not mixed alike behind it."""
    operation = PreprocessingOp(node.label, node.op, apart=True, why="precedes the kernel and is not linear")
    flow = after_pixels(flow, node)
    return flow if node.op in ROUNDING else flow._replace(operations=(*flow.operations, operation))


def joined(flows: Sequence[Flow], node: Node) -> Flow | None:
    """After an operation on values with the same axes (a residual, a sum of branches); None where these differ."""
    if flows[0].own is None or any(flow.own != flows[0].own for flow in flows):
        return None
    operations = tuple(dict.fromkeys(operation for flow in flows for operation in flow.operations))
    wide, padded = any(flow.wide for flow in flows), any(flow.padded for flow in flows)
    flow = flows[0]._replace(wide=wide, padded=padded, operations=operations)
    return after_pixels(flow, node) if node.op in ("Add", "Sub") else after_nonlinear(flow, node)


def count_edits(counts: Sequence[Count], channels: int, model: OnnxModel) -> dict[str, TensorEdit]:
    """The stored shapes that hold the number of channels."""
    by_name: dict[str, list[Count]] = {}
    for count in counts:
        by_name.setdefault(count.weight.name, []).append(count)
    return {name: TensorEdit(each[0].weight.shape, partial(_recounted, each, channels, model)) for name, each in by_name.items()}


def _recounted(counts: Sequence[Count], channels: int, model: OnnxModel) -> NDArray[Any]:
    values = model.load(counts[0].weight).copy()
    for count in counts:
        values.reshape(-1)[count.at] = count.each * channels
    return values

"""The axes of a value after an operation that selects or mixes channels: which axis of the image each is still of.

No kernel edit is right behind these operations; but that the convolution slides over the rows and columns, and which axis its
channels came from, is known as long as every operation between is.
Source: onnx/docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.formats.onnx.dataflow.axes import NEW, OPEN, Axes, Axis, Piece, opened, resized, size, source, unsized
from chkpt_channels.formats.onnx.dataflow.shape_values import Numbers
from chkpt_channels.formats.onnx.model import OnnxModel
from chkpt_channels.formats.onnx.nodes import Node

Inputs = Sequence[Axes | None]
"""The axes of each input of a node, None for one that is not of the image or is not followed."""


def followed(node: Node, inputs: Inputs, model: OnnxModel, numbers: Numbers) -> Axes | None:
    """The axes of what a node of the standard operators makes, None where they are not followed."""
    if node.op in BROADCAST:
        return _broadcast(node, inputs, model)
    if node.op == "Concat":
        return _joined(node, [axes for axes in inputs if axes])
    axes = inputs[0]
    if node.op in SAME or not axes:
        return axes if node.op in SAME else None
    if node.op in ("Gather", "GatherND"):
        indices = model.stored(node.given(1))
        return _gathered(node, axes, indices.shape) if indices else None
    if node.op in REDUCED:
        return _reduced(node, axes, numbers)
    if node.op == "Split":
        return unsized(axes, [node.integer("axis", 0)])
    at = numbers.plain(node, 3, "axes") if node.op == "Slice" else [] if node.op in RESIZED else None
    return None if at is None else unsized(axes, at or range(len(axes)))


def _gathered(node: Node, axes: Axes, indices: Sequence[int]) -> Axes | None:
    if node.op == "Gather":
        start, taken, made = node.integer("axis", 0) % len(axes), 1, indices
    elif not indices or node.integer("batch_dims", 0):
        return None
    else:
        start, taken, made = 0, indices[-1], indices[:-1]
    if len(made) == taken == 1:
        return resized(axes, start, made[0] or None)
    return (*axes[:start], *((Piece(NEW, n),) for n in made), *axes[start + taken :])


def _joined(node: Node, parts: Sequence[Axes]) -> Axes | None:
    if not parts or len({len(axes) for axes in parts}) > 1:
        return None
    first, k = parts[0], node.integer("axis", 1) % len(parts[0])
    is_one = len({source(axes[k]) for axes in parts}) == 1
    return resized(first if is_one else (*first[:k], (), *first[k + 1 :]), k)


def _broadcast(node: Node, inputs: Inputs, model: OnnxModel) -> Axes | None:
    """Numpy's rule: the last axes are aligned, and those of one step repeat. An operand that is not known has no more axes than
    the image, or else no convolution takes the result; what repeats along it is of unknown size."""
    known = [axes for axes in inputs if axes is not None]
    if not known:
        return None
    weights = [model.stored(name) for name, axes in zip(node.inputs, inputs, strict=True) if axes is None]
    known += [tuple((Piece(NEW, n),) for n in weight.shape) for weight in weights if weight]
    rank = max(len(axes) for axes in known)
    if None in weights:
        known.append(tuple((Piece(NEW, OPEN),) for _ in range(rank)))
    padded = [((),) * (rank - len(axes)) + axes for axes in known]
    return tuple(max(column, key=_rank) for column in zip(*padded, strict=True))


def _rank(axis: Axis) -> tuple[bool, bool]:
    """Of axes that are one, a longer one counts, and of those the image's."""
    return size(axis) > 1, any(piece.of != NEW for piece in axis)


def _reduced(node: Node, axes: Axes, numbers: Numbers) -> Axes | None:
    at = numbers.plain(node, 1, "axes")
    if at is None:
        return None
    gone = {k % len(axes) for k in at or range(len(axes))}
    one: tuple[Axis, ...] = ((),) if node.integer("keepdims", 1) else ()
    return tuple(axis for k, old in enumerate(axes) for axis in (one if k in gone else (old,)))


SAME = (
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "LRN", "LpNormalization"),
    *("MeanVarianceNormalization", "Softmax", "LogSoftmax", "CumSum", "Trilu", "ScatterND", "ScatterElements", "PRelu"),
    *("QuantizeLinear", "DequantizeLinear", "ReverseSequence", "GatherElements"),
)
BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod", "Sum", "Mean", "Where")
REDUCED = tuple(f"Reduce{kind}" for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"))
RESIZED = ("Pad", "Resize", "Upsample", "Tile", "GridSample", "DepthToSpace", "CenterCropPad")


def merged(branches: Inputs) -> Axes | None:
    """The axes of a value that is one of several: those of the image that all of them are of."""
    known = [axes for axes in branches if axes is not None]
    if len(known) < len(branches) or len({len(axes) for axes in known}) != 1:
        return None
    new = []
    for k, column in enumerate(zip(*known, strict=True)):
        sources = {source(axis) for axis in column}
        one = (Piece(sources.pop() if len(sources) == 1 else NEW, opened(k)),)
        new.append(column[0] if len(set(column)) == 1 else one)
    return tuple(new)

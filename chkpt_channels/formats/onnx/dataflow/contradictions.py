"""Where an ONNX file states other channels than the walk from the image shows: what a conversion left that did not follow it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from chkpt_channels.core.tensors import Declaration, FirstConv, Tensor
from chkpt_channels.formats.onnx.dataflow.axes import OPEN, holder, size
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from chkpt_channels.formats.onnx.model import OnnxModel


def of_graph(
    model: OnnxModel, paths: Sequence[ImageTrace], first_convs: Sequence[FirstConv], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[Declaration, int]]:
    """What is stated, and what the walk shows: of inputs, of the shapes on the way to the kernels, of kernels beside them."""
    for path in paths:
        yield from ((Declaration(f"graph.input {path.image.name}", path.count), width) for width in path.widths)
        yield from _stale_shapes(path)
    images, read = {path.count for path in paths}, {*model.consumers, *model.outputs}
    unread = [tensor for name, tensor in tensors.items() if name not in read and len(tensor.shape) >= 3]
    for conv in first_convs:
        yield from _unread(conv, unread, images)


def _unread(conv: FirstConv, unread: Sequence[Tensor], images: set[int]) -> Iterator[tuple[Declaration, int]]:
    """The stored tensors that differ from a first conv in the channels alone, that no node reads, and that are of no other
    image."""
    if conv.layout is None:
        return
    axis = conv.layout.channel_axis
    for tensor in unread:
        shape, other = list(tensor.shape), list(conv.tensor.shape)
        if len(shape) != len(other) or shape[axis] in images:
            continue
        if shape != other and [*shape[:axis], *shape[axis + 1 :]] == [*other[:axis], *other[axis + 1 :]]:
            yield Declaration(f"{tensor.name}, which no node reads", shape[axis]), other[axis]


def _stale_shapes(path: ImageTrace) -> Iterator[tuple[Declaration, int]]:
    """The declared shapes between the image and the kernels that have other channels than the walk shows."""
    for name, flow in path.values.items():
        axes = () if flow.mixed or flow.wide or name == path.image.name else flow.axes or ()
        axis = holder(axes, path.channel)
        if axis is None:
            continue
        actual = size(axes[axis])
        for info in path.model.infos(name):
            declared = info.dims[axis] if axis < len(info.dims) else None
            if declared is not None and declared != actual < OPEN:
                yield Declaration(f"graph.value_info {name}", declared), actual

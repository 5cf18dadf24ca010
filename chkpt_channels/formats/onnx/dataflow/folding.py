"""A 1×1 convolution that stands between the image and a network, and the walk from what it gives: that is an image of its own.

Its node makes each channel of the old image of those of the new one, A · x + t. Nothing that precedes it changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import Location
from chkpt_channels.core.tensors import Adapter
from chkpt_channels.formats.onnx.dataflow.axes import OPEN, Place, size
from chkpt_channels.formats.onnx.dataflow.shape_values import Load
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from chkpt_channels.formats.onnx.dataflow.values import ReachedConv
from chkpt_channels.formats.onnx.model import Info, OnnxModel
from chkpt_channels.formats.onnx.nodes import Node
from chkpt_channels.formats.onnx.schema import DTYPES

QUANTIZING = ("QuantizeLinear", "DynamicQuantizeLinear")


def fold(model: OnnxModel, users: Sequence[ReachedConv], location: Location, load: Load) -> tuple[Adapter, ImageTrace]:
    """The convolution that these users of the kernel at `location` are, and the walk from what it gives. Raises UnsupportedError
    where its node cannot be taken out, or where what it gives is needed as it is."""
    if why := _obstacle(model, users):
        raise location.unsupported(f"{why}: it is not folded")
    path, node = _behind(model, users[0], load), users[0].node
    own = {name for name, flow in path.values.items() if not flow.mixed}
    if given := sorted(own & model.outputs):
        raise location.at(given[0]).unsupported("is an output that the adapter makes: it is not folded")
    if rounding := next((each for each in model.computed.nodes if own.intersection(each.inputs) and _rounds(each)), None):
        what = f"this {rounding.op} rounds what the adapter gives, as fits its range and not the image's: it is not folded"
        raise location.at(rounding.label).unsupported(what)
    bias = model.stored(node.given(2))
    read = [name for name in node.inputs[1:] if name in model.weights and name not in model.outputs]
    alone = [name for name in read if all(reader is node for reader, _ in model.consumers[name])]
    return Adapter(node.outputs[0], bias.name if bias else "", tuple(dict.fromkeys(alone))), path


def _obstacle(model: OnnxModel, users: Sequence[ReachedConv]) -> str:
    """Why no node can be taken out, in words that follow the kernel's name."""
    if len(users) != 1:
        return f"is the kernel of {len(users)} nodes"
    node = users[0].node
    if all(node is not own for own in model.nodes):
        return "is used inside of a function or a subgraph"
    if node.op != "Conv":
        return f"is the kernel of a {node.op}"
    if users[0].source and users[0].source.is_computed:
        return "is scaled or reshaped before the convolution"
    if any(stride != 1 for stride in node.integers("strides")):
        return f"skips pixels by its strides {list(node.integers('strides'))}"
    return "has a bias that is not stored" if node.given(2) and model.stored(node.given(2)) is None else ""


def _behind(model: OnnxModel, user: ReachedConv, load: Load) -> ImageTrace:
    """The walk from what such a convolution gives: as many pixels as the image has, and a channel for each filter."""
    filters = user.kernel.shape[0] if user.kernel else 0
    dims: list[int | None] = [n if (n := size(axis)) < OPEN else None for axis in user.axes or ()]
    dims[1] = filters
    return ImageTrace(model, Info(user.node.outputs[0], user.node.message, None, tuple(dims)), Place(1, filters), load)


def _rounds(node: Node) -> bool:
    """Whether a node makes integers of what it takes."""
    if node.op == "Cast" and not node.domain:
        kind = DTYPES.get(node.integer("to", 0), "")
        return kind not in BY_NAME or not BY_NAME[kind].floating
    return node.op in QUANTIZING and not node.domain

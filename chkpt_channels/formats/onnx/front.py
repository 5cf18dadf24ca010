"""Nodes in front of an ONNX graph that make the image's old channels of its new ones: readers of the image read these instead.

    stack     Concat(image, image, image)
    adapter   [Cast] [Transpose] Conv 1×1 [Transpose]
    gather    Gather(image, order)

The convolution holds A as its kernel [I_old, I_new, 1, 1] and t as its bias. It takes floating-point images with the channels on
axis 1: Transposes around it bring them there, and cancel with a Transpose that the graph has itself. A Cast in front of it makes
an image of integers float where the graph only moves its pixels before it casts them: what moves them moves floats as well.
Source: onnx/docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Any

from chkpt_channels.containers.protobuf import Message, WireEdits, bytes_field, number_field
from chkpt_channels.core.dtypes import BY_NAME, DType, rounded
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import ChannelMap, TensorEdit, Window
from chkpt_channels.formats.onnx import schema
from chkpt_channels.formats.onnx.dataflow.axes import holder
from chkpt_channels.formats.onnx.dataflow.operators import SHAPES
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from chkpt_channels.formats.onnx.model import Info, OnnxModel, type_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS = {name: number for number, name in schema.DTYPES.items()}
"""Element type → its number in onnx.proto."""
FLOATS = frozenset(("F16", "F32", "BF16"))
"""What onnxruntime's Conv takes: doubles are missing from it."""
MOVES = (
    *("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherND"),
    *("Split", "Concat", "Expand", "Tile", "SpaceToDepth", "DepthToSpace"),
)
"""What moves numbers of any type as they are."""
RANKS = range(3, 6)
"""Of images that a Conv takes: batch, channels, and one to three axes of pixels."""
_INT, _INTS = 2, 7
"""Kinds of attributes in onnx.proto."""


class Front(NamedTuple):
    """The new nodes as fields of the graph, and the value that readers of the image read instead. `tensors` are what the nodes
    hold, by name, in the type `kind`; `retyped` are values that become of that type."""

    nodes: bytes
    output: str
    kind: DType = BY_NAME["F32"]
    tensors: Mapping[str, TensorEdit] = {}
    retyped: Sequence[str] = ()


def stacked(image: str, axis: int, count: int, unused: Callable[[str], str]) -> Front:
    """A Concat of the image with itself; `unused` makes a name that is not in use."""
    output = unused(f"{image}_stacked")
    return Front(_node("Concat", [image] * count, output, "axis", axis), output)


def gathered(image: str, axis: int, order: Sequence[int], unused: Callable[[str], str]) -> Front:
    """A Gather of the image's channels in another order."""
    output, name = unused(f"{image}_gathered"), unused(f"{image}_order")
    kind = BY_NAME["I64"]
    tensors = {name: TensorEdit((len(order),), partial(_rounded, order, kind), "order")}
    return Front(_node("Gather", [image, name], output, "axis", axis), output, kind, tensors)


def adapter(model: OnnxModel, path: ImageTrace, channels: ChannelMap, unused: Callable[[str], str]) -> Front:
    """The 1×1 convolution that makes the old channels of an image without an `obstacle`."""
    image, axis, rank = path.image.name, path.channel, len(path.image.dims)
    kind, integers = _float_type(model, path.image)
    dtype, ones = BY_NAME[kind], (1,) * (rank - 2)
    shape = (len(channels.matrix), len(channels.matrix[0]), *ones)
    tensors = {unused(f"{image}_adapter.weight"): TensorEdit(shape, partial(_rounded, channels.matrix, dtype))}
    if channels.offset:
        bias = TensorEdit((len(channels.offset),), partial(_rounded, channels.offset, dtype), "bias")
        tensors[unused(f"{image}_adapter.bias")] = bias
    order = [k for k in range(rank) if k != axis]
    order.insert(1, axis)
    back = [order.index(k) for k in range(rank)]
    steps: list[tuple[str, str, str, int | Sequence[int]]] = []
    steps += [("Cast", "float", "to", NUMBERS[kind])] if integers else []
    steps += [("Transpose", "channels_first", "perm", order)] if axis != 1 else []
    steps += [("Conv", "adapted", "kernel_shape", ones)]
    steps += [("Transpose", "adapted_channels_last", "perm", back)] if axis != 1 else []
    nodes, value = b"", image
    for op, name, attribute, numbers in steps:
        output = unused(f"{image}_{name}")
        nodes += _node(op, [value, *tensors] if op == "Conv" else [value], output, attribute, numbers)
        value = output
    return Front(nodes, value, dtype, tensors, integers[1:])


def obstacle(model: OnnxModel, path: ImageTrace) -> str:
    """Why no 1×1 convolution can be put in front of an image, "" where it can."""
    image = path.image
    axes = path.values[image.name].axes or ()
    if (axis := holder(axes, path.channel)) is None or len(axes[axis]) > 1:
        return f"{image.name} has no axis for its channels alone"
    if len(image.dims) not in RANKS:
        return f"{image.name} has {len(image.dims)} axes, and a convolution takes 3 to 5"
    if image.name in model.outputs:
        return f"{image.name} is an output too"
    if not _float_type(model, image)[0]:
        return f"{image.name} is {element_type(image.message) or 'of no type'}, and computed with before it is cast to float"
    return ""


def _float_type(model: OnnxModel, image: Info) -> tuple[str, list[str]]:
    """The floating-point type in which the graph computes with an image, and the values that are integers until then, the image
    first. The type is "" where it computes with integers, or in several types."""
    if (own := element_type(image.message)) in FLOATS:
        return own, []
    integers, kinds = [image.name], set[str]()
    for node in model.computed.nodes:
        if not any(name in integers for name in node.inputs) or (node.op in SHAPES and not node.domain):
            continue
        data = node.inputs if node.op == "Concat" else node.inputs[:1]
        if node.domain or node.op not in (*MOVES, "Cast") or not all(name in integers for name in data):
            return "", []
        if node.op == "Cast":
            kinds.add(schema.DTYPES.get(node.integer("to", 0), ""))
        else:
            integers += filter(None, node.outputs)
    outputs = model.outputs.union(*(sub.outputs for subs in model.computed.subgraphs.values() for sub in subs))
    is_float = len(kinds) == 1 and kinds <= FLOATS and outputs.isdisjoint(integers)
    return (kinds.pop(), integers) if is_float else ("", [])


def element_type(info: Message) -> str:
    """The element type of a declared value, "" where none is declared."""
    tensor = type_of(info)
    return schema.DTYPES.get(tensor.number(schema.TYPE_ELEMENT), "") if tensor else ""


def declared(name: str, dtype: DType, shape: Sequence[int]) -> bytes:
    """What declares a value, as the graph's inputs and value_infos are."""
    dims = b"".join(bytes_field(schema.SHAPE_DIMS, number_field(schema.DIM_VALUE, n)) for n in shape)
    tensor = number_field(schema.TYPE_ELEMENT, NUMBERS[dtype.name]) + bytes_field(schema.TENSOR_TYPE_SHAPE, dims)
    return bytes_field(schema.INFO_NAME, name.encode()) + bytes_field(schema.INFO_TYPE, bytes_field(schema.TYPE_TENSOR, tensor))


def declare_types(wire: WireEdits, model: OnnxModel, front: Front) -> None:
    """Declare the new type of the values that have one."""
    for info in (info for name in front.retyped for info in model.infos(name)):
        tensor = type_of(info.message)
        if tensor:
            wire.replace_last(tensor, schema.TYPE_ELEMENT, number_field(schema.TYPE_ELEMENT, NUMBERS[front.kind.name]))


def take_out(wire: WireEdits, model: OnnxModel, output: str, tensors: Sequence[str], stale: Set[str]) -> None:
    """Let the node that gives `output` pass its first input on, and leave out what stores these tensors, and what declares these
    values."""
    message, graph = model.producers[output].message, model.graph
    for field in message.fields[schema.NODE_OP]:
        wire.replace(message, field, bytes_field(schema.NODE_OP, b"Identity"))
    wire.replace_all(message, (*message.fields[schema.NODE_INPUTS][1:], *message.fields.get(schema.NODE_ATTRIBUTES, ())))
    named = (
        (schema.GRAPH_INITIALIZERS, schema.TENSOR_NAME),
        (schema.GRAPH_INPUTS, schema.INFO_NAME),
        (schema.GRAPH_VALUE_INFOS, schema.INFO_NAME),
        (schema.GRAPH_NODES, schema.NODE_OUTPUTS),
    )
    for number, name in named:  # before IR version 4 an initializer is an input too; the node is a Constant
        left_out = {*tensors, *(stale if number == schema.GRAPH_VALUE_INFOS else ())}
        wire.replace_all(graph, (f for f in graph.fields.get(number, ()) if graph.message(f).text(name) in left_out))


def regrow(wire: WireEdits, paths: Sequence[ImageTrace], windows: Mapping[str, Window]) -> Iterator[str]:
    """Let the nodes of kernels that grow state their new windows. The values in front of them, whose sizes may be others then."""
    for kernel, reached in ((name, users[0]) for path in paths for name, users in path.stems.items()):
        message, window = reached.node.message, windows[kernel]
        named = ((field, message.message(field).text(schema.ATTRIBUTE_NAME)) for field in message.fields[schema.NODE_ATTRIBUTES])
        wire.replace_all(message, (field for field, name in named if name in (*window.settings, "auto_pad")))
        for name, numbers in window.settings.items():
            wire.add(message, _attribute(name, numbers))
        yield from (maker.node.outputs[0] for maker in (reached.source.makers if reached.source else ()))
    yield from (name for path in paths for name, flow in path.values.items() if not flow.mixed)


def _rounded(numbers: Sequence[Any], dtype: DType) -> NDArray[Any]:
    import numpy as np

    return rounded(np.array(numbers, dtype=np.float64), dtype)


def _node(op: str, inputs: Sequence[str], output: str, attribute: str, value: int | Sequence[int]) -> bytes:
    """A node with one attribute, named as what it makes, as a field of its graph."""
    texts = [*((schema.NODE_INPUTS, name) for name in inputs), (schema.NODE_OUTPUTS, output), (schema.NODE_NAME, output)]
    fields = [bytes_field(number, text.encode()) for number, text in (*texts, (schema.NODE_OP, op))]
    return bytes_field(schema.GRAPH_NODES, b"".join((*fields, _attribute(attribute, value))))


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    """An attribute as a field of its node."""
    number, kind = (schema.ATTRIBUTE_I, _INT) if isinstance(value, int) else (schema.ATTRIBUTE_INTS, _INTS)
    numbers = b"".join(number_field(number, each) for each in ([value] if isinstance(value, int) else value))
    text = bytes_field(schema.ATTRIBUTE_NAME, name.encode())
    return bytes_field(schema.NODE_ATTRIBUTES, text + numbers + number_field(schema.ATTRIBUTE_TYPE, kind))

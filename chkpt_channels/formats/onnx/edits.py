"""Edits of an ONNX graph as whole fields of the wire format: kernels and constants, declared shapes, one node for `stack`.

Whole fields, tag to end: an edit of values alone mends lengths wrongly where varints are not minimal or fields repeat, in 564 of
1,500 random models; of whole fields in none. A stale shape is noticed late: of a graph.input without value_info the checker and
strict inference pass, and onnxruntime fails at run; a value_info of the kernel fails in the checker; a kernel in graph.input is
refused by onnxruntime. So every declaration of a changed value is edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod

from chkpt_channels.containers.protobuf import WireEdits, bytes_field, deferred_field, number_field, varint
from chkpt_channels.core.dtypes import DType
from chkpt_channels.core.tensors import Edits, TensorEdit
from chkpt_channels.formats.onnx import external_data, front, metadata, schema
from chkpt_channels.formats.onnx.dataflow.axes import counted, holder
from chkpt_channels.formats.onnx.dataflow.operators import CONVOLUTIONS
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from chkpt_channels.formats.onnx.model import OnnxModel, Weight, is_packed
from chkpt_channels.formats.onnx.nodes import Node
from chkpt_channels.formats.onnx.quantization import output_scale
from chkpt_channels.storage.splice import Splice

IN_FRONT = ("stack", "adapter", "gather")
"""Methods that put nodes in front: nothing behind them changes."""
HOLD_WEIGHTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "FusedConv"), (1, 2)),
    **dict.fromkeys(("ConvInteger", "MatMul"), (1,)),
    "QLinearConv": (3, 4, 8),
}
"""Which inputs are the kernel, its scale and the bias."""
TAKE_A_BIAS = ("Conv", "ConvTranspose", "Gemm", "FusedConv")


class OnnxEdits:
    """The Edits of a graph, as splices."""

    def __init__(self, model: OnnxModel, paths: Sequence[ImageTrace], edits: Edits) -> None:
        paths = [path for path in paths if edits.folded or not edits.inputs or path.image.name in edits.inputs]
        self._model, self._paths, self._edits, self._location = model, paths, edits, model.location
        self._wire = WireEdits()
        self._done: set[str] = set()
        self._stale: set[str] = set()
        self._inputs: dict[tuple[Node, int], str] = {}
        stems = [r for path in paths for r in path.reached if r.layout]
        reached = [stem.node for stem in stems]
        self._stems, self._made = {id(conv) for conv in reached}, {conv.outputs[0] for conv in reached}
        makers = [maker.node for stem in stems if stem.source for maker in stem.source.makers]
        held = [conv.inputs[i] for conv in reached for i in HOLD_WEIGHTS[conv.op] if i < len(conv.inputs)]
        scaling = [reader for conv in reached if conv.op == "ConvInteger" for reader in output_scale(model, conv)[1]]
        self._helpers = {id(node) for node in (*makers, *map(model.producers.get, held), *scaling) if node}
        self._by_name = {(id(c.node), n) for path in paths for c in path.operations for n, _ in c.operation.tensors}
        self._by_name |= {(id(c.reader), c.weight.name) for path in paths for c in path.counts}

    def splices(self) -> list[Splice]:
        """All splices."""
        edits = self._edits
        for path in self._paths if not edits.windows else ():
            self._declare(path)
            if edits.method in IN_FRONT:
                self._put_in_front(path)
        if edits.folded:
            self._stale = {*front.regrow(self._wire, self._paths, edits.windows)} if edits.windows else set()
            front.take_out(self._wire, self._model, edits.folded, edits.removed, self._stale)
            self._done |= {*edits.removed}
        for name, edit in edits.tensors.items():
            self._edit_weight(name, edit)
        for name, edit in edits.biases.items():
            self._add_bias(name, edit)
        for (node, index), name in self._inputs.items():
            field = node.message.fields[schema.NODE_INPUTS][index]
            self._wire.replace(node.message, field, bytes_field(schema.NODE_INPUTS, name.encode()))
        metadata.edit(self._wire, self._model.root, edits.numbers)
        external_data.rename(self._wire, self._model, edits.companions, self._done)
        return self._wire.splices()

    def _declare(self, path: ImageTrace) -> None:
        """Declare the new channels of the input, and of every value up to where its channels are no longer the image's own."""
        method = self._edits.method
        for name, flow in path.values.items():
            is_image = name == path.image.name
            axis = holder(flow.axes or (), path.channel)
            is_kept = (method in IN_FRONT and not is_image) or (method == "broadcast" and flow.wide)
            if flow.axes is None or axis is None or is_kept:
                continue
            self._set_dims(name, {axis: counted(flow.axes[axis], path.channel, self._edits.channels)})

    def _set_dims(self, name: str, sizes: Mapping[int, int]) -> None:
        """Declare new sizes of a value's axes, where it is declared with numbers."""
        for info in self._model.infos(name):
            dims = info.shape.messages(schema.SHAPE_DIMS) if info.shape and info.name not in self._stale else []
            for axis, channels in sizes.items():
                if axis < len(dims) and info.dims[axis] not in (None, channels):
                    self._wire.replace_last(dims[axis], schema.DIM_VALUE, number_field(schema.DIM_VALUE, channels))

    def _put_in_front(self, path: ImageTrace) -> None:
        """Insert nodes before the first one; every reader of the image reads what they make."""
        image, graph = path.image, self._model.graph
        if image.name in self._edits.orders:
            made = front.gathered(image.name, *self._edits.orders[image.name], self._unused_name)
        elif channels := self._edits.adapter:
            made = front.adapter(self._model, path, channels, self._unused_name)
        else:
            count = path.count or next((reached.channels for reached in path.reached if reached.channels), 0)
            if not count:
                what = "its number of channels is not declared, so it cannot be stacked"
                raise self._location.at(image.name).unsupported(what, hint="--from, with their number")
            made = front.stacked(image.name, path.channel, count, self._unused_name)
        for name, edit in made.tensors.items():
            self._append(name, made.kind, edit)
        front.declare_types(self._wire, self._model, made)
        self._wire.add(graph, made.nodes, at=graph.fields[schema.GRAPH_NODES][0].start)
        self._inputs |= dict.fromkeys(self._model.consumers[image.name], made.output)

    def _unused_name(self, name: str) -> str:
        used = {*self._model.weights, *self._model.producers, *self._model.declared, *self._done}
        while name in used:
            name += "_"
        self._done.add(name)
        return name

    def _edit_weight(self, name: str, edit: TensorEdit) -> None:
        """Give a stored tensor new elements. Readers for which they are wrong get a copy of the old ones: the TorchScript
        exporter merges equal initializers, directly or through Identity (one stem bias had 9 readers)."""
        weight, readers = self._model.weights[name], self._readers(name)
        judged = [(reader, self._changes_with(*reader, name)) for reader in readers]
        changed, others = ([reader for reader, changes in judged if changes is side] for side in (True, False))
        if others:
            self._copy_for(weight, others)
        self._rewrite(weight, edit)
        for known in self._same_as(name):
            self._redeclare(known, dict(enumerate(edit.shape)))
        self._declare_made(name)
        for node, i in changed:
            is_kernel = i == CONVOLUTIONS.get(node.op)  # its bias may change too
            if is_kernel and node.integer("group", 1) > 1 and (group := node.attribute("group")):
                self._wire.replace_last(group, schema.ATTRIBUTE_I, number_field(schema.ATTRIBUTE_I, 1))

    def _same_as(self, name: str) -> list[str]:
        """A stored tensor, and what Identity nodes make of it."""
        names = [name]
        for known in names:
            readers = self._model.consumers.get(known, ())
            same = (node for node, i in readers if node.op == "Identity" and not node.domain and (node, i) not in self._inputs)
            names += [node.outputs[0] for node in same if node.outputs[0] not in names]
        return names

    def _declare_made(self, name: str) -> None:
        """Declare the new channels of what nodes make of a kernel before the convolution."""
        users = [reached for path in self._paths for reached in path.stems.get(name, ())]
        ways = [user.source.held(user.layout.channel_axis, user.width) for user in users if user.source and user.layout]
        for maker, axis, each in dict.fromkeys(chain(*ways)):
            self._redeclare(maker.node.outputs[0], {axis: each * self._edits.channels})

    def _redeclare(self, value: str, sizes: Mapping[int, int]) -> None:
        """The same for a value that the graph must not give out."""
        if value in self._model.outputs:
            raise self._location.at(value).unsupported("changes shape, and is an output of the graph too")
        self._set_dims(value, sizes)

    def _readers(self, name: str) -> list[tuple[Node, int]]:
        """The readers of a stored tensor, through Identity too; a node that is taken out is none."""
        readers = [reader for known in self._same_as(name) for reader in self._model.consumers.get(known, ())]
        folded = self._edits.folded  # an output that a node leaves out is called "" too
        others = [(node, i) for node, i in readers if not folded or folded not in node.outputs]
        return [(node, i) for node, i in others if node.op != "Identity" or node.domain]

    def _changes_with(self, node: Node, index: int, name: str) -> bool:
        """Whether a reader of an edited tensor takes the new elements: a first conv, an operation with constants per channel, a
        shape that counts the channels, or what follows a first conv and takes its bias."""
        if id(node) in self._stems:
            return index in HOLD_WEIGHTS[node.op]
        if id(node) in self._helpers or (id(node), name) in self._by_name:
            return True
        return node.op in ("BatchNormalization", "Add") and not self._made.isdisjoint(node.inputs)

    def _rewrite(self, weight: Weight, edit: TensorEdit) -> None:
        message, wire = weight.message, self._wire
        size = (prod(edit.shape) * weight.dtype.bits + 7) // 8
        fields = message.fields
        if tuple(edit.shape) != weight.shape:
            dims = _dims(edit.shape, packed=is_packed(message, schema.TENSOR_DIMS))
            wire.replace_all(message, fields.get(schema.TENSOR_DIMS, ()), dims)
        number = schema.TENSOR_RAW
        payload = [f for n in schema.TENSOR_ELEMENTS for f in fields.get(n, ())]
        # typed integers are varints, whose length depends on the values: raw bytes are as valid
        if payload and payload[0].number in (schema.TENSOR_FLOATS, schema.TENSOR_DOUBLES):
            number = payload[0].number
        new = deferred_field(number, size, lambda: edit.tobytes())
        wire.replace_all(message, payload, new)
        if weight.is_external:
            wire.replace_all(message, (*fields.get(schema.TENSOR_EXTERNAL, ()), *fields.get(schema.TENSOR_LOCATION, ())))
        if not payload:  # it was external: the new elements are inline, and the data file is copied unchanged
            wire.add(message, new)
        self._done.add(weight.name)

    def _copy_for(self, weight: Weight, readers: Sequence[tuple[Node, int]]) -> None:
        name = self._unused_name(f"{weight.name}_before")
        self._append(name, weight.dtype, TensorEdit(weight.shape, lambda: self._model.load(weight)))
        for reader in readers:
            self._inputs[reader] = name

    def _append(self, name: str, dtype: DType, edit: TensorEdit) -> None:
        size = prod(edit.shape) * dtype.bits // 8
        head = _dims(edit.shape, packed=False) + number_field(schema.TENSOR_TYPE, front.NUMBERS[dtype.name])
        head += bytes_field(schema.TENSOR_NAME, name.encode()) + varint(schema.TENSOR_RAW << 3 | 2) + varint(size)
        self._wire.add(self._model.graph, deferred_field(schema.GRAPH_INITIALIZERS, size, lambda: edit.tobytes(), head))
        if self._model.root.number(schema.MODEL_IR_VERSION) < 4:  # each initializer is an input too: onnx/docs/IR.md
            self._wire.add(self._model.graph, bytes_field(schema.GRAPH_INPUTS, front.declared(name, dtype, edit.shape)))

    def _add_bias(self, kernel: str, edit: TensorEdit) -> None:
        """Give a convolution a bias: folded exports (Conv, then Clip) have neither one nor a BatchNormalization."""
        from chkpt_channels.core.dtypes import rounded

        users = [reached for path in self._paths for reached in path.stems.get(kernel, ())]
        kinds = {r.source.kind if r.source else self._model.weights[kernel].dtype for r in users}
        dtype = kinds.pop() if len(kinds) == 1 else None
        if not dtype or not dtype.floating or any(r.node.op not in TAKE_A_BIAS or len(r.node.inputs) != 2 for r in users):
            raise self._location.at(kernel).unsupported("has no bias to take the constant of its preprocessing")
        name = self._unused_name(f"{kernel}_bias")
        self._append(name, dtype, TensorEdit(edit.shape, lambda: rounded(edit.values(), dtype)))
        for user in (r.node for r in users):
            last = user.message.fields[schema.NODE_INPUTS][-1]
            self._wire.add(user.message, bytes_field(schema.NODE_INPUTS, name.encode()), at=last.stop)


def _dims(shape: Sequence[int], *, packed: bool) -> bytes:
    if packed:
        return bytes_field(schema.TENSOR_DIMS, b"".join(varint(n) for n in shape))
    return b"".join(number_field(schema.TENSOR_DIMS, n) for n in shape)


def bias_target(model: OnnxModel, node: Node) -> tuple[str, int] | None:
    """The stored bias of a convolution or product (+1), or the mean of the BatchNormalization that follows it (-1)."""
    index, follower = model.only_reader(node.outputs[0])
    if node.given(2) and node.op in TAKE_A_BIAS:
        target = model.stored(node.inputs[2])
    elif follower and follower.op == "BatchNormalization" and node.op in ("Conv", "ConvTranspose"):
        mean = model.stored(follower.inputs[3])
        return (mean.name, -1) if mean else None
    elif follower and follower.op == "Add" and node.op == "MatMul":
        added = model.stored(follower.inputs[1 - index])
        target = added if added and len(added.shape) == 1 else None
    else:
        target = None
    return (target.name, 1) if target else None

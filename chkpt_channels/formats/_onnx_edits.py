"""Edits of an ONNX graph as whole fields of the wire format: kernels and constants, declared shapes, one node for `stack`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from ..containers.wire import Later, WireEdits, bytes_field, later_field, number_field, varint
from ..errors import Place
from ..model import Edits, TensorEdit
from ..splice import Splice
from ._onnx_model import (
    ATTRIBUTE_I,
    DIM_VALUE,
    DTYPES,
    GRAPH_INITIALIZERS,
    GRAPH_NODES,
    NODE_ATTRIBUTES,
    NODE_INPUTS,
    SHAPE_DIMS,
    TENSOR_DIMS,
    TENSOR_DOUBLES,
    TENSOR_EXTERNAL,
    TENSOR_FLOATS,
    TENSOR_LOCATION,
    TENSOR_NAME,
    TENSOR_RAW,
    TENSOR_TYPE,
    TENSOR_TYPED,
    Info,
    Node,
    OnnxModel,
    Weight,
    is_packed,
)
from ._onnx_path import ImagePath, kernel_of

if TYPE_CHECKING:
    pass

_NUMBERS = {name: number for number, name in DTYPES.items()}
ATTRIBUTE_TYPE_INT = 2
STRING_STRING = {"key": 1, "value": 2}


class OnnxEdits:
    """Turns neutral Edits into splices."""

    def __init__(self, model: OnnxModel, paths: Sequence[ImagePath], edits: Edits, place: Place) -> None:
        self._model, self._paths, self._edits, self._place = model, paths, edits, place
        self._wire = WireEdits()
        self._done: set[str] = set()
        self._inputs: dict[tuple[int, int], str] = {}

    def splices(self) -> list[Splice]:
        """All splices."""
        edits = self._edits
        for path in self._paths:
            self._declare(path)
            if edits.method == "stack":
                self._stack(path)
        for name, edit in edits.tensors.items():
            self._weight(name, edit)
        for name, edit in edits.biases.items():
            self._add_bias(name, edit)
        self._rename_inputs()
        self._rename_locations()
        return self._wire.splices()

    def _declare(self, path: ImagePath) -> None:
        """The channels of the input, and of every declared value up to where they are no longer the image's own."""
        method = self._edits.method
        for name, flow in path.values.items():
            is_image = name == path.image.name
            if flow.axes is None or path.channel not in flow.axes or (method == "stack" and not is_image):
                continue
            if method == "broadcast" and flow.wide:
                continue
            for info in self._model.infos.get(name, ()):
                self._set_dim(info, flow.axes.index(path.channel), self._edits.channels)

    def _set_dim(self, info: Info, axis: int, channels: int) -> None:
        if info.shape is None or axis >= len(info.dims) or info.dims[axis] is None:
            return
        dim = info.shape.messages(SHAPE_DIMS)[axis]
        field = dim.last(DIM_VALUE)
        if field is not None and info.dims[axis] != channels:
            self._wire.replace(dim, field, number_field(DIM_VALUE, channels))

    def _stack(self, path: ImagePath) -> None:
        """One Concat in front of the first node makes the old channels; everyone who read the image reads that."""
        name, stacked = path.image.name, self._fresh(path.image.name + "_stacked")
        count = path.image.dims[path.channel] or self._old_channels(path)
        axis = bytes_field(1, b"axis") + number_field(ATTRIBUTE_I, path.channel) + number_field(20, ATTRIBUTE_TYPE_INT)
        node = b"".join(bytes_field(NODE_INPUTS, name.encode()) for _ in range(count))
        node += bytes_field(2, stacked.encode()) + bytes_field(3, stacked.encode()) + bytes_field(4, b"Concat")
        node += bytes_field(NODE_ATTRIBUTES, axis)
        first = self._model.graph.fields[GRAPH_NODES][0]
        self._wire.add(self._model.graph, bytes_field(GRAPH_NODES, node), at=first.start)
        for consumer, index in self._model.consumers[name]:
            self._inputs[self._model.nodes.index(consumer), index] = stacked

    def _old_channels(self, path: ImagePath) -> int:
        kernels = [kernel_of(path.model, r.node, r.kernel) for r in path.reached if r.direct]
        found = [k.shape[1] for k in kernels if k is not None]
        if not found:
            raise self._place.inside(path.image.name).unsupported(
                "its number of channels is not declared, so it cannot be stacked"
            )
        return found[0]

    def _fresh(self, name: str) -> str:
        taken = {*self._model.weights, *self._model.producers, *self._model.infos, *self._done}
        while name in taken:
            name += "_"
        self._done.add(name)
        return name

    def _weight(self, name: str, edit: TensorEdit) -> None:
        """New elements for a stored tensor: in place where all its readers want them, as a tensor of their own otherwise."""
        weight = self._model.weights[name]
        readers = self._readers(name)
        wanting = [(node, i) for node, i in readers if self._wants(node, i, name)]
        if len(wanting) == len(readers) and name not in self._model.captured:
            self._rewrite(weight, edit)
            for info in self._model.infos.get(name, ()):
                for axis, channels in enumerate(edit.shape):
                    self._set_dim(info, axis, channels)
        else:
            self._add_weight(weight, edit, wanting)
        for node, _ in wanting:
            self._ungroup(node)

    def _readers(self, name: str) -> list[tuple[Node, int]]:
        """Everyone who reads a stored tensor, through Identity too."""
        found: list[tuple[Node, int]] = []
        for node, index in self._model.consumers.get(name, ()):
            if node.op == "Identity" and not node.domain:
                found += self._readers(node.outputs[0])
            else:
                found.append((node, index))
        return found

    def _wants(self, node: Node, index: int, name: str) -> bool:
        """Whether a reader is one of the first convs or stands right behind one."""
        reached = [r.node for path in self._paths for r in path.reached if r.direct]
        fronts = [c.node for path in self._paths for c in path.fronts if any(n == name for n, _ in c.front.tensors)]
        makers = [self._model.producers.get(one) for r in reached for one in r.inputs]  # DequantizeLinear of kernel and bias
        if any(node is wanting for wanting in (*reached, *fronts, *makers)):
            return True
        return node.op == "BatchNormalization" and any(node.inputs[0] in r.outputs for r in reached)

    def _rewrite(self, weight: Weight, edit: TensorEdit) -> None:
        message, wire = weight.message, self._wire
        size = (prod(edit.shape) * weight.dtype.bits + 7) // 8
        fields = message.fields
        if tuple(edit.shape) != weight.shape:
            dims = _dims(edit.shape, packed=is_packed(message, TENSOR_DIMS))
            for i, field in enumerate(fields.get(TENSOR_DIMS, ())):
                wire.replace(message, field, dims if i == 0 else b"")
        number = TENSOR_RAW
        held = [f for n in (TENSOR_RAW, *TENSOR_TYPED) for f in fields.get(n, ())]
        if held and held[0].number in (TENSOR_FLOATS, TENSOR_DOUBLES):
            number = held[0].number
        new = later_field(number, size, lambda: edit.values().tobytes())
        for i, field in enumerate(held):
            wire.replace(message, field, new if i == 0 else b"")
        if not held:
            for field in (*fields.get(TENSOR_EXTERNAL, ()), *fields.get(TENSOR_LOCATION, ())):
                wire.replace(message, field, b"")
            wire.add(message, new)
        self._done.add(weight.name)

    def _add_weight(self, weight: Weight, edit: TensorEdit, wanting: Sequence[tuple[Node, int]]) -> None:
        name = self._fresh(f"{weight.name}_{self._edits.channels}ch")
        self._append(name, weight, edit)
        for node, index in wanting:
            self._inputs[self._model.nodes.index(node), index] = name

    def _append(self, name: str, like: Weight, edit: TensorEdit) -> None:
        size = prod(edit.shape) * like.dtype.bits // 8
        head = _dims(edit.shape, packed=False) + number_field(TENSOR_TYPE, _NUMBERS[like.dtype.name])
        head += bytes_field(TENSOR_NAME, name.encode()) + varint(TENSOR_RAW << 3 | 2) + varint(size)
        tag = varint(GRAPH_INITIALIZERS << 3 | 2) + varint(len(head) + size)
        self._wire.add(self._model.graph, Later(tag + head, size, lambda: edit.values().tobytes()))

    def _add_bias(self, kernel: str, edit: TensorEdit) -> None:
        """A convolution without a bias gets one."""
        weight = self._model.weights[kernel]
        name = self._fresh(f"{kernel}_bias")
        from ..dtypes import rounded

        self._append(name, weight, TensorEdit(edit.shape, lambda: rounded(edit.values(), weight.dtype)))
        for path in self._paths:
            for reached in path.reached:
                found = kernel_of(self._model, reached.node, reached.kernel)
                if found is not None and found.name == kernel:
                    last = reached.node.message.fields[NODE_INPUTS][-1]
                    self._wire.add(reached.node.message, bytes_field(NODE_INPUTS, name.encode()), at=last.stop)

    def _ungroup(self, node: Node) -> None:
        group = node.attribute("group")
        if group is not None and node.integer("group", 1) > 1:
            field = group.last(ATTRIBUTE_I)
            if field is not None:
                self._wire.replace(group, field, number_field(ATTRIBUTE_I, 1))

    def _rename_inputs(self) -> None:
        for (at, index), name in self._inputs.items():
            message = self._model.nodes[at].message
            self._wire.replace(message, message.fields[NODE_INPUTS][index], bytes_field(NODE_INPUTS, name.encode()))

    def _rename_locations(self) -> None:
        """External data that goes with the model under another name."""
        for weight in self._model.weights.values():
            if not weight.is_external or weight.name in self._done:
                continue
            for entry in weight.message.messages(TENSOR_EXTERNAL):
                new = self._edits.companions.get(entry.text(2)) if entry.text(1) == "location" else None
                field = entry.last(STRING_STRING["value"])
                if new and field and new != entry.text(2):
                    self._wire.replace(entry, field, bytes_field(STRING_STRING["value"], new.encode()))


def _dims(shape: Sequence[int], *, packed: bool) -> bytes:
    if packed:
        return bytes_field(TENSOR_DIMS, b"".join(varint(n) for n in shape))
    return b"".join(number_field(TENSOR_DIMS, n) for n in shape)


def locations(model: OnnxModel) -> Mapping[str, None]:
    """The files of external data that the model names, in file order."""
    return dict.fromkeys(w.external().get("location", "") for w in model.weights.values() if w.is_external)

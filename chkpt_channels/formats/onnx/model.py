"""An ONNX model as spans: graph, nodes, initializers and declared shapes, each with the message that encodes it.

Source: onnx/onnx.proto (field numbers) of onnx 1.23. Fields are read on demand; payloads never are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from chkpt_channels.containers.protobuf import BYTES, Message, Reader
from chkpt_channels.core.dtypes import BY_NAME, DType
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.onnx import schema
from chkpt_channels.formats.onnx.expansion import Expansion, functions
from chkpt_channels.formats.onnx.nodes import Node, nodes_of
from chkpt_channels.storage.source import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_IDENTITIES = 8
"""In a row before a weight; a circle of them ends here."""


class Weight(NamedTuple):
    """A tensor that the file stores: an initializer, or the value of a Constant node (`node`)."""

    name: str
    message: Message
    dtype: DType
    shape: tuple[int, ...]
    node: Node | None = None

    @property
    def size(self) -> int:
        """Its elements in bytes."""
        return (prod(self.shape) * self.dtype.bits + 7) // 8

    @property
    def is_external(self) -> bool:
        """Whether the elements are in another file."""
        return self.message.number(schema.TENSOR_LOCATION) == 1

    def external(self) -> dict[str, str]:
        """The external location's entries."""
        entries = self.message.messages(schema.TENSOR_EXTERNAL)
        return {entry.text(schema.ENTRY_KEY): entry.text(schema.ENTRY_VALUE) for entry in entries}


class Info(NamedTuple):
    """A declared value: graph input, output or value_info. `dims` are numbers, None for symbols and unknowns, which some
    exporters encode as -1."""

    name: str
    message: Message
    shape: Message | None
    dims: tuple[int | None, ...]


class OnnxModel:
    """The index of one file. Raises DamagedError for what is not a model, UnsupportedError for what is not read."""

    load: Callable[[Weight], NDArray[Any]]
    """A stored tensor as an array: given by the open file."""

    def __init__(self, source: Source) -> None:
        self.source, self.location = source, source.location
        self.root = Message(Reader(source), 0, source.size)
        graphs = self.root.fields.get(schema.MODEL_GRAPH, ())
        if len(graphs) != 1:
            raise self.location.damaged(f"holds {len(graphs)} graphs instead of one", at=0)
        if self.root.number(schema.MODEL_IR_VERSION) >= 3 and not self.root.fields.get(schema.MODEL_OPSETS):
            raise self.location.damaged("has no opset_import: it is cut off after its graph", at=source.size)
        self.graph = self.root.message(graphs[0])
        self.nodes = nodes_of(self.graph)
        self.steps = 0  # of the walks from all images
        initializers = self.graph.messages(schema.GRAPH_INITIALIZERS)
        stored = [_weight(message, message.text(schema.TENSOR_NAME), self.location) for message in initializers]
        self.weights = {weight.name: weight for weight in stored if weight} | self._constants(self.nodes)
        self._check_single_producers()

    def _check_single_producers(self) -> None:
        """A name stands for one value: readers refuse a second one, or take either. Source: onnx/docs/IR.md, "Graphs"."""
        inputs = ((message.text(schema.INFO_NAME), message) for message in self.graph.messages(schema.GRAPH_INPUTS))
        stored = self._check_once(self._initializers(), "is stored twice")
        given = stored | self._check_once(inputs, "is declared as an input twice")
        made = [(name, node.message) for node in self.nodes for name in node.outputs if name]
        self._check_once(made, "is produced by two nodes", given)

    def _check_once(self, named: Iterable[tuple[str, Message]], twice: str, given: Set[str] = frozenset()) -> set[str]:
        """The names. Raises DamagedError, with `twice` where one occurs again, and where one is `given` already."""
        names = set[str]()
        for name, message in named:
            if name in names or name in given:
                what = twice if name in names else "is produced by a node, and is an input or initializer too"
                raise self.location.at(name).damaged(what, at=message.start)
            names.add(name)
        return names

    def _initializers(self) -> Iterator[tuple[str, Message]]:
        """All that are stored, by name: texts and sparse ones too, which are no weights here."""
        for message in self.graph.messages(schema.GRAPH_INITIALIZERS):
            yield message.text(schema.TENSOR_NAME), message
        for sparse in self.graph.messages(schema.GRAPH_SPARSE):
            if values := sparse.only(schema.SPARSE_VALUES):
                yield values.text(schema.TENSOR_NAME), sparse

    def _constants(self, nodes: Iterable[Node]) -> dict[str, Weight]:
        values = ((node, node.attribute("value")) for node in nodes if node.op == "Constant" and not node.domain)
        tensors = ((node, tensor) for node, value in values if value and (tensor := value.only(schema.ATTRIBUTE_T)))
        weights = (_weight(tensor, node.outputs[0], self.location, node) for node, tensor in tensors)
        return {weight.name: weight for weight in weights if weight}

    @cached_property
    def inputs(self) -> list[Info]:
        """The graph's inputs without those that are initializers: before IR version 4 each of these is an input too. An exporter
        may leak constants as inputs, and then the image need not be the first."""
        stored = {name for name, weight in self.weights.items() if weight.node is None}
        return [info for m in self.graph.messages(schema.GRAPH_INPUTS) if (info := _info(m)).name not in stored]

    @cached_property
    def input_names(self) -> set[str]:
        """The names of the inputs."""
        return {info.name for info in self.inputs}

    def infos(self, name: str) -> list[Info]:
        """Every declaration of a value's shape."""
        return [_info(message) for message in self.declared.get(name, ())]

    @cached_property
    def declared(self) -> dict[str, list[Message]]:
        """What declares the shapes of values, by name: inputs, outputs, value_infos, those of subgraphs too."""
        declared: dict[str, list[Message]] = defaultdict(list)
        for graph, names in [
            (self.graph, dict[str, str]()),
            *((sub.graph, sub.names) for subs in self.written.subgraphs.values() for sub in subs),
        ]:
            for number in (schema.GRAPH_INPUTS, schema.GRAPH_OUTPUTS, schema.GRAPH_VALUE_INFOS):
                for message in graph.messages(number):
                    name = message.text(schema.INFO_NAME)
                    declared[names.get(name, name)].append(message)
        return declared

    @cached_property
    def outputs(self) -> set[str]:
        """The names of the graph's outputs."""
        return {message.text(schema.INFO_NAME) for message in self.graph.messages(schema.GRAPH_OUTPUTS)}

    @cached_property
    def written(self) -> Expansion:
        """The nodes that are in the graph and in its subgraphs, of which edits are made."""
        return Expansion(self.nodes, {})

    @cached_property
    def computed(self) -> Expansion:
        """The same with the model's own functions replaced by their nodes: what is computed, for the walk."""
        own = functions(self.root)
        return Expansion(self.nodes, own) if own else self.written

    @cached_property
    def function_constants(self) -> dict[str, Weight]:
        """The constants inside of functions."""
        return self._constants(node for node in self.computed.nodes if node.call)

    @cached_property
    def inner(self) -> dict[str, str]:
        """The tensors that subgraphs store: name → label of the node that has the subgraph."""
        inner_names: dict[str, str] = {}
        for node, subs in self.written.subgraphs.items():
            for sub in subs:
                constants = (name for inner in sub.nodes if inner.op == "Constant" for name in inner.outputs)
                inner_names |= dict.fromkeys((*sub.stored, *constants), node.label)
        return inner_names

    @cached_property
    def consumers(self) -> dict[str, list[tuple[Node, int]]]:
        """The readers of each value: (node, index of its input)."""
        consumers: dict[str, list[tuple[Node, int]]] = defaultdict(list)
        for node in self.written.nodes:
            for i, name in enumerate(node.inputs):
                consumers[name].append((node, i))
        return consumers

    def only_reader(self, name: str) -> tuple[int, Node | None]:
        """(index of its input, the only node that reads a value); None where there are more or it is an output of the graph."""
        readers = self.consumers.get(name, ())
        return (readers[0][1], readers[0][0]) if len(readers) == 1 and name not in self.outputs else (0, None)

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that produces each value; a value that a function gives out, the node inside."""
        return {name: node for node in self.computed.nodes for name in node.outputs if name}

    @cached_property
    def opset(self) -> int:
        """The version of the standard operators."""
        versions = [m.number(2) for m in self.root.messages(schema.MODEL_OPSETS) if m.text(1) in ("", "ai.onnx")]
        return max(versions, default=1)

    def step(self, node: Node, count: int) -> None:
        """Count what a walk does at a node. Raises DamagedError where all walks together do too much."""
        self.steps += count
        if self.steps > LIMITS.graph_steps:
            self.location.at(node.label).check_limit("steps from its images to it", self.steps, LIMITS.graph_steps)

    def stored(self, name: str) -> Weight | None:
        """The weight of a name, through Identity nodes: the TorchScript exporter merges equal weights that way. None for an input
        that is left out."""
        for _ in range(MOST_IDENTITIES if name else 0):
            if weight := self.weights.get(name) or self.function_constants.get(name):
                return weight
            node = self.producers.get(name)
            if node is None or node.op != "Identity" or node.domain:
                return None
            name = node.given(0)
        return None


def _weight(message: Message, name: str, location: Location, node: Node | None = None) -> Weight | None:
    kind = message.number(schema.TENSOR_TYPE)
    shape = tuple(message.numbers(schema.TENSOR_DIMS))
    if kind == schema.STRING:
        return None
    if kind not in schema.DTYPES:
        raise location.at(name).unsupported(f"has the unknown element type {kind}")
    if message.fields.get(schema.TENSOR_SEGMENT):
        raise location.at(name).unsupported("is one segment of a tensor, which no runtime reads")
    if (place := message.number(schema.TENSOR_LOCATION)) not in (0, 1) or len(message.fields.get(schema.TENSOR_LOCATION, ())) > 1:
        raise location.at(name).damaged(f"its data_location is {place}, or occurs twice", at=message.start)
    if any(n < 0 for n in shape) or prod(shape) >= 1 << 60:
        what = f"dims {list(shape)} must be non-negative and of fewer than 2^60 elements"
        raise location.at(name).damaged(what, at=message.start)
    return Weight(name, message, BY_NAME[schema.DTYPES[kind]], shape, node)


def type_of(info: Message) -> Message | None:
    """The element type and shape that a declared value has as a tensor."""
    kind = info.only(schema.INFO_TYPE)
    return kind.only(schema.TYPE_TENSOR) if kind else None


def _info(message: Message) -> Info:
    tensor = type_of(message)
    shape = tensor.only(schema.TENSOR_TYPE_SHAPE) if tensor else None
    sizes = [dim.number(schema.DIM_VALUE, -1) for dim in shape.messages(schema.SHAPE_DIMS)] if shape else []
    dims = tuple(size if size >= 0 else None for size in sizes)
    return Info(message.text(schema.INFO_NAME), message, shape, dims)


def is_packed(message: Message, number: int) -> bool:
    """Whether a repeated number field is encoded packed."""
    fields = message.fields.get(number, ())
    return len(fields) == 1 and fields[0].wire == BYTES

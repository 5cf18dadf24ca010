"""An ONNX model as spans: graph, nodes, initializers and declared shapes, each with the message that spells it.

Source: onnx/onnx.proto (field numbers) of onnx 1.23. Only what is asked for is read; payloads never are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from math import prod
from typing import NamedTuple

from ..containers.wire import BYTES, Message, Reader
from ..dtypes import BY_NAME, DType
from ..errors import Place
from ..source import Source

MODEL_OPSETS, MODEL_GRAPH, MODEL_FUNCTIONS = 8, 7, 25
GRAPH_NODES, GRAPH_INITIALIZERS, GRAPH_INPUTS, GRAPH_OUTPUTS, GRAPH_VALUE_INFOS, GRAPH_SPARSE = 1, 5, 11, 12, 13, 15
NODE_INPUTS, NODE_OUTPUTS, NODE_NAME, NODE_OP, NODE_ATTRIBUTES, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_F, ATTRIBUTE_I, ATTRIBUTE_S, ATTRIBUTE_T, ATTRIBUTE_G = 1, 2, 3, 4, 5, 6
ATTRIBUTE_FLOATS, ATTRIBUTE_INTS, ATTRIBUTE_GRAPHS = 7, 8, 11
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 2, 8, 9, 13, 14
TENSOR_TYPED = TENSOR_FLOATS, TENSOR_INT32S, TENSOR_INT64S, TENSOR_DOUBLES, TENSOR_UINT64S = 4, 5, 7, 10, 11
INFO_NAME, INFO_TYPE, TYPE_TENSOR, TENSOR_TYPE_SHAPE, SHAPE_DIMS, DIM_VALUE, DIM_PARAM = 1, 2, 1, 2, 1, 1, 2

DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32", 13: "U64",
    14: "C64", 15: "C128", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ", 21: "U4", 22: "I4",
    23: "F4", 24: "F8_E8M0",
}  # fmt: skip
STRING = 8
HAVE_SUBGRAPHS = frozenset(("If", "Loop", "Scan", "SequenceMap"))


class Node(NamedTuple):
    """One operation. Inputs may be empty names (left out)."""

    message: Message
    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name, or the first output where there is none."""
        return self.name or (self.outputs[0] if self.outputs else self.op)

    def attribute(self, name: str) -> Message | None:
        """An attribute by name."""
        return next((a for a in self.message.messages(NODE_ATTRIBUTES) if a.text(ATTRIBUTE_NAME) == name), None)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self.attribute(name)
        return found.number(ATTRIBUTE_I, default) if found else default

    def integers(self, name: str) -> list[int]:
        """A list of integers, empty where it is missing."""
        found = self.attribute(name)
        return found.numbers(ATTRIBUTE_INTS) if found else []

    def real(self, name: str, default: float) -> float:
        """A float attribute."""
        found = self.attribute(name)
        return (found.floats(ATTRIBUTE_F) or [default])[0] if found else default

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.attribute(name)
        return found.text(ATTRIBUTE_S) if found else default

    def subgraphs(self) -> Iterator[Message]:
        """The graphs in its attributes."""
        if not self.domain and self.op not in HAVE_SUBGRAPHS:
            return
        for attribute in self.message.messages(NODE_ATTRIBUTES):
            yield from attribute.messages(ATTRIBUTE_G)
            yield from attribute.messages(ATTRIBUTE_GRAPHS)


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
        """Whether the elements stand in another file."""
        return self.message.number(TENSOR_LOCATION) == 1

    def external(self) -> dict[str, str]:
        """The external location's entries."""
        pairs = [(e.text(1), e.text(2)) for e in self.message.messages(TENSOR_EXTERNAL)]
        return dict(pairs)


class Info(NamedTuple):
    """A declared value: graph input, output or value_info. `dims` are numbers, None for symbols and unknowns."""

    name: str
    message: Message
    shape: Message | None
    dims: tuple[int | None, ...]


class Subgraph(NamedTuple):
    """A body or branch. Its nodes have unique names for what stands in it; `names` spells them, and those of the graphs around
    it: the name as it is written → the unique one. `outputs` are unique names too, `stored` those of its own initializers."""

    graph: Message
    nodes: list[Node]
    names: dict[str, str]
    outputs: tuple[str, ...]
    stored: tuple[str, ...]


class OnnxModel:
    """The index of one file. Raises DamagedError for what is no model, UnsupportedError for what is not read."""

    def __init__(self, source: Source) -> None:
        self.source, self.place = source, source.place
        self.root = Message(Reader(source), 0, source.size)
        graphs = self.root.fields.get(MODEL_GRAPH, ())
        if len(graphs) != 1:
            raise self.place.damaged(f"holds {len(graphs)} graphs instead of one", at=0)
        self.graph = self.root.message(graphs[0])
        self.nodes = [_node(message) for message in self.graph.messages(GRAPH_NODES)]
        self.weights: dict[str, Weight] = {}
        for message in self.graph.messages(GRAPH_INITIALIZERS):
            self._add(_weight(message, message.text(TENSOR_NAME), self.place))
        for node in self.nodes:
            value = node.attribute("value") if node.op == "Constant" and not node.domain else None
            if value and value.last(ATTRIBUTE_T):
                self._add(_weight(value.messages(ATTRIBUTE_T)[-1], node.outputs[0], self.place, node))

    def _add(self, weight: Weight | None) -> None:
        if weight is None:
            return
        if weight.name in self.weights:
            raise self.place.inside(weight.name).damaged("is stored twice", at=weight.message.start)
        self.weights[weight.name] = weight

    @cached_property
    def inputs(self) -> list[Info]:
        """The graph's inputs, those that initializers give a value left out."""
        stored = {name for name, weight in self.weights.items() if weight.node is None}
        return [info for m in self.graph.messages(GRAPH_INPUTS) if (info := _info(m)).name not in stored]

    @cached_property
    def infos(self) -> dict[str, list[Info]]:
        """Every declaration of a value's shape, by name: inputs, outputs, value_infos, those of subgraphs too."""
        found: dict[str, list[Info]] = defaultdict(list)
        for graph, names in [
            (self.graph, dict[str, str]()),
            *((sub.graph, sub.names) for subs in self.subgraphs.values() for sub in subs),
        ]:
            for number in (GRAPH_INPUTS, GRAPH_OUTPUTS, GRAPH_VALUE_INFOS):
                for message in graph.messages(number):
                    info = _info(message)
                    found[names.get(info.name, info.name)].append(info)
        return found

    @cached_property
    def outputs(self) -> set[str]:
        """The names of the graph's outputs."""
        return {message.text(INFO_NAME) for message in self.graph.messages(GRAPH_OUTPUTS)}

    @cached_property
    def subgraphs(self) -> dict[Node, list[Subgraph]]:
        """The bodies and branches of each node that has any (If, Loop, Scan), in subgraphs too."""
        found: dict[Node, list[Subgraph]] = {}
        todo = [(node, dict[str, str]()) for node in self.nodes]
        while todo:
            node, scope = todo.pop()
            for i, graph in enumerate(node.subgraphs()):
                sub = _subgraph(graph, f"{node.label}@{node.message.start}[{i}]", scope)
                found.setdefault(node, []).append(sub)
                todo += [(inner, sub.names) for inner in sub.nodes]
        return found

    @cached_property
    def inner(self) -> dict[str, str]:
        """What subgraphs store themselves: its name → the node that has the subgraph."""
        found: dict[str, str] = {}
        for node, subs in self.subgraphs.items():
            for sub in subs:
                constants = (name for inner in sub.nodes if inner.op == "Constant" for name in inner.outputs)
                found |= dict.fromkeys((*sub.stored, *constants), node.label)
        return found

    @cached_property
    def everywhere(self) -> list[Node]:
        """All nodes, those of subgraphs in front of the node that has them: each behind what it reads."""
        found: list[Node] = []
        todo = self.nodes[::-1]
        opened: set[Node] = set()
        while todo:
            node = todo.pop()
            if node in opened or node not in self.subgraphs:
                found.append(node)
                continue
            opened.add(node)
            todo += [node, *(inner for sub in self.subgraphs[node] for inner in sub.nodes[::-1])]
        return found

    @cached_property
    def consumers(self) -> dict[str, list[tuple[Node, int]]]:
        """Who reads a value: (node, which of its inputs)."""
        found: dict[str, list[tuple[Node, int]]] = defaultdict(list)
        for node in self.everywhere:
            for i, name in enumerate(node.inputs):
                found[name].append((node, i))
        return found

    @cached_property
    def producers(self) -> dict[str, Node]:
        """Who makes a value."""
        return {name: node for node in self.everywhere for name in node.outputs}

    @cached_property
    def functions(self) -> set[tuple[str, str]]:
        """(domain, name) of the model's own functions."""
        return {(m.text(10), m.text(1)) for m in self.root.messages(MODEL_FUNCTIONS)}

    @cached_property
    def opset(self) -> int:
        """The version of the standard operators."""
        versions = [m.number(2) for m in self.root.messages(MODEL_OPSETS) if m.text(1) in ("", "ai.onnx")]
        return max(versions, default=1)

    def stored(self, name: str) -> Weight | None:
        """The weight behind a name, looked for through Identity nodes (exporters merge equal weights that way)."""
        for _ in range(8):
            if name in self.weights:
                return self.weights[name]
            node = self.producers.get(name)
            if node is None or node.op != "Identity" or node.domain:
                return None
            name = node.inputs[0]
        return None


def _node(message: Message) -> Node:
    return Node(
        message,
        message.text(NODE_OP),
        message.text(NODE_DOMAIN).removeprefix("ai.onnx")
        if message.text(NODE_DOMAIN) == "ai.onnx"
        else message.text(NODE_DOMAIN),
        message.text(NODE_NAME),
        tuple(message.texts(NODE_INPUTS)),
        tuple(message.texts(NODE_OUTPUTS)),
    )


def _subgraph(graph: Message, label: str, scope: dict[str, str]) -> Subgraph:
    nodes = [_node(message) for message in graph.messages(GRAPH_NODES)]
    stored = [message.text(TENSOR_NAME) for message in graph.messages(GRAPH_INITIALIZERS)]
    own = {name for node in nodes for name in node.outputs if name}.union(
        stored, (message.text(INFO_NAME) for message in graph.messages(GRAPH_INPUTS))
    )
    names = scope | {name: f"{label}/{name}" for name in own}
    nodes = [
        node._replace(
            inputs=tuple(names.get(name, name) for name in node.inputs),
            outputs=tuple(names.get(name, name) for name in node.outputs),
        )
        for node in nodes
    ]
    outputs = [message.text(INFO_NAME) for message in graph.messages(GRAPH_OUTPUTS)]
    return Subgraph(graph, nodes, names, tuple(names.get(name, name) for name in outputs), tuple(names[n] for n in stored))


def _weight(message: Message, name: str, place: Place, node: Node | None = None) -> Weight | None:
    kind = message.number(TENSOR_TYPE)
    shape = tuple(message.numbers(TENSOR_DIMS))
    if kind == STRING:
        return None
    if kind not in DTYPES:
        raise place.inside(name).unsupported(f"has the unknown element type {kind}")
    if any(n < 0 for n in shape) or prod(shape) >= 1 << 60:
        raise place.inside(name).damaged(f"its shape {list(shape)} is no shape", at=message.start)
    return Weight(name, message, BY_NAME[DTYPES[kind]], shape, node)


def _info(message: Message) -> Info:
    shape: Message | None = None
    for kind in message.messages(INFO_TYPE)[-1:]:
        for tensor in kind.messages(TYPE_TENSOR)[-1:]:
            for found in tensor.messages(TENSOR_TYPE_SHAPE)[-1:]:
                shape = found
    dims = tuple(dim.number(DIM_VALUE) if dim.last(DIM_VALUE) else None for dim in shape.messages(SHAPE_DIMS)) if shape else ()
    return Info(message.text(INFO_NAME), message, shape, dims)


def is_packed(message: Message, number: int) -> bool:
    """Whether a repeated number field is spelled packed."""
    fields = message.fields.get(number, ())
    return len(fields) == 1 and fields[0].wire == BYTES

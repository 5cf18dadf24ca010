"""The operations of an ONNX graph, and of the graphs inside them.

Source: onnx/onnx.proto and docs/IR.md of onnx 1.23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chkpt_channels.containers.protobuf import FIXED32, Message
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.onnx import schema

LEAST_INPUTS = {
    **dict.fromkeys(("Identity", "Cast", "Transpose", "Shape", "Size", "Reshape"), 1),
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "MatMul", "MatMulInteger", "Gemm"), 2),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Mod", "QuantizeLinear", "DequantizeLinear"), 2),
    **{"BatchNormalization": 5, "QLinearConv": 8, "QLinearMatMul": 8},
}
"""Operations whose inputs this package indexes, and how many are required. Source: onnx/docs/Operators.md."""
HAVE_SUBGRAPHS = frozenset(("If", "Loop", "Scan", "SequenceMap"))


class Node(NamedTuple):
    """One operation. Inputs may be empty names (left out). In the body of one of the model's own functions, `call` is the node of
    the graph that calls it, and `given_attributes` are those that the body may refer to."""

    message: Message
    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    call: Node | None = None
    given_attributes: tuple[tuple[str, Message], ...] = ()

    @property
    def label(self) -> str:
        """The name, or the first output where there is none."""
        return self.name or (self.outputs[0] if self.outputs else self.op)

    def renamed(self, names: Mapping[str, str]) -> Node:
        """The node in a graph that has these names for its values."""
        inputs, outputs = (tuple(names.get(name, name) for name in each) for each in (self.inputs, self.outputs))
        return self._replace(inputs=inputs, outputs=outputs)

    def given(self, index: int) -> str:
        """An input, empty where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def attribute(self, name: str) -> Message | None:
        """An attribute by name; None too where it refers to one of its function that is not given."""
        own = next((a for a in self.message.messages(schema.NODE_ATTRIBUTES) if a.text(schema.ATTRIBUTE_NAME) == name), None)
        if own and self.call and (reference := own.text(schema.ATTRIBUTE_REFERENCE)):
            return next((a for other, a in self.given_attributes if other == reference), None)
        return own

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self.attribute(name)
        return attribute.number(schema.ATTRIBUTE_I) if attribute else default  # some writers leave zeros out

    def integers(self, name: str) -> list[int]:
        """A list of integers, empty where it is missing."""
        attribute = self.attribute(name)
        return attribute.numbers(schema.ATTRIBUTE_INTS) if attribute else []

    def real(self, name: str, default: float) -> float:
        """A float attribute."""
        attribute = self.attribute(name)
        return (attribute.floats(schema.ATTRIBUTE_F, FIXED32) or [0.0])[-1] if attribute else default

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self.attribute(name)
        return attribute.text(schema.ATTRIBUTE_S) if attribute else default

    def subgraphs(self) -> Iterator[Message]:
        """The graphs in its attributes."""
        if not self.domain and self.op not in HAVE_SUBGRAPHS:
            return
        for attribute in self.message.messages(schema.NODE_ATTRIBUTES):
            if graph := attribute.only(schema.ATTRIBUTE_G):
                yield graph
            yield from attribute.messages(schema.ATTRIBUTE_GRAPHS)


class Subgraph(NamedTuple):
    """A body or branch. Inner graphs may reuse names, so its nodes have unique ones: `names` maps those in the file, and those of
    the graphs around it, to the unique ones. `outputs` are unique names too, `stored` those of its own initializers."""

    graph: Message
    nodes: list[Node]
    names: dict[str, str]
    outputs: tuple[str, ...]
    stored: tuple[str, ...]


def nodes_of(graph: Message, number: int = schema.GRAPH_NODES) -> list[Node]:
    """The nodes of a graph, or those in another field of a message, in the file's order; but for those without outputs."""
    return [node for node in map(_node, graph.messages(number)) if node.outputs]


def _node(message: Message) -> Node:
    op, domain = message.text(schema.NODE_OP), message.text(schema.NODE_DOMAIN)
    inputs, outputs = tuple(message.texts(schema.NODE_INPUTS)), tuple(message.texts(schema.NODE_OUTPUTS))
    node = Node(message, op, "" if domain == "ai.onnx" else domain, message.text(schema.NODE_NAME), inputs, outputs)
    if not node.domain and len(inputs) < LEAST_INPUTS.get(op, 0):
        what = f"has {len(inputs)} inputs; {op} takes at least {LEAST_INPUTS[op]}"
        raise message.reader.location.at(node.label).damaged(what, at=message.start)
    return node


def subgraph(graph: Message, label: str, scope: dict[str, str]) -> Subgraph:
    """The nodes of a node's own graph, and the names that it takes from the graphs around it, renamed by `scope`."""
    nodes = nodes_of(graph)
    stored = [message.text(schema.TENSOR_NAME) for message in graph.messages(schema.GRAPH_INITIALIZERS)]
    inputs = [message.text(schema.INFO_NAME) for message in graph.messages(schema.GRAPH_INPUTS)]
    own = {*stored, *inputs, *(name for node in nodes for name in node.outputs if name)}
    names = scope | {name: f"{label}/{name}" for name in own}
    outputs = (message.text(schema.INFO_NAME) for message in graph.messages(schema.GRAPH_OUTPUTS))
    given = tuple(names.get(name, name) for name in outputs)
    return Subgraph(graph, [node.renamed(names) for node in nodes], names, given, tuple(names[name] for name in stored))

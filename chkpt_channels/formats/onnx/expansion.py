"""All nodes of a model in the order in which they are computed: those of subgraphs and of the model's own functions too.

A file may keep its nodes in any order: onnxruntime sorts them, and its FP16 conversion appends the Cast of the input as the last
one. A function is one node for its readers; its body has names of its own, and takes its attributes from the node that calls it.
Source: onnx/onnx.proto (FunctionProto), docs/IR.md of onnx 1.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from heapq import heappop, heappush

from chkpt_channels.containers.protobuf import Message
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.onnx import schema
from chkpt_channels.formats.onnx.nodes import Node, Subgraph, nodes_of, subgraph


class Function(NamedTuple):
    """A model's own operation: its formal inputs and outputs, its nodes, and the attributes that a call need not give."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    defaults: tuple[tuple[str, Message], ...]

    def names(self, call: Node) -> dict[str, str]:
        """The names inside the function → unique ones: those of the call, or with its output in front."""
        own = {name: f"{_unique(call)}/{name}" for node in self.nodes for name in node.outputs if name}
        given = {name: call.given(i) for i, name in enumerate(self.inputs)}
        return own | given | {name: call.outputs[i] for i, name in enumerate(self.outputs) if i < len(call.outputs)}

    def called(self, call: Node, names: Mapping[str, str]) -> list[Node]:
        """Its nodes as those of the graph that calls it."""
        attributes = dict(self.defaults)
        for message in call.message.messages(schema.NODE_ATTRIBUTES):
            name = message.text(schema.ATTRIBUTE_NAME)
            attributes[name] = call.attribute(name) or message
        given, around = tuple(attributes.items()), call.call or call
        return [
            node.renamed(names)._replace(name=f"{_unique(call)}/{node.label}", call=around, given_attributes=given)
            for node in self.nodes
        ]


def _unique(call: Node) -> str:
    """A name that no other node has: names of nodes need not be unique, those of values are."""
    return next(filter(None, call.outputs), call.label)


def functions(root: Message) -> dict[tuple[str, str], Function]:
    """A model's own functions by domain and name."""
    return {
        (message.text(schema.FUNCTION_DOMAIN), message.text(schema.FUNCTION_NAME)): Function(
            tuple(message.texts(schema.FUNCTION_INPUTS)),
            tuple(message.texts(schema.FUNCTION_OUTPUTS)),
            tuple(nodes_of(message, schema.FUNCTION_NODES)),
            tuple((each.text(schema.ATTRIBUTE_NAME), each) for each in message.messages(schema.FUNCTION_ATTRIBUTES)),
        )
        for message in root.messages(schema.MODEL_FUNCTIONS)
    }


class Expansion:
    """The nodes of a graph, each after what it reads and after those of its subgraphs; calls of `functions` are replaced by the
    nodes of these. `subgraphs` are the bodies and branches of each node that has any (If, Loop, Scan)."""

    def __init__(self, nodes: Sequence[Node], functions: Mapping[tuple[str, str], Function]) -> None:
        self._functions, self.subgraphs = functions, dict[Node, list[Subgraph]]()
        self._count = 0
        self.nodes = _in_order(list(self._flat(nodes, {}, 0)), self.subgraphs)

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Which nodes read each value, or give it out from a subgraph, by their places in `nodes`."""
        readers: dict[str, list[int]] = {}
        for at, node in enumerate(self.nodes):
            inner = (name for sub in self.subgraphs.get(node, ()) for name in sub.outputs)
            for name in dict.fromkeys((*node.inputs, *inner)):
                readers.setdefault(name, []).append(at)
        return readers

    def behind(self, name: str, knows: Callable[[str], bool]) -> Iterator[Node]:
        """The nodes that read a value, and those that read what these make of it, where `knows` says so of that then: each after
        those before it. Others cost nothing."""
        todo, last = [*self.readers.get(name, ())], -1
        while todo:
            if (at := heappop(todo)) == last:
                continue
            last = at
            yield self.nodes[at]
            for made in filter(knows, self.nodes[at].outputs):
                for reader in self.readers.get(made, ()):
                    heappush(todo, reader)

    def _flat(self, nodes: Sequence[Node], scope: dict[str, str], depth: int) -> Iterator[Node]:
        for node in nodes:
            location = node.message.reader.location.at(node.label)
            self._count += node.call is not None
            location.check_limit("nodes in calls of its functions", self._count, LIMITS.function_nodes)
            location.check_limit("functions inside one another", depth, LIMITS.protobuf_depth)
            if function := self._functions.get((node.domain, node.op)):
                names = function.names(node)
                yield from self._flat(function.called(node, names), names, depth + 1)
                continue
            for i, graph in enumerate(node.subgraphs()):
                sub = subgraph(graph, f"{node.label}@{node.message.start}[{i}]", scope)
                inner = [each._replace(call=node.call, given_attributes=node.given_attributes) for each in sub.nodes]
                self.subgraphs.setdefault(node, []).append(sub._replace(nodes=inner))
                yield from self._flat(inner, sub.names, depth)
            yield node


def _in_order(nodes: Sequence[Node], subgraphs: Mapping[Node, Sequence[Subgraph]]) -> list[Node]:
    """The same nodes, each after those that it needs and otherwise as they are. Nodes of a circle, which no runtime takes, are in
    some order."""
    producers = {name: node for node in nodes for name in node.outputs if name}
    ordered: dict[Node, None] = {}
    opened: set[Node] = set()
    for first in nodes:
        todo = [first]
        while todo:
            node = todo.pop()
            if node in ordered:
                continue
            inner = [each for sub in subgraphs.get(node, ()) for each in sub.nodes]
            needed = [producers[name] for name in node.inputs if name in producers]
            left = [] if node in opened else [each for each in (*needed, *inner) if each not in ordered]
            if left:
                opened.add(node)
                todo += [node, *reversed(left)]
            else:
                ordered[node] = None
    return list(ordered)

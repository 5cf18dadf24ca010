"""Nodes that stand in a function, in a branch, or in no order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.graphs.draw import Graph


def wrapped(g: Graph, draw: Callable[[], None], *, share: float = 0.12) -> None:
    """What `draw` adds to the path, in a function or a branch at times."""
    begin, value, channels = len(g.nodes), g.value, g.channels
    draw()
    if g.value == value:
        return
    if g.maybe(share):
        in_function(g, begin)
    elif g.maybe(share / 2) and g.channels == channels:
        in_branch(g, begin, value)


def taken(nodes: list[onnx.NodeProto]) -> list[str]:
    """What nodes take that none of them makes, in order."""
    made = {name for node in nodes for name in node.output}
    return list(dict.fromkeys(name for node in nodes for name in node.input if name and name not in made))


def in_function(g: Graph, begin: int) -> None:
    """A function of the model; its constants are in it, or are given to it."""
    nodes, inside, names = g.nodes[begin:], [], taken(g.nodes[begin:])
    if g.maybe(0.5):
        g.features.add("function with constants")
        for name in [name for name in names if name in g.weights]:
            inside.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(g.weights[name])))
            names.remove(name)
    else:
        g.features.add("function of weights")
    g.functions.append(helper.make_function("local", g.name("F"), names, [g.value], [*inside, *nodes], g.opsets()))
    del g.nodes[begin:]
    g.value = g.node(g.functions[-1].name, names, domain="local")


def in_branch(g: Graph, begin: int, value: str) -> None:
    """An If whose condition is stored, or an input; the other branch leaves the image as it is."""
    g.features.add("If")
    nodes = g.nodes[begin:]
    del g.nodes[begin:]
    made, plain = (helper.make_tensor_value_info(name, g.kind, None) for name in (g.value, g.name("v")))
    other = [helper.make_node("Identity", [value], [plain.name])]
    condition = "chosen" if g.maybe(0.5) else g.stored(np.array(True), plain=True)
    if condition == "chosen" and "chosen" not in g.others:
        g.others["chosen"] = np.array(True)
        g.inputs.append(helper.make_tensor_value_info("chosen", TensorProto.BOOL, []))
    then_branch, else_branch = helper.make_graph(nodes, "then", [], [made]), helper.make_graph(other, "else", [], [plain])
    g.value = g.node("If", [condition], then_branch=then_branch, else_branch=else_branch)


def unsorted(g: Graph) -> None:
    """As tools leave a graph that append what they add."""
    if g.maybe(0.15):
        g.features.add("unsorted")
        if g.maybe(0.5):
            g.chance.shuffle(g.nodes)
        else:
            k = g.chance.randrange(len(g.nodes))
            g.nodes.append(g.nodes.pop(k))

"""Nodes: attributes, inputs that are left out, and the names inside subgraphs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from chkpt_channels import DamagedError
from chkpt_channels.containers.protobuf import Message, Reader
from chkpt_channels.formats.onnx.nodes import Node, nodes_of, subgraph
from tests.support.onnx_models import Open, Weights, branch, model, node, noise


def read(source: Open, *nodes: NodeProto) -> list[Node]:
    """The nodes of a graph."""
    data = helper.make_graph(nodes, "graph", [], []).SerializeToString()
    return nodes_of(Message(Reader(source(data)), 0, len(data)))


def test_nodes_are_read_in_order_with_what_names_them(source: Open):
    first, second = read(
        source,
        node("Conv", ["image", "kernel"], ["x"], name="first"),
        node("Dropout", ["x", "", "training"], ["y", "mask"], domain="com.example"),
    )
    assert first[1:6] == ("Conv", "", "first", ("image", "kernel"), ("x",))
    assert second[1:6] == ("Dropout", "com.example", "", ("x", "", "training"), ("y", "mask"))


def test_the_standard_domain_has_two_spellings(source: Open):
    assert [found.domain for found in read(source, node("Relu", ["a"], ["b"], domain="ai.onnx"))] == [""]


def test_a_node_that_gives_nothing_out_is_left_out(source: Open):
    assert [found.op for found in read(source, node("Relu", ["a"], []), node("Abs", ["a"], ["b"]))] == ["Abs"]


def test_a_node_without_a_name_is_called_after_its_output(source: Open):
    named, unnamed = read(source, node("Relu", ["a"], ["b"], name="first"), node("Relu", ["a"], ["c"]))
    assert (named.label, unnamed.label) == ("first", "c")


def test_inputs_that_are_left_out_are_empty(source: Open):
    (found,) = read(source, node("Resize", ["image", "", "scales"], ["out"]))
    assert [found.given(i) for i in range(5)] == ["image", "", "scales", "", ""]


def test_attributes_are_read_by_name(source: Open):
    (found,) = read(source, node("Op", ["a"], ["b"], integer=-3, integers=[1, -1], real=0.5, text="SAME_UPPER", integer2=7))
    assert found.integer("integer", 9) == -3
    assert found.integers("integers") == [1, -1]
    assert found.real("real", 9.0) == 0.5
    assert found.text("text", "NOTSET") == "SAME_UPPER"
    assert found.attribute("integer2") is not None
    assert found.attribute("integer3") is None


def test_attributes_that_are_missing_are_their_defaults(source: Open):
    (found,) = read(source, node("Op", ["a"], ["b"]))
    assert (found.integer("i", 9), found.integers("is"), found.real("f", 0.5), found.text("s", "NOTSET")) == (
        9,
        [],
        0.5,
        "NOTSET",
    )


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (node("Conv", ["image"], ["out"], name="stem"), "stem: has 1 inputs; Conv takes at least 2"),
        (node("BatchNormalization", ["x", "g", "b", "m"], ["out"]), "out: has 4 inputs; BatchNormalization takes at least 5"),
        (node("QLinearConv", ["x", "s", "z", "k", "s", "z", "s"], ["out"]), "out: has 7 inputs; QLinearConv takes at least 8"),
        (node("Reshape", [], ["out"]), "out: has 0 inputs; Reshape takes at least 1"),
    ],
    ids=["Conv", "BatchNormalization", "QLinearConv", "Reshape"],
)
def test_a_node_with_too_few_inputs_is_refused(made: NodeProto, message: str, source: Open):
    with pytest.raises(DamagedError, match=f"^a\\.bin: {message}, at byte 2$"):
        read(source, made)


def test_what_another_domain_takes_is_not_known(source: Open):
    assert len(read(source, node("Conv", ["image"], ["out"], domain="com.example"))) == 1


BODY = branch("body", [node("Relu", ["a"], ["b"])])


@pytest.mark.parametrize(
    ("op", "domain", "count"), [("If", "", 2), ("Loop", "", 2), ("Conv", "", 0), ("Conv", "com.example", 2), ("If", "x", 2)]
)
def test_graphs_are_looked_for_where_operators_have_them(op: str, domain: str, count: int, source: Open):
    (found,) = read(source, node(op, ["a", "b"], ["c"], domain=domain, then_branch=BODY, else_branch=BODY))
    assert len(list(found.subgraphs())) == count


def test_graphs_in_a_list_are_found_too(source: Open):
    (found,) = read(source, node("Op", ["a"], ["c"], domain="com.example", bodies=[BODY, BODY, BODY]))
    assert len(list(found.subgraphs())) == 3


def test_what_stands_in_a_subgraph_has_a_name_of_its_own(source: Open):
    weights: Weights = {"stored": noise(2)}
    given = helper.make_tensor_value_info("fed", TensorProto.FLOAT, None)
    graph = branch("g", [node("Add", ["outer", "fed"], ["x"]), node("Mul", ["x", "stored"], ["y"])], weights, inputs=[given])
    data = graph.SerializeToString()
    sub = subgraph(Message(Reader(source(data)), 0, len(data)), "loop@7[0]", {"outer": "if@3[1]/outer", "y": "if@3[1]/y"})
    assert [(found.inputs, found.outputs) for found in sub.nodes] == [
        (("if@3[1]/outer", "loop@7[0]/fed"), ("loop@7[0]/x",)),
        (("loop@7[0]/x", "loop@7[0]/stored"), ("loop@7[0]/y",)),
    ]
    assert sub.outputs == ("loop@7[0]/y",)
    assert sub.stored == ("loop@7[0]/stored",)
    assert sub.names["outer"] == "if@3[1]/outer"


def test_a_name_from_outside_is_left_as_it_is(source: Open):
    data = branch("g", [node("Relu", ["image"], ["y"])]).SerializeToString()
    sub = subgraph(Message(Reader(source(data)), 0, len(data)), "if@3[0]", {})
    assert [found.inputs for found in sub.nodes] == [("image",)]


def test_a_model_of_onnx_is_read_as_onnx_reads_it(source: Open):
    made = model(
        [node("Conv", ["image", "k"], ["x"], pads=[1, 1, 1, 1], group=3), node("Relu", ["x"], ["out"])], {"k": np.ones(3)}
    )
    found = read(source, *made.graph.node)
    assert [(n.op, list(n.inputs), list(n.outputs)) for n in found] == [
        (n.op_type, list(n.input), list(n.output)) for n in made.graph.node
    ]
    assert (found[0].integers("pads"), found[0].integer("group", 1)) == ([1, 1, 1, 1], 3)

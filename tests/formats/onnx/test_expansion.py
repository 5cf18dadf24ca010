"""Nodes in the order in which they are computed, and the model's own functions in their place."""

from __future__ import annotations

import onnx
import pytest
from onnx import FunctionProto, ModelProto, NodeProto, helper

from chkpt_channels import DamagedError
from chkpt_channels.core.limits import LIMITS
from tests.support.onnx_models import Open, branch, floats, model, node, noise, opened

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
KERNEL = {"kernel": noise(5, 3, 3, 3)}
CONV = node("Conv", ["x", "kernel"], ["out"])


def function(name: str, nodes: list[NodeProto], inputs: str = "a", outputs: str = "b", **more: object) -> FunctionProto:
    return helper.make_function("own", name, [*inputs], [*outputs], nodes, OPSETS, **more)


def with_functions(nodes: list[NodeProto], *functions: FunctionProto) -> ModelProto:
    made = model(nodes, KERNEL)
    made.functions.extend(functions)
    made.opset_import.append(OPSETS[1])
    return made


def test_nodes_that_stand_before_what_they_read_are_sorted(source: Open):
    nodes = [CONV, node("Relu", ["y"], ["x"]), node("Abs", ["image"], ["y"])]
    found = opened(source, model(nodes, KERNEL)).model
    assert [each.op for each in found.written.nodes] == ["Abs", "Relu", "Conv"]
    assert [each.op for each in found.nodes] == ["Conv", "Relu", "Abs"]


def test_nodes_in_order_stay_as_they_are(source: Open):
    nodes = [node("Abs", ["image"], ["y"]), node("Neg", ["image"], ["z"]), node("Add", ["y", "z"], ["x"]), CONV]
    assert [each.op for each in opened(source, model(nodes, KERNEL)).model.written.nodes] == ["Abs", "Neg", "Add", "Conv"]


def test_what_a_branch_reads_stands_before_it(source: Open):
    branches = {f"{name}_branch": branch(name, [node("Relu", ["y"], ["z"])]) for name in ("then", "else")}
    nodes = [CONV, node("If", ["chosen"], ["x"], **branches), node("Abs", ["image"], ["y"])]
    found = opened(source, model(nodes, KERNEL, inputs={"chosen": []})).model
    assert [each.op for each in found.written.nodes] == ["Abs", "Relu", "Relu", "If", "Conv"]


def test_a_circle_ends(source: Open):
    nodes = [node("Add", ["image", "z"], ["y"]), node("Relu", ["y"], ["z"])]
    assert {each.op for each in opened(source, model(nodes, outputs=["z"])).model.written.nodes} == {"Add", "Relu"}


def test_a_function_is_its_nodes_with_the_names_and_attributes_of_the_call(source: Open):
    scaled = node("LeakyRelu", ["inside"], ["b"])
    scaled.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    body = [node("Neg", ["a"], ["inside"]), scaled]
    calls = [
        node("leak", [image], [out], domain="own", slope=slope) for image, out, slope in (("image", "y", 0.5), ("y", "x", 0.25))
    ]
    found = opened(source, with_functions([*calls, CONV], function("leak", body, attributes=["slope"]))).model
    assert [(each.op, each.inputs, each.outputs) for each in found.computed.nodes] == [
        ("Neg", ("image",), ("y/inside",)),
        ("LeakyRelu", ("y/inside",), ("y",)),
        ("Neg", ("y",), ("x/inside",)),
        ("LeakyRelu", ("x/inside",), ("x",)),
        ("Conv", ("x", "kernel"), ("out",)),
    ]
    assert [each.real("alpha", 0) for each in found.computed.nodes if each.op == "LeakyRelu"] == [0.5, 0.25]
    assert [each.op for each in found.written.nodes] == ["leak", "leak", "Conv"]
    assert [each.call.op if each.call else None for each in found.computed.nodes] == ["leak"] * 4 + [None]


def test_an_attribute_that_is_not_given_has_the_value_of_its_function(source: Open):
    scaled = node("LeakyRelu", ["a"], ["b"])
    scaled.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    made = function("leak", [scaled], attribute_protos=[helper.make_attribute("slope", 0.125)])
    found = opened(source, with_functions([node("leak", ["image"], ["x"], domain="own"), CONV], made)).model
    assert found.computed.nodes[0].real("alpha", 0) == 0.125


def test_functions_in_functions_and_their_constants(source: Open):
    inner = function(
        "inner", [node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(floats(2))), node("Mul", ["a", "c"], ["b"])]
    )
    outer = function("outer", [node("inner", ["a"], ["b"], domain="own")])
    found = opened(source, with_functions([node("outer", ["image"], ["x"], domain="own"), CONV], inner, outer)).model
    assert [each.op for each in found.computed.nodes] == ["Constant", "Mul", "Conv"]
    (constant,) = found.computed.nodes[0].outputs
    assert found.stored(constant) is found.function_constants[constant]


def test_a_function_that_calls_itself_is_refused(source: Open):
    made = model([node("again", ["image"], ["x"], domain="own"), CONV], KERNEL)
    made.functions.append(function("again", [node("again", ["a"], ["b"], domain="own")]))
    checkpoint = opened(source, made)
    with pytest.raises(DamagedError, match=rf"functions inside one another; {LIMITS.protobuf_depth} are the most"):
        checkpoint.graph.first_convs()

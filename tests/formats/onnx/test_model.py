"""The index of a model: what onnx's own classes say of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from chkpt_channels import DamagedError, UnsupportedError
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.formats.onnx.model import OnnxModel, is_packed
from chkpt_channels.formats.onnx.schema import DTYPES, TENSOR_DIMS, TENSOR_FLOATS
from tests.support.onnx_models import Open, branch, floats, ints, model, newer_onnx, node, noise

CONV = node("Conv", ["image", "kernel"], ["out"])
KERNEL = {"kernel": noise(5, 3, 3, 3)}


def read(source: Open, made: ModelProto) -> OnnxModel:
    return OnnxModel(source(made.SerializeToString(), "a.onnx"))


def test_weights_are_the_initializers_in_order(source: Open):
    weights = {"b": noise(5), "kernel": noise(5, 3, 3, 3), "n": ints(1, 2), "h": noise(2).astype(np.float16), "s": np.float32(1)}
    found = read(source, model([CONV], weights)).weights
    assert [(w.name, w.dtype.name, w.shape, w.size) for w in found.values()] == [
        ("b", "F32", (5,), 20),
        ("kernel", "F32", (5, 3, 3, 3), 540),
        ("n", "I64", (2,), 16),
        ("h", "F16", (2,), 4),
        ("s", "F32", (), 4),
    ]
    assert not any(w.is_external or w.node for w in found.values())


def test_constant_nodes_store_weights_under_their_output(source: Open):
    nodes = [
        node("Constant", [], ["kernel"], value=numpy_helper.from_array(noise(5, 3, 3, 3), "its_own_name")),
        node("Constant", [], ["number"], value_float=1.0),
        CONV,
    ]
    found = read(source, model(nodes))
    assert [(w.name, w.shape, w.node) for w in found.weights.values()] == [("kernel", (5, 3, 3, 3), found.nodes[0])]


def test_texts_are_no_weights(source: Open):
    made = model([CONV], KERNEL)
    made.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [2], [b"cat", b"dog"]))
    assert set(read(source, made).weights) == {"kernel"}


@pytest.mark.parametrize(("bits", "count", "size"), [("INT4", 3, 2), ("UINT4", 4, 2), ("FLOAT8E4M3FN", 3, 3), ("BFLOAT16", 3, 6)])
def test_a_size_counts_bits(bits: str, count: int, size: int, source: Open):
    made = model([CONV], KERNEL)
    made.graph.initializer.append(helper.make_tensor("x", TensorProto.DataType.Value(bits), [count], [1] * count))
    assert read(source, made).weights["x"].size == size


@newer_onnx
def test_every_element_type_up_to_the_newest_known_one_is_known_but_texts():
    assert DTYPES.keys() == {*range(1, max(DTYPES) + 1)} - {TensorProto.STRING}
    bits = {number: BY_NAME[name].bits for number, name in DTYPES.items() if BY_NAME[name].bits >= 8}
    assert bits == {number: 8 * helper.tensor_dtype_to_np_dtype(number).itemsize for number in bits}


def test_inputs_are_those_that_no_initializer_fills(source: Open):
    made = model([CONV], KERNEL, ("n", 3, None, 8), inputs={"kernel": [5, 3, 3, 3], "more": [-1, 2]})
    assert [(info.name, info.dims) for info in read(source, made).inputs] == [
        ("image", (None, 3, None, 8)),
        ("more", (None, 2)),
    ]


def test_an_input_without_a_shape_has_no_dims(source: Open):
    made = model([CONV], KERNEL)
    made.graph.input[0].type.tensor_type.ClearField("shape")
    (info,) = read(source, made).inputs
    assert (info.shape, info.dims) == (None, ())


def test_declarations_are_found_by_name_in_subgraphs_too(source: Open):
    given = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2])
    branches = {"then_branch": branch("a", [node("Relu", ["x"], ["z"])], outputs=[given]), "else_branch": branch("b", [CONV])}
    nodes = [node("Relu", ["image"], ["x"]), node("If", ["chosen"], ["out"], name="choice", **branches)]
    found = read(source, model(nodes, inputs={"chosen": []}, inferred=True))
    assert [info.dims for info in found.infos("image")] == [(1, 3, 8, 8)]
    assert [info.dims for info in found.infos("x")] == [(1, 3, 8, 8)]
    inner = next(name for name in found.declared if name.endswith("/z"))
    assert inner.startswith("choice@")
    assert [info.dims for info in found.infos(inner)] == [(1, 2)]


def test_who_makes_and_who_reads_a_value(source: Open):
    nodes = [node("Relu", ["image"], ["x"]), node("Add", ["x", "x"], ["y"]), node("Mul", ["image", "y"], ["out"])]
    found = read(source, model(nodes))
    relu, add, mul = found.nodes
    assert found.producers == {"x": relu, "y": add, "out": mul}
    assert found.consumers["x"] == [(add, 0), (add, 1)]
    assert found.consumers["image"] == [(relu, 0), (mul, 0)]
    assert found.outputs == {"out"}


def nested() -> ModelProto:
    """A branch in a branch; the inner one stores a tensor and has a constant, and all take the image from outside."""
    constant = node("Constant", [], ["c"], value=numpy_helper.from_array(floats(1)))
    inner = branch("i", [constant, node("Add", ["image", "w"], ["p"]), node("Add", ["p", "c"], ["z"])], {"w": floats(1)})
    choice = node("If", ["chosen"], ["q"], name="inner", then_branch=inner, else_branch=inner)
    outer = branch("o", [node("Relu", ["image"], ["x"]), choice])
    plain = branch("p", [node("Relu", ["image"], ["q"])])
    nodes = [
        node("Abs", ["image"], ["before"]),
        node("If", ["chosen"], ["out"], name="outer", then_branch=outer, else_branch=plain),
    ]
    return model(nodes, inputs={"chosen": []})


def test_nodes_of_subgraphs_stand_in_front_of_the_node_that_has_them(source: Open):
    found = read(source, nested())
    ops = [n.op for n in found.written.nodes]
    assert ops == ["Abs", "Relu", "Relu", *["Constant", "Add", "Add"] * 2, "If", "If"]
    places = {name: at for at, n in enumerate(found.written.nodes) for name in n.outputs}
    assert all(places.get(name, -1) < at for at, n in enumerate(found.written.nodes) for name in n.inputs)


def test_what_subgraphs_store_themselves_is_known_with_its_node(source: Open):
    found = read(source, nested())
    assert {name.rpartition("/")[2] for name in found.inner} == {"w", "c"}
    assert set(found.inner.values()) == {"inner"}
    assert found.weights == {}


def test_functions_and_the_version_of_the_operators(source: Open):
    function = helper.make_function(
        "local", "twice", ["x"], ["y"], [node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 17)]
    )
    made = model([node("twice", ["image"], ["out"], domain="local")], opset=13)
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("local", 99))
    found = read(source, made)
    assert ([each.op for each in found.computed.nodes], found.opset) == (["Add"], 13)


def test_a_stored_tensor_is_found_through_identities(source: Open):
    nodes = [node("Identity", ["kernel"], ["a"]), node("Identity", ["a"], ["b"]), node("Relu", ["kernel"], ["c"]), CONV]
    found = read(source, model(nodes, KERNEL))
    assert found.stored("b") is found.stored("kernel") is found.weights["kernel"]
    assert [found.stored(name) for name in ("c", "image", "nothing")] == [None] * 3


def test_identities_in_a_circle_end(source: Open):
    made = model([node("Identity", ["b"], ["a"]), node("Identity", ["a"], ["b"]), CONV], KERNEL)
    assert read(source, made).stored("a") is None


def test_whether_numbers_are_packed(source: Open):
    made = model([CONV], KERNEL)
    made.graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0]))
    weight = read(source, made).weights["typed"]
    assert not is_packed(weight.message, TENSOR_DIMS)
    assert is_packed(weight.message, TENSOR_FLOATS)


def changed(change: Callable[[ModelProto], object]) -> ModelProto:
    made = model([CONV], KERNEL)
    change(made)
    return made


REFUSED: dict[str, tuple[ModelProto, type[Exception], str]] = {
    "no graph": (ModelProto(ir_version=8), DamagedError, "holds 0 graphs instead of one, at byte 0"),
    "no version": (
        changed(lambda m: m.ClearField("opset_import")),
        DamagedError,
        "has no opset_import: it is cut off after its graph, at byte",
    ),
    "stored twice": (
        changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        DamagedError,
        "kernel: is stored twice, at byte",
    ),
    "stored and constant": (
        changed(lambda m: m.graph.node.append(node("Constant", [], ["kernel"], value=m.graph.initializer[0]))),
        DamagedError,
        "kernel: is produced by a node, and is an input or initializer too, at byte",
    ),
    "produced twice": (
        changed(lambda m: m.graph.node.append(node("Relu", ["image"], ["out"]))),
        DamagedError,
        "out: is produced by two nodes",
    ),
    "made and stored": (
        changed(lambda m: m.graph.node.append(node("Relu", ["image"], ["kernel"]))),
        DamagedError,
        "kernel: is produced by a node, and is an input or initializer too, at byte",
    ),
    "made and fed": (
        changed(lambda m: m.graph.node.append(node("Relu", ["x"], ["image"]))),
        DamagedError,
        "image: is produced by a node, and is an input or initializer too",
    ),
    "fed twice": (
        changed(lambda m: m.graph.input.append(m.graph.input[0])),
        DamagedError,
        "image: is declared as an input twice, at byte",
    ),
    "an unknown type": (
        changed(lambda m: setattr(m.graph.initializer[0], "data_type", 99)),
        UnsupportedError,
        "kernel: has the unknown element type 99$",
    ),
    "no type": (
        changed(lambda m: m.graph.initializer[0].ClearField("data_type")),
        UnsupportedError,
        "kernel: has the unknown element type 0$",
    ),
    "a negative size": (
        changed(lambda m: m.graph.initializer[0].dims.append(-1)),
        DamagedError,
        r"kernel: dims \[5, 3, 3, 3, -1\] must be non-negative and of fewer than 2\^60 elements, at byte",
    ),
    "a huge size": (
        changed(lambda m: m.graph.initializer[0].dims.extend([1 << 40, 1 << 20])),
        DamagedError,
        r"kernel: dims .* must be non-negative and of fewer than 2\^60 elements, at byte",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_is_refused(name: str, source: Open):
    made, error, message = REFUSED[name]
    with pytest.raises(error, match=rf"^a\.onnx: {message}"):
        read(source, made)


def test_two_graphs_are_no_model(source: Open):
    data = model([CONV], KERNEL).SerializeToString()
    with pytest.raises(DamagedError, match=r"^a\.onnx: holds 2 graphs instead of one, at byte 0$"):
        OnnxModel(source(data * 2, "a.onnx"))


def test_an_old_model_names_no_version(source: Open):
    made = model([CONV], KERNEL)
    made.ir_version = 2
    made.ClearField("opset_import")
    assert read(source, made).opset == 1

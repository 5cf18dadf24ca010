"""An ONNX file as a checkpoint: how it is recognized, what its graph says of its first kernels, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from chkpt_channels import UnsupportedError, UsageError
from chkpt_channels.containers.protobuf import bytes_field, number_field
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Declaration, FirstConv, Tensor
from chkpt_channels.formats.onnx import FORMATS
from chkpt_channels.formats.onnx.checkpoint import onnx_schema
from chkpt_channels.storage.source import Source
from tests.support.onnx_models import (
    RGB,
    Dims,
    Open,
    Weights,
    branch,
    floats,
    ints,
    model,
    node,
    noise,
    opened,
)

KERNEL = {"kernel": noise(5, 3, 3, 3)}


def conv(image: str = "image", kernel: str = "kernel", out: str = "out", **attributes: object) -> NodeProto:
    return node("Conv", [image, kernel], [out], **attributes)


# Recognized


GRAPH = ModelProto.GRAPH_FIELD_NUMBER
WHOLE = model([conv()], KERNEL).SerializeToString()
HEADS: dict[str, tuple[bytes, bool]] = {
    "a model": (WHOLE, True),
    "a graph alone": (bytes_field(GRAPH, b""), True),
    "a graph first": (bytes_field(GRAPH, b"x") + number_field(1, 8), True),
    "fields of every kind": (
        number_field(1, 8)
        + bytes_field(2, b"p")
        + number_field(5, 1)
        + bytes_field(8, b"")
        + bytes_field(14, b"")
        + bytes_field(20, b"")
        + bytes_field(25, b"")
        + bytes_field(GRAPH, b""),
        True,
    ),
    "unknown fields": (number_field(1, 8) + b"\xa1\x06" + bytes(8) + b"\xa5\x06" + bytes(4) + bytes_field(GRAPH, b""), True),
    "a cut graph": (WHOLE[: len(WHOLE) // 2], True),
    "no graph": (number_field(1, 8) + bytes_field(2, b"producer"), False),
    "the version as a text": (bytes_field(1, b"8") + bytes_field(GRAPH, b""), False),
    "a graph as a number": (number_field(1, 8) + number_field(GRAPH, 1), False),
    "a field without a number": (number_field(1, 8) + b"\x00\x01" + bytes_field(GRAPH, b""), False),
    "a group": (number_field(1, 8) + b"\x5b" + bytes_field(GRAPH, b""), False),
    "a length that runs out": (number_field(1, 8) + b"\x12\xff\xff\xff\xff\x0f", False),
    "a number that does not end": (b"\x08" + b"\xff" * 12, False),
    "nothing": (b"", False),
    "a zip archive": (b"PK\x03\x04" + bytes(60), False),
    "a pickle": (b"\x80\x02}q\x00.", False),
    "safetensors": (b"\x3a\x02\0\0\0\0\0\0{" + b" " * 600, False),
    "text": (b"# notes about the model\n", False),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_model_is_recognized_by_its_fields(name: str, source: Open):
    data, expected = HEADS[name]
    assert FORMATS[0].sniff(source(data)) == expected


# Tensors


def test_tensors_are_the_stored_ones_in_order(source: Open):
    checkpoint = opened(source, model([conv()], {"bias": noise(5), **KERNEL, "n": ints(1)}))
    assert list(checkpoint.tensors.values()) == [
        Tensor("bias", BY_NAME["F32"], (5,)),
        Tensor("kernel", BY_NAME["F32"], (5, 3, 3, 3)),
        Tensor("n", BY_NAME["I64"], (1,)),
    ]
    assert np.array_equal(checkpoint.load("kernel"), KERNEL["kernel"])
    assert checkpoint.loading("b.onnx").statement == "session = onnxruntime.InferenceSession('b.onnx')"


def test_sparse_tensors_are_told(source: Open):
    made = model([conv()], KERNEL)
    values, indices = (helper.make_tensor(n, t, [1], [1]) for n, t in (("s", TensorProto.FLOAT), ("i", TensorProto.INT64)))
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    assert [notice.code for notice in opened(source, made).warnings] == ["sparse"]
    assert opened(source, model([conv()], KERNEL)).warnings == []


# First kernels


CONVS: dict[str, tuple[Sequence[NodeProto], Weights, Dims, list[tuple[str, str | None, int, int, str]]]] = {
    "one": ([conv()], KERNEL, RGB, [("kernel", "OIHW", 3, 1, "the image 'image' reaches it")]),
    "in groups": (
        [conv(group=3)],
        {"kernel": noise(6, 1, 3, 3)},
        RGB,
        [("kernel", "OIHW", 3, 3, "the image 'image' reaches it")],
    ),
    "one that two nodes take": (
        [conv(out="a"), conv(out="b"), node("Add", ["a", "b"], ["out"])],
        KERNEL,
        RGB,
        [("kernel", "OIHW", 3, 1, "the image 'image' reaches it")],
    ),
    "two": (
        [conv(out="a"), conv(kernel="second", out="b"), node("Add", ["a", "b"], ["out"])],
        {**KERNEL, "second": noise(5, 3, 3, 3)},
        RGB,
        [("kernel", "OIHW", 3, 1, "the image 'image' reaches it"), ("second", "OIHW", 3, 1, "the image 'image' reaches it")],
    ),
    "behind constants": (
        [node("Sub", ["image", "m"], ["x"]), node("Div", ["x", "s"], ["y"]), conv("y")],
        {**KERNEL, "m": noise(3, 1, 1), "s": noise(3, 1, 1) + 2},
        RGB,
        [("kernel", "OIHW", 3, 1, "the image 'image' reaches it through Sub, Div")],
    ),
    "behind many": (
        [
            *(node(op, [f"v{k}", "c"], [f"v{k + 1}"]) for k, op in enumerate(("Sub", "Sub", "Mul", "Add", "Div", "Pow"))),
            conv("v6"),
        ],
        {**KERNEL, "c": noise(3, 1, 1) + 2},
        RGB,
        [("kernel", "OIHW", 3, 1, "the image 'v0' reaches it through Sub, Mul, Add, Div")],
    ),
    "open channels": ([conv()], KERNEL, ("n", "c", 8, 8), [("kernel", "OIHW", 3, 1, "the image 'image' reaches it")]),
    "mixed channels": (
        [node("Softmax", ["image"], ["x"], axis=1), conv("x")],
        KERNEL,
        RGB,
        [("kernel", None, 3, 1, "the image 'image' reaches it through Softmax")],
    ),
    "mixed and direct": (
        [node("Softmax", ["image"], ["x"], axis=1), conv("x", out="a"), conv(kernel="second", out="out")],
        {**KERNEL, "second": noise(5, 3, 3, 3)},
        RGB,
        [("second", "OIHW", 3, 1, "the image 'image' reaches it through Softmax")],
    ),
    "computed": ([node("Softmax", ["kernel"], ["k"]), conv(kernel="k")], KERNEL, RGB, []),
    "none": ([node("Relu", ["image"], ["out"])], KERNEL, RGB, []),
}


@pytest.mark.parametrize("name", CONVS)
def test_the_graph_says_which_kernels_see_the_image(name: str, source: Open):
    nodes, weights, shape, expected = CONVS[name]
    made = model(nodes, weights, shape)
    if "v0" in nodes[0].input:
        made.graph.input[0].name = "v0"
    checkpoint = opened(source, made)
    assert checkpoint.graph.first_convs() == [
        FirstConv(checkpoint.tensors[kernel], layout, channels, "graph", why, groups, (made.graph.input[0].name,))
        for kernel, layout, channels, groups, why in expected
    ]


def test_constants_are_those_of_the_kernels_asked_for(source: Open):
    """And what mixes the channels anywhere concerns every kernel."""
    nodes = [
        node("Sub", ["image", "m"], ["x"], name="subtract"),
        conv("x", out="a"),
        conv(kernel="second", out="b"),
        node("Softmax", ["image"], ["y"], axis=1, name="mix"),
        conv("y", kernel="third", out="c"),
        node("Sum", ["a", "b", "c"], ["out"]),
    ]
    weights = {**KERNEL, "second": noise(5, 3, 3, 3), "third": noise(5, 3, 3, 3), "m": noise(3, 1, 1)}
    checkpoint = opened(source, model(nodes, weights))
    convs = {found.tensor.name: found for found in checkpoint.graph.first_convs()}
    assert convs.keys() == {"kernel", "second"}
    assert [operation.where for operation in checkpoint.graph.preprocessing([convs["kernel"]])] == ["subtract", "mix"]
    assert [operation.where for operation in checkpoint.graph.preprocessing([convs["second"]])] == ["mix"]


@pytest.mark.parametrize(
    ("nodes", "opset", "methods"),
    [
        ([node("Sub", ["image", "m"], ["x"]), conv("x")], 17, ("broadcast", "stack")),
        ([node("Sub", ["image", "m"], ["x"]), conv("x")], 6, ("stack",)),
        ([node("Sub", ["image", "one"], ["x"]), conv("x")], 17, ("stack",)),
        ([conv()], 17, ("stack",)),
    ],
    ids=["constants", "before broadcasting", "one number", "nothing"],
)
def test_ways_to_one_channel(nodes: list[NodeProto], opset: int, methods: tuple[str, ...], source: Open):
    checkpoint = opened(source, model(nodes, {**KERNEL, "m": noise(3, 1, 1), "one": floats(1)}, opset=opset))
    assert checkpoint.graph.graph_methods(checkpoint.graph.first_convs()) == methods


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(RGB, [Declaration("graph.input image", 3)]), ((1, "c", 8, 8), [])],
    ids=["declared", "open"],
)
def test_declared_channels_are_told(shape: Dims, expected: list[Declaration], source: Open):
    checkpoint = opened(source, model([conv()], KERNEL, shape))
    assert checkpoint.graph.declarations(checkpoint.graph.first_convs()) == expected


def test_a_kernel_of_another_width_contradicts_the_image(source: Open):
    nodes = [conv(out="a"), conv(kernel="second", out="b"), node("Add", ["a", "b"], ["out"])]
    checkpoint = opened(source, model(nodes, {**KERNEL, "second": noise(5, 4, 3, 3)}))
    assert checkpoint.graph.contradictions(checkpoint.graph.first_convs()) == [(Declaration("graph.input image", 3), 4)]
    assert opened(source, model([conv()], KERNEL)).graph.contradictions([]) == []


@pytest.mark.parametrize(("channels", "shape"), [(1, (6, 1, 3, 3)), (2, (6, 2, 3, 3)), (4, (6, 4, 3, 3))])
def test_a_kernel_in_groups_is_expanded_but_for_one_channel(channels: int, shape: tuple[int, ...], source: Open):
    checkpoint = opened(source, model([conv(group=3)], {"kernel": noise(6, 1, 3, 3)}))
    (found,) = checkpoint.graph.first_convs()
    assert checkpoint.graph.dense_shape(found, channels) == shape


def test_taps_at_the_border_are_those_of_every_node_that_takes_the_kernel(source: Open):
    nodes = [conv(out="a"), conv(out="b", pads=[1, 0, 0, 0]), node("Concat", ["a", "b"], ["out"], axis=2)]
    checkpoint = opened(source, model(nodes, KERNEL))
    (found,) = checkpoint.graph.first_convs()
    assert set(checkpoint.graph.padding(found)) == {((0, 3), (0, 3)), ((1, 3), (0, 3))}


def test_two_nodes_that_take_a_kernel_have_no_one_bias(source: Open):
    nodes = [node("Conv", ["image", "kernel", "bias"], [out]) for out in ("a", "b")]
    weights = {**KERNEL, "bias": noise(5)}
    checkpoint = opened(source, model([*nodes, node("Add", ["a", "b"], ["out"])], weights))
    assert checkpoint.graph.bias_target(checkpoint.graph.first_convs()[0]) is None
    checkpoint = opened(source, model([node("Relu", ["a"], ["out"]), nodes[0]], weights))
    assert checkpoint.graph.bias_target(checkpoint.graph.first_convs()[0]) == ("bias", 1)


# Named, refused


def test_inputs_that_are_named_are_the_images(source: Open):
    nodes = [conv(out="a"), conv("depth", "second", "out")]
    made = model(nodes, {**KERNEL, "second": noise(5, 3, 3, 3)}, inputs={"depth": RGB})
    checkpoint = opened(source, made)
    checkpoint.graph.select_inputs(["depth"])
    assert [found.tensor.name for found in checkpoint.graph.first_convs()] == ["second"]


def test_an_input_that_is_not_there_is_refused(source: Open):
    checkpoint = opened(source, model([conv()], KERNEL, inputs={"depth": RGB, "kernel": [5, 3, 3, 3]}))
    with pytest.raises(UsageError, match=r"^a\.onnx: no input is called 'picture'; it has image, depth$"):
        checkpoint.graph.select_inputs(["image", "picture"])


def test_an_image_goes_through_the_models_own_functions(source: Open):
    """They are followed, and not edited: what a call does may not change with the channels."""
    nodes = [node("prepare", ["image"], ["x"], domain="local", name="first"), conv("x")]
    made = model(nodes, KERNEL)
    made.functions.append(helper.make_function("local", "prepare", ["a"], ["b"], [node("Relu", ["a"], ["b"])], made.opset_import))
    made.opset_import.append(helper.make_opsetid("local", 1))
    graph = opened(source, made).graph
    (found,) = graph.first_convs()
    assert (found.tensor.name, found.layout, found.in_channels) == ("kernel", None, 3)
    (operation,) = graph.preprocessing([found])
    assert (operation.where, operation.kind, operation.scale) == ("first", "call of the model's function prepare", None)
    assert "inline_local_functions" in operation.hint
    nodes = [conv(out="x"), node("prepare", ["x"], ["out"], domain="local")]
    after_constants = model(nodes, KERNEL)
    after_constants.functions.extend(made.functions)
    assert [conv.layout for conv in opened(source, after_constants).graph.first_convs()] == ["OIHW"]


def test_a_kernel_that_a_branch_keeps_itself_is_refused(source: Open):
    branches = {f"{name}_branch": branch(name, [conv(out="z", name=f"conv_{name}")], KERNEL) for name in ("then", "else")}
    made = model([node("If", ["chosen"], ["out"], name="choice", **branches)], inputs={"chosen": []})
    message = "its weights are in a subgraph of choice; only those of the main graph are edited$"
    with pytest.raises(UnsupportedError, match=rf"^a\.onnx: conv_(then|else): {message}"):
        opened(source, made).graph.first_convs()


# Links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A model whose data file is a link to another folder."""
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
    onnx.save_model(model([conv()], KERNEL), folder / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    (folder / "a.data").rename(elsewhere / "a.data")
    (folder / "a.data").symlink_to(elsewhere / "a.data")
    return folder / "a.onnx"


def test_a_link_that_leaves_the_folder_is_followed_if_it_may(linked: Path):
    with Source(linked) as source:
        checkpoint = FORMATS[0].open(source)
        with pytest.raises(UnsupportedError, match=r"its data file a\.data is a link that leaves the model's folder") as refused:
            checkpoint.load("kernel")
        assert refused.value.hint == "--follow-links"
        with pytest.raises(UnsupportedError, match="a link that leaves"):
            checkpoint.companions(linked.with_name("b.onnx"), edited=True)
        checkpoint.follows_links = True
        assert np.array_equal(checkpoint.load("kernel"), KERNEL["kernel"])


# Validation


def test_the_validator_is_onnxs_own_schema(source: Open):
    assert onnx_schema().ModelProto is ModelProto
    checkpoint = opened(source, model([conv()], KERNEL))
    checkpoint.validate("")
    assert not checkpoint.source_fails_validation()


def test_what_the_schema_does_not_read_is_refused_by_it(source: Open):
    """Two bytes in a field that is not looked into here."""
    checkpoint = FORMATS[0].open(source(WHOLE + bytes_field(ModelProto.METADATA_PROPS_FIELD_NUMBER, b"\x0a\x7f"), "a.onnx"))
    assert [found.tensor.name for found in checkpoint.graph.first_convs()] == ["kernel"]
    assert checkpoint.source_fails_validation()

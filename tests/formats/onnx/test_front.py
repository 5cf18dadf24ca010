"""Nodes in front of an ONNX graph: where they may stand, and what they compute."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from chkpt_channels.core.tensors import ChannelMap, Edits, TensorEdit
from chkpt_channels.formats.onnx.front import element_type, obstacle, stacked
from tests.support.onnx_models import (
    Open,
    branch,
    declared,
    edited,
    floats,
    initializers,
    ints,
    model,
    node,
    noise,
    opened,
    run,
    traced,
)

A = ((0.5, 0.25, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0), (-1.0, 0.0, 2.0, 0.0))
T = (0.25, 0.0, -1.0)
KERNEL = noise(5, 3, 3, 3)
CAST = node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT)


def conv(image: str, out: str = "out") -> NodeProto:
    return node("Conv", [image, "kernel"], [out], pads=[1] * 4)


def adapted(source: Open, before: ModelProto, offset: tuple[float, ...] = T) -> ModelProto:
    checkpoint = opened(source, before)
    assert not checkpoint.graph.adapter_obstacle(checkpoint.graph.first_convs())
    return edited(checkpoint, Edits(channels=4, method="adapter", adapter=ChannelMap(A, offset)))


def mapped(image: np.ndarray, axis: int, offset: tuple[float, ...] = T) -> np.ndarray:
    old = np.tensordot(np.array(A), np.moveaxis(image, axis, 0), 1) + np.reshape(offset or 0.0, (-1, *[1] * (image.ndim - 1)))
    return np.moveaxis(old, 0, axis).astype(image.dtype)


@pytest.mark.parametrize("offset", [T, ()])
def test_channels_first(offset: tuple[float, ...], source: Open):
    before = model(
        [node("Sub", ["image", "mean"], ["a"]), conv("a")], {"kernel": KERNEL, "mean": floats(1, 2, 3).reshape(3, 1, 1)}
    )
    after, image = adapted(source, before, offset), noise(1, 4, 8, 8)
    assert np.allclose(run(after, image), run(before, mapped(image, 1, offset)), atol=1e-5)
    assert [n.op_type for n in after.graph.node] == ["Conv", "Sub", "Conv"]
    assert initializers(after).keys() - initializers(before).keys() == {
        "image_adapter.weight",
        *["image_adapter.bias"] * bool(offset),
    }


def test_channels_last(source: Open):
    nodes = [node("Mul", ["image", "scale"], ["a"]), node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]), conv("b")]
    before = model(nodes, {"kernel": KERNEL, "scale": floats(1, 2, 3)}, (1, 8, 8, 3), inferred=True)
    after, image = adapted(source, before), noise(1, 8, 8, 4)
    assert np.allclose(run(after, image), run(before, mapped(image, 3)), atol=1e-5)
    turned = [n for n in after.graph.node if n.op_type == "Transpose"]
    assert [list(n.attribute[0].ints) for n in turned[:2]] == [[0, 3, 1, 2], [0, 2, 3, 1]]


def test_videos(source: Open):
    before = model([node("Conv", ["image", "kernel"], ["out"])], {"kernel": noise(5, 3, 2, 3, 3)}, (1, 3, 4, 8, 8))
    after, image = adapted(source, before), noise(1, 4, 4, 8, 8)
    assert np.allclose(run(after, image), run(before, mapped(image, 1)), atol=1e-5)


def test_bytes_are_cast_first(source: Open):
    """What moves them until the graph's own Cast moves floats then, and is declared so."""
    moves = [
        node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2]),
        node("Gather", ["turned", "order"], ["swapped"], axis=1),
    ]
    nodes = [node("Shape", ["image"], ["sizes"]), *moves, node("Cast", ["swapped"], ["cast"], to=TensorProto.FLOAT), conv("cast")]
    before = model(nodes, {"kernel": KERNEL, "order": ints(2, 1, 0)}, (1, 8, 8, 3), kind=TensorProto.UINT8, inferred=True)
    image = np.random.default_rng(0).integers(0, 50, (1, 8, 8, 4)).astype(np.uint8)
    whole = ChannelMap(((1.0, 0.0, 2.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 3.0)))
    after = edited(opened(source, before), Edits(channels=4, method="adapter", adapter=whole))
    old = np.einsum("ij,nhwj->nhwi", np.array(whole.matrix), image).astype(np.uint8)
    assert np.allclose(run(after, image), run(before, old), rtol=1e-5)
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*after.graph.input, *after.graph.value_info)}
    assert kinds["image"] == TensorProto.UINT8
    assert kinds["turned"] == kinds["swapped"] == TensorProto.FLOAT


def test_bytes_are_followed_into_functions(source: Open):
    turn = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2])
    before = model(
        [
            node("Turn", ["image"], ["turned"], domain="own"),
            node("Cast", ["turned"], ["cast"], to=TensorProto.FLOAT),
            conv("cast"),
        ],
        {"kernel": KERNEL},
        (1, 8, 8, 3),
        kind=TensorProto.UINT8,
    )
    before.functions.append(helper.make_function("own", "Turn", ["x"], ["y"], [turn], [helper.make_opsetid("", 17)]))
    before.opset_import.append(helper.make_opsetid("own", 1))
    image = np.random.default_rng(0).integers(0, 50, (1, 8, 8, 4)).astype(np.uint8)
    old = np.eye(3, 4)
    after = edited(
        opened(source, before), Edits(channels=4, method="adapter", adapter=ChannelMap(tuple(map(tuple, old.tolist()))))
    )
    assert np.allclose(run(after, image), run(before, image[..., :3]), rtol=1e-5)


def test_it_has_the_type_of_the_graph(source: Open):
    half = KERNEL.astype(np.float16)
    before = model([conv("image")], {"kernel": half}, (1, 3, 8, 8), kind=TensorProto.FLOAT16)
    before.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    after = adapted(source, before)
    assert initializers(after)["image_adapter.weight"].dtype == initializers(after)["image_adapter.bias"].dtype == np.float16


@pytest.mark.parametrize("version", [3, 4])
def test_before_ir_version_4_each_initializer_is_an_input(version: int, source: Open):
    before = model([conv("image")], {"kernel": KERNEL}, inputs={"kernel": KERNEL.shape})
    before.ir_version = version
    added = {"image_adapter.weight": [3, 4, 1, 1], "image_adapter.bias": [3]} if version < 4 else {}
    after = adapted(source, before)
    assert {info.name: declared(after)[info.name] for info in after.graph.input[2:]} == added


OBSTACLES: dict[str, tuple[ModelProto, str]] = {
    "computed with": (
        model([node("Div", ["image", "two"], ["a"]), CAST, conv("cast")], {"two": ints(2)}, kind=TensorProto.UINT8),
        "U8",
    ),
    "two types": (
        model([CAST, node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16), conv("cast")], kind=TensorProto.UINT8),
        "computed with before it is cast to float",
    ),
    "another integer": (model([node("Cast", ["image"], ["cast"], to=TensorProto.INT32)], kind=TensorProto.UINT8), "U8"),
    "joined with others": (
        model([node("Concat", ["image", "more"], ["a"], axis=0), CAST], inputs={"more": (1, 3, 8, 8)}, kind=TensorProto.UINT8),
        "computed with",
    ),
    "doubles": (model([conv("image")], kind=TensorProto.DOUBLE), "image is F64"),
    "flat": (model([node("MatMul", ["image", "kernel"], ["out"])], shape=(1, 192)), "2 axes, and a convolution takes 3 to 5"),
    "given out": (model([conv("image")], outputs=("out", "image")), "is an output too"),
    "given out of a branch": (
        model(
            [
                node(
                    "If",
                    ["chosen"],
                    ["out"],
                    then_branch=branch("then", [node("Identity", ["image"], ["a"])]),
                    else_branch=branch("else", [node("Identity", ["image"], ["b"])]),
                )
            ],
            inputs={"chosen": ()},
            kind=TensorProto.UINT8,
        ),
        "computed with",
    ),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_where_none_may_stand(what: str, source: Open):
    before, message = OBSTACLES[what]
    path = traced(source, before)
    assert message in obstacle(path.model, path)


def test_names_in_use_are_not_taken():
    front = stacked("image", 1, 3, lambda name: name + "_")
    assert front.output == "image_stacked_"


def test_a_value_without_a_type_has_none(source: Open):
    made = model([conv("image")], {"kernel": KERNEL})
    made.graph.input[0].ClearField("type")
    assert element_type(opened(source, made).model.inputs[0].message) == ""


def test_a_convolution_is_taken_out(source: Open):
    """Its node passes the image on, and what nothing else reads is gone, as an input of an old file and as a Constant too."""
    weights = {"a": noise(3, 4, 1, 1), "kernel": KERNEL}
    bias = node("Constant", [], ["t"], value=numpy_helper.from_array(floats(1, 2, 3)))
    before = model(
        [bias, node("Conv", ["image", "a", "t"], ["x"], kernel_shape=[1, 1]), conv("x")], weights, (1, 4, 8, 8), inferred=True
    )
    before.ir_version = 3
    before.graph.input.extend(helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in weights.items())
    checkpoint = opened(source, before)
    (front,) = checkpoint.graph.first_convs()
    taken_out = checkpoint.graph.fold(front)
    assert (taken_out.output, taken_out.bias, taken_out.tensors) == ("x", "t", ("a", "t"))
    assert [first.tensor.name for first in checkpoint.graph.first_convs()] == ["kernel"]
    assert not checkpoint.graph.declarations(checkpoint.graph.first_convs())
    new = TensorEdit((5, 4, 3, 3), lambda: noise(5, 4, 3, 3, seed=1))
    after = edited(checkpoint, Edits({"kernel": new}, channels=4, folded="x", removed=taken_out.tensors))
    assert [(n.op_type, [*n.input], len(n.attribute)) for n in after.graph.node] == [
        ("Identity", ["image"], 0),
        ("Conv", ["x", "kernel"], 1),
    ]
    assert [each.name for each in (*after.graph.input, *after.graph.initializer)] == ["image", "kernel", "kernel"]
    assert declared(after)["x"] == [1, 4, 8, 8]

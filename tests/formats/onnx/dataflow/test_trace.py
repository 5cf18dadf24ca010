"""From an image on: the kernels that are reached, how they lie, what stands on the way and what blocks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from chkpt_channels.formats.onnx.dataflow.axes import holder
from chkpt_channels.formats.onnx.dataflow.operators import LINEAR, ROUNDING
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from tests.support.onnx_models import (
    RGB,
    SIZE,
    Dims,
    Open,
    Weights,
    branch,
    floats,
    ints,
    model,
    node,
    noise,
    run,
    traced,
)

KERNEL = {"kernel": noise(5, 3, 3, 3)}


def conv(image: str = "image", kernel: str = "kernel", out: str = "out", **attributes: object) -> NodeProto:
    return node("Conv", [image, kernel], [out], **attributes)


def reached(path: ImageTrace) -> list[tuple[str, str | None, int]]:
    """(operation, layout, channels) of each kernel that sees the image."""
    return [(one.node.op, one.stored, one.channels) for one in path.reached]


def blocks(path: ImageTrace) -> list[tuple[str, str]]:
    """(name, operation) of what no kernel edit can follow."""
    return [(found.operation.where, found.operation.kind) for found in path.operations if found.operation.scale is None]


# What is reached


CONVOLUTIONS: dict[str, tuple[NodeProto, Weights, Dims, tuple[str, str, int]]] = {
    "Conv": (conv(), KERNEL, RGB, ("Conv", "OIHW", 3)),
    "Conv of one channel": (conv(), {"kernel": noise(5, 1, 3, 3)}, (1, 1, 8, 8), ("Conv", "OIHW", 1)),
    "Conv in groups": (conv(group=3), {"kernel": noise(6, 1, 3, 3)}, RGB, ("Conv", "OIHW", 3)),
    "Conv over a volume": (conv(), {"kernel": noise(5, 2, 3, 3, 3)}, (1, 2, 4, 4, 4), ("Conv", "OIDHW", 2)),
    "Conv with open channels": (conv(), {"kernel": noise(5, 4, 3, 3)}, (1, None, 8, 8), ("Conv", "OIHW", 4)),
    "ConvTranspose": (
        node("ConvTranspose", ["image", "kernel"], ["out"]),
        {"kernel": noise(3, 5, 3, 3)},
        RGB,
        ("ConvTranspose", "IOHW", 3),
    ),
    "ConvInteger": (
        node("ConvInteger", ["image", "kernel"], ["out"]),
        {"kernel": np.ones((5, 3, 3, 3), np.int8)},
        RGB,
        ("ConvInteger", "OIHW", 3),
    ),
    "QLinearConv": (
        node("QLinearConv", ["image", "s", "z", "kernel", "s", "z", "s", "z"], ["out"]),
        {"kernel": np.ones((5, 3, 3, 3), np.int8), "s": floats(1), "z": np.array([0], np.int8)},
        RGB,
        ("QLinearConv", "OIHW", 3),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_the_image_is_reached(name: str, source: Open):
    made, weights, shape, expected = CONVOLUTIONS[name]
    path = traced(source, model([made], weights, shape))
    assert reached(path) == [expected]
    assert path.reached[0].kernel.name == "kernel"
    assert (path.operations, path.counts, path.widths) == ([], [], [])


LIKE = ["Identity", "Cast", "Dropout", "CastLike", "Relu", "Sigmoid", "Clip", "Abs", "Floor", "Sqrt"]


@pytest.mark.parametrize("op", LIKE)
def test_what_treats_every_number_alike_hands_the_image_on(op: str, source: Open):
    attributes = {"to": TensorProto.FLOAT} if op == "Cast" else {}
    made = node(op, ["image", "kernel"] if op == "CastLike" else ["image"], ["x"], **attributes)
    path = traced(source, model([made, conv("x")], KERNEL))
    assert reached(path) == [("Conv", "OIHW", 3)]
    assert [operation.kind for operation in path.reached[0].operations] == ([] if op in LINEAR | ROUNDING else [op])
    assert all(operation.uniform and operation.scale is None for operation in path.reached[0].operations)
    assert path.operations == []


def test_the_image_is_followed_behind_no_convolution(source: Open):
    path = traced(source, model([conv(out="x"), conv("x", "second")], {**KERNEL, "second": noise(5, 5, 3, 3)}))
    assert [one.kernel.name for one in path.reached] == ["kernel"]
    assert set(path.values) == {"image"}


def test_every_kernel_that_sees_the_image_is_reached(source: Open):
    nodes = [conv(out="a"), node("Relu", ["image"], ["x"]), conv("x", "second", "b"), node("Add", ["a", "b"], ["out"])]
    path = traced(source, model(nodes, {**KERNEL, "second": noise(5, 3, 3, 3)}))
    assert [one.kernel.name for one in path.reached] == ["kernel", "second"]


def test_an_operator_of_another_domain_is_not_followed(source: Open):
    nodes = [node("Identity", ["image"], ["x"], domain="com.example"), conv("x")]
    path = traced(source, model(nodes, KERNEL))
    assert reached(path) == [("Conv", None, 0)]
    assert blocks(path) == [("x", "Identity")]


def test_a_kernel_that_is_computed_is_reached_and_blocks(source: Open):
    nodes = [node("Softmax", ["kernel"], ["k"]), conv(kernel="k")]
    path = traced(source, model(nodes, KERNEL))
    assert [(one.node.op, one.kernel, one.layout) for one in path.reached] == [("Conv", None, None)]
    assert blocks(path) == [("out", "Conv")]


def test_a_kernel_of_another_width_is_reached_and_blocks(source: Open):
    path = traced(source, model([conv()], {"kernel": noise(5, 4, 3, 3)}))
    assert reached(path) == [("Conv", None, 0)]
    assert path.widths == [4]
    assert blocks(path) == [("out", "Conv")]


def test_a_group_below_one_takes_no_channels(source: Open):
    path = traced(source, model([conv(group=-1)], {"kernel": noise(5, 3, 3, 3)}, (1, None, 8, 8)))
    assert [(reached.layout, path.stems) for reached in path.reached] == [(None, {})]


def test_the_width_of_a_kernel_behind_mixed_channels_says_nothing(source: Open):
    nodes = [node("Concat", ["image", "more"], ["x"], axis=1), conv("x")]
    path = traced(source, model(nodes, {"kernel": noise(5, 4, 3, 3), "more": noise(1, 1, SIZE, SIZE)}))
    assert path.widths == []


def test_an_image_that_is_used_as_a_kernel_is_mixed(source: Open):
    path = traced(source, model([conv("other", "image")], {"other": noise(1, 3, 8, 8)}))
    assert path.reached == []
    assert blocks(path) == [("out", "Conv")]


def test_the_wrong_axis_reaches_a_kernel_without_a_layout(source: Open):
    path = traced(source, model([conv()], KERNEL, (1, 3, 8, 3)), channel=3)
    assert reached(path) == [("Conv", None, 0)]


def test_a_plain_product_over_pixels_mixes_the_channels(source: Open):
    nodes = [node("Transpose", ["image"], ["x"], perm=[0, 2, 3, 1]), node("MatMul", ["x", "kernel"], ["out"])]
    path = traced(source, model(nodes, {"kernel": noise(3, 5)}))
    assert reached(path) == [("MatMul", None, 0)]
    assert blocks(path) == [("out", "MatMul")]


PATCHES = [
    node("Reshape", ["image", "first"], ["cut"]),
    node("Transpose", ["cut"], ["turned"], perm=[0, 2, 4, 3, 5, 1]),
    node("Reshape", ["turned", "second"], ["rows"]),
]
PATCH_SHAPES = {"first": ints(1, 3, 4, 2, 4, 2), "second": ints(1, 16, 12)}


@pytest.mark.parametrize(
    ("products", "kernel", "layout"),
    [
        ([node("MatMul", ["rows", "kernel"], ["out"])], noise(12, 5), "(HWI)O"),
        ([node("Transpose", ["kernel"], ["t"], perm=[1, 0]), node("MatMul", ["rows", "t"], ["out"])], noise(5, 12), "O(HWI)"),
        ([node("MatMul", ["kernel", "rows"], ["out"])], noise(1, 16, 16), None),
        ([node("MatMul", ["rows", "kernel"], ["out"])], noise(12, 5).astype(np.float64), "(HWI)O"),
    ],
    ids=["MatMul", "turned", "from the left", "float64"],
)
def test_a_product_over_patches_is_reached(products: Sequence[NodeProto], kernel: np.ndarray, layout: str | None, source: Open):
    path = traced(source, model([*PATCHES, *products], {**PATCH_SHAPES, "kernel": kernel}))
    assert reached(path) == [("MatMul", layout, 3 if layout else 0)]


def test_a_product_of_another_width_is_not_one_of_these_patches(source: Open):
    weights = {**PATCH_SHAPES, "kernel": noise(12, 5), "second": ints(1, 4, 48)}
    path = traced(source, model([*PATCHES, node("MatMul", ["rows", "kernel"], ["out"])], weights))
    assert reached(path) == [("MatMul", None, 0)]


def test_focus_reaches_its_kernel_with_the_colors_fastest(source: Open):
    """Four slices of every second pixel, put together along the channels."""
    nodes = []
    for k, (y, x) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        nodes.append(node("Slice", ["image", f"at{y}", "end", "rows", "two"], [f"rows{k}"]))
        nodes.append(node("Slice", [f"rows{k}", f"at{x}", "end", "columns", "two"], [f"part{k}"]))
    nodes += [node("Concat", [f"part{k}" for k in range(4)], ["x"], axis=1), conv("x")]
    named = {"at0": 0, "at1": 1, "end": 1 << 40, "rows": 2, "columns": 3, "two": 2}
    weights = {"kernel": noise(5, 12, 3, 3), **{name: ints(n) for name, n in named.items()}}
    path = traced(source, model(nodes, weights))
    assert reached(path) == [("Conv", "O(GI)HW", 3)]
    assert path.operations == []


def test_a_concat_along_pixels_keeps_the_channels(source: Open):
    path = traced(source, model([node("Concat", ["image", "image"], ["x"], axis=3), conv("x")], KERNEL))
    assert reached(path) == [("Conv", "OIHW", 3)]


# What stands in front


def norm(op: str, constant: np.ndarray, *, left: bool = False, opset: int = 17) -> tuple[list[NodeProto], Weights]:
    return [node(op, ["c", "image"] if left else ["image", "c"], ["x"]), conv("x")], {**KERNEL, "c": constant}


def composed(path: ImageTrace, image: np.ndarray, axis: int) -> np.ndarray:
    """What the image is behind the constants that are told."""
    shape = [-1 if k == axis else 1 for k in range(image.ndim)]
    for operation in path.reached[0].operations:
        image = np.array(operation.scale).reshape(shape) * image + np.array(operation.shift).reshape(shape)
    return image


FRONTS: dict[str, tuple[list[NodeProto], Weights, list[str]]] = {
    "Sub": ([node("Sub", ["image", "a"], ["x"])], {"a": noise(1, 3, 1, 1)}, ["Sub"]),
    "Sub from the left": ([node("Sub", ["a", "image"], ["x"])], {"a": noise(3, 1, 1)}, ["Sub"]),
    "Div": ([node("Div", ["image", "a"], ["x"])], {"a": noise(3, 1, 1) + 2}, ["Div"]),
    "Neg": ([node("Neg", ["image"], ["x"])], {}, ["Neg"]),
    "by one number": ([node("Mul", ["image", "a"], ["x"])], {"a": floats(2).reshape(())}, ["Mul"]),
    "by one number that is a table": ([node("Add", ["image", "a"], ["x"])], {"a": floats(2).reshape(1, 1, 1, 1)}, ["Add"]),
    "one after another": (
        [node("Sub", ["image", "a"], ["p"]), node("Div", ["p", "b"], ["q"]), node("Add", ["c", "q"], ["x"])],
        {"a": noise(3, 1, 1), "b": noise(3, 1, 1, seed=1) + 2, "c": floats(0.25)},
        ["Sub", "Div", "Add"],
    ),
    "BatchNormalization": (
        [node("BatchNormalization", ["image", "g", "b", "m", "v"], ["x"], epsilon=0.01)],
        {"g": noise(3), "b": noise(3, seed=1), "m": noise(3, seed=2), "v": noise(3, seed=3) + 2},
        ["BatchNormalization"],
    ),
    "BatchNormalization behind Sub": (
        [node("Sub", ["image", "a"], ["p"]), node("BatchNormalization", ["p", "g", "b", "m", "v"], ["x"])],
        {"a": noise(3, 1, 1), "g": noise(3), "b": noise(3, seed=1), "m": noise(3, seed=2), "v": noise(3, seed=3) + 2},
        ["Sub", "BatchNormalization"],
    ),
}


@pytest.mark.parametrize("name", FRONTS)
def test_constants_in_front_are_what_the_graph_computes(name: str, source: Open):
    nodes, weights, kinds = FRONTS[name]
    path = traced(source, model([*nodes, conv("x")], {**weights, **KERNEL}))
    assert reached(path) == [("Conv", "OIHW", 3)]
    assert [operation.kind for operation in path.reached[0].operations] == kinds
    image = noise(*RGB, seed=9)
    (expected,) = run(model(nodes, weights, outputs=("x",)), image)
    assert np.abs(composed(path, image, 1) - expected).max() < 1e-5


def test_constants_name_the_tensors_that_hold_them(source: Open):
    nodes, weights, _ = FRONTS["BatchNormalization behind Sub"]
    path = traced(source, model([*nodes, conv("x")], {**weights, **KERNEL}))
    held = [operation.tensors for operation in path.reached[0].operations]
    assert held == [(("a", 0),), (("g", 0), ("b", 0), ("m", 0), ("v", 0))]
    assert [found.operation for found in path.operations] == list(path.reached[0].operations)


def test_one_number_for_all_channels_is_no_obstacle(source: Open):
    path = traced(source, model(*norm("Div", floats(255))))
    (operation,) = path.reached[0].operations
    assert operation.uniform
    assert operation.tensors == ()
    assert path.operations == []


@pytest.mark.parametrize(
    ("op", "constant", "left"),
    [
        ("Pow", noise(3, 1, 1), False),
        ("Div", noise(3, 1, 1) + 2, True),
        ("Div", floats(1, 0, 1).reshape(3, 1, 1), False),
        ("Max", noise(3, 1, 1), False),
        ("Mul", noise(3, SIZE, SIZE), False),
    ],
    ids=["Pow", "Div from the left", "Div by zero", "Max", "by the pixel"],
)
def test_constants_that_are_no_scale_and_shift_are_told_without(op: str, constant: np.ndarray, left: bool, source: Open):
    path = traced(source, model(*norm(op, constant, left=left)))
    assert reached(path) == [("Conv", "OIHW", 3)]
    assert [operation[:5] for operation in path.reached[0].operations] == [("x", op, None, None, (("c", 0),))]


def test_constants_by_the_pixel_alone_treat_the_channels_alike(source: Open):
    path = traced(source, model(*norm("Mul", noise(1, SIZE, SIZE))))
    assert (reached(path), path.operations, path.reached[0].operations) == ([("Conv", "OIHW", 3)], [], ())


@pytest.mark.parametrize("op", ["Relu", "MaxPool", "Sigmoid"])
def test_behind_what_is_not_linear_constants_cannot_be_moved(op: str, source: Open):
    attributes = {"kernel_shape": [2, 2]} if op == "MaxPool" else {}
    nodes = [node("Sub", ["image", "a"], ["p"]), node(op, ["p"], ["x"], **attributes), conv("x")]
    path = traced(source, model(nodes, {**KERNEL, "a": noise(3, 1, 1)}))
    found = [(operation.kind, operation.scale, operation.apart) for operation in path.reached[0].operations]
    assert found == [(f"Sub before a {op}", None, True), (op, None, True)]


JOINED: dict[str, tuple[list[NodeProto], Weights, list[str]]] = {
    "a residual": ([node("Mul", ["image", "a"], ["y"]), node("Add", ["image", "y"], ["x"])], {}, ["Mul before a Add"]),
    "twice": ([node("Add", ["image", "image"], ["x"])], {}, []),
    "a square": ([node("Mul", ["image", "image"], ["x"])], {}, ["Mul"]),
    "a map of gains": ([node("Mul", ["image", "map"], ["x"])], {"map": noise(1, 1, SIZE, SIZE)}, []),
    "a map of means": ([node("Sub", ["image", "map"], ["x"])], {"map": noise(1, 1, SIZE, SIZE)}, ["Sub"]),
    "a border of ones": (
        [node("Pad", ["image", "pads", "one"], ["x"])],
        {"pads": ints(*[0, 0, 1, 1] * 2), "one": np.float32(1)},
        ["Pad"],
    ),
    "a border of zeros": ([node("Pad", ["image", "pads"], ["x"])], {"pads": ints(*[0, 0, 1, 1] * 2)}, []),
}


@pytest.mark.parametrize("name", JOINED)
def test_what_treats_channels_apart_and_is_no_map_of_them(name: str, source: Open):
    nodes, weights, expected = JOINED[name]
    path = traced(source, model([*nodes, conv("x")], {**KERNEL, **weights, "a": noise(3, 1, 1)}))
    assert reached(path) == [("Conv", "OIHW", 3)]
    operations = path.reached[0].operations
    assert [operation.kind for operation in operations] == expected
    assert all(operation.apart and operation.scale is None for operation in operations)


def test_what_the_constants_of_one_kernel_are_is_not_those_of_another(source: Open):
    nodes = [conv(out="plain"), node("Sub", ["image", "a"], ["x"]), conv("x", out="normalised")]
    path = traced(source, model(nodes, {**KERNEL, "a": noise(3, 1, 1)}, outputs=("plain", "normalised")))
    assert [[operation.kind for operation in one.operations] for one in path.reached] == [[], ["Sub"]]


MIXED: dict[str, tuple[list[NodeProto], Weights]] = {
    "a constant that is fed": ([node("Sub", ["image", "fed"], ["x"])], {}),
    "a constant with more axes": ([node("Sub", ["image", "a"], ["x"])], {"a": noise(2, 1, 3, 1, 1)}),
    "BatchNormalization by computed numbers": (
        [node("Abs", ["g"], ["k"]), node("BatchNormalization", ["image", "k", "g", "g", "g"], ["x"])],
        {"g": noise(3)},
    ),
    "BatchNormalization of another size": (
        [node("BatchNormalization", ["image", "g", "g", "g", "h"], ["x"])],
        {"g": noise(3), "h": noise(4)},
    ),
    "Concat with itself, differently": (
        [node("Mul", ["image", "half"], ["y"]), node("Concat", ["image", "y"], ["x"], axis=1)],
        {"half": floats(0.5)},
    ),
    "Concat with a constant": ([node("Concat", ["image", "c"], ["x"], axis=1)], {"c": noise(1, 1, SIZE, SIZE)}),
    "Gather": ([node("Gather", ["image", "order"], ["x"], axis=1)], {"order": ints(2, 1, 0)}),
    "Softmax": ([node("Softmax", ["image"], ["x"], axis=1)], {}),
    "QuantizeLinear by channel": (
        [node("QuantizeLinear", ["image", "scales"], ["x"], axis=1)],
        {"scales": floats(1, 2, 3)},
    ),
    "QuantizeLinear by what is fed": ([node("QuantizeLinear", ["image", "fed"], ["x"])], {}),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_the_channels_blocks_and_the_kernel_behind_it_is_reached(name: str, source: Open):
    nodes, weights = MIXED[name]
    path = traced(source, model([*nodes, conv("x")], {**KERNEL, **weights}, inputs={"fed": [3, 1, 1]}))
    assert reached(path) == [("Conv", None, 0)]
    assert blocks(path) == [("x", nodes[-1].op_type)]
    assert not path.broadcasts


def test_the_image_added_to_itself_is_twice_the_image_and_bends_no_less(source: Open):
    path = traced(source, model([node("Add", ["image", "image"], ["x"]), conv("x")], KERNEL))
    assert (reached(path), path.operations) == ([("Conv", "OIHW", 3)], [])


def test_constants_for_folded_channels_are_mixed(source: Open):
    nodes = [node("SpaceToDepth", ["image"], ["d"], blocksize=2), node("Mul", ["d", "c"], ["x"]), conv("x")]
    path = traced(source, model(nodes, {"kernel": noise(5, 12, 3, 3), "c": noise(12, 1, 1)}))
    assert reached(path) == [("Conv", None, 0)]
    assert blocks(path) == [("x", "Mul")]


def test_a_batch_normalization_by_the_batch_itself_is_mixed(source: Open):
    nodes, weights, _ = FRONTS["BatchNormalization"]
    training = node("BatchNormalization", list(nodes[0].input), ["x", "mean", "variance"], training_mode=1)
    path = traced(source, model([training, conv("x")], {**weights, **KERNEL}))
    assert blocks(path) == [("x", "BatchNormalization")]


# Zeros around the image


PAD = {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "a": noise(3, 1, 1)}


@pytest.mark.parametrize(
    ("nodes", "padded"),
    [
        ([node("Pad", ["image", "pads"], ["x"])], True),
        ([node("Pad", ["image", "pads"], ["p"]), node("Sub", ["p", "a"], ["x"])], False),
        ([node("Sub", ["image", "a"], ["p"]), node("Pad", ["p", "pads"], ["x"])], True),
        ([node("Pad", ["image", "pads"], ["p"]), node("Mul", ["p", "a"], ["x"])], True),
    ],
    ids=["Pad", "Pad, Sub", "Sub, Pad", "Pad, Mul"],
)
def test_zeros_that_a_kernel_meets_are_told(nodes: list[NodeProto], padded: bool, source: Open):
    path = traced(source, model([*nodes, conv("x")], {**KERNEL, **PAD}))
    assert [one.padded for one in path.reached] == [padded]


def test_zeros_behind_constants_that_are_folded_block(source: Open):
    """Of one folded tap's pixels some stand on zeros and some do not: no constant is right."""
    nodes = [
        node("Sub", ["image", "a"], ["p"]),
        node("Pad", ["p", "pads"], ["q"]),
        node("SpaceToDepth", ["q"], ["x"], blocksize=2),
    ]
    weights = {"kernel": noise(5, 12, 3, 3), **PAD}
    path = traced(source, model([*nodes, conv("x")], weights))
    assert (reached(path), blocks(path)) == ([("Conv", None, 3)], [("out", "Conv")])
    nodes[0], nodes[1] = node("Pad", ["image", "pads"], ["p"]), node("Sub", ["p", "a"], ["q"])
    path = traced(source, model([*nodes, conv("x")], weights))
    assert (reached(path), blocks(path)) == ([("Conv", "O(GI)HW", 3)], [])


@pytest.mark.parametrize(
    ("shape", "nodes", "sizes"),
    [
        (RGB, [], (8, 8)),
        ((1, 3, 6, 10), [node("Pad", ["image", "pads"], ["x"])], (8, 12)),
        ((1, 3, 6, 10), [node("SpaceToDepth", ["image"], ["x"], blocksize=2)], (3, 5)),
    ],
    ids=["image", "padded", "folded"],
)
def test_a_kernel_knows_the_size_of_what_it_sees(shape: Dims, nodes: list[NodeProto], sizes: tuple[int, int], source: Open):
    kernel = noise(5, 12 if nodes and nodes[0].op_type == "SpaceToDepth" else 3, 3, 3)
    path = traced(source, model([*nodes, conv("x" if nodes else "image")], {"kernel": kernel, **PAD}, shape))
    assert [one.sizes for one in path.reached] == [sizes]


# One channel for all


@pytest.mark.parametrize(
    ("nodes", "more", "broadcasts"),
    [
        ([node("Sub", ["image", "a"], ["x"]), conv("x")], {}, True),
        ([conv()], {}, False),
        ([node("Sub", ["image", "one"], ["x"]), conv("x")], {}, False),
        ([node("Relu", ["image"], ["y"]), node("Sub", ["y", "a"], ["x"]), conv("x")], {}, True),
        (
            [node("Sub", ["image", "a"], ["x"]), conv("x"), node("Identity", ["image"], ["also"])],
            {"outputs": ("out", "also")},
            False,
        ),
        ([node("Sub", ["image", "a"], ["x"]), node("Sub", ["image", "a"], ["y"]), conv("x"), conv("y", out="also")], {}, True),
        ([node("Sub", ["image", "a"], ["x"]), conv("x"), conv(out="also")], {}, False),
    ],
    ids=["constants", "none", "one number", "behind Relu", "given out", "both ways", "past them"],
)
def test_constants_spread_one_channel_over_all_where_every_way_meets_them(
    nodes: list[NodeProto], more: Mapping[str, Sequence[str]], broadcasts: bool, source: Open
):
    weights = {**KERNEL, "a": noise(3, 1, 1), "one": floats(1)}
    assert traced(source, model(nodes, weights, **more)).broadcasts == broadcasts


def test_values_know_whether_the_channels_have_been_spread(source: Open):
    nodes = [node("Relu", ["image"], ["y"]), node("Sub", ["y", "a"], ["x"]), conv("x")]
    path = traced(source, model(nodes, {**KERNEL, "a": noise(3, 1, 1)}))
    assert {name: flow.wide for name, flow in path.values.items()} == {"image": False, "y": False, "x": True}
    assert {holder(flow.axes or (), 1) for flow in path.values.values()} == {1}


# Subgraphs


def choice(then: Sequence[NodeProto], other: Sequence[NodeProto], weights: Weights | None = None) -> NodeProto:
    branches = {"then_branch": branch("then", then, weights), "else_branch": branch("other", other, weights)}
    return node("If", ["chosen"], ["out"], name="choice", **branches)


def test_a_convolution_in_a_branch_is_reached_with_a_kernel_from_outside(source: Open):
    """Both branches call what is between the same; one of them has constants there."""
    then = [node("Identity", ["image"], ["y"]), conv("y", out="z")]
    other = [node("Sub", ["image", "a"], ["y"]), conv("y", out="z")]
    path = traced(source, model([choice(then, other)], {**KERNEL, "a": noise(3, 1, 1)}, inputs={"chosen": []}))
    assert reached(path) == [("Conv", "OIHW", 3)] * 2
    assert sorted([operation.kind for operation in one.operations] for one in path.reached) == [[], ["Sub"]]
    assert blocks(path) == []


def test_a_kernel_that_a_branch_keeps_itself_is_reached_and_is_none(source: Open):
    path = traced(source, model([choice([conv(out="z")], [conv(out="z")], KERNEL)], inputs={"chosen": []}))
    assert [(one.kernel, one.layout) for one in path.reached] == [(None, None)] * 2
    assert sorted(set(path.model.inner.values())) == ["choice"]


def test_an_image_that_a_branch_gives_out_is_mixed(source: Open):
    """It is not followed: what comes out may be either."""
    made = choice([node("Identity", ["image"], ["y"])], [node("Relu", ["image"], ["y"])])
    made.output[0] = "x"
    path = traced(source, model([made, conv("x")], KERNEL, inputs={"chosen": []}))
    assert (reached(path), blocks(path)) == ([("Conv", None, 0)], [("choice", "If")])


def loop(*, fed: bool) -> NodeProto:
    """Three times the sum of a convolution of the image, which is a value from outside, or one that the loop carries."""
    values = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("total", TensorProto.FLOAT, None)]
    given = [helper.make_tensor_value_info(*value) for value in values]
    made = [
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
    ]
    nodes = [node("Identity", ["go"], ["on"]), conv("total" if fed else "image", out="y")]
    nodes.append(node("Identity" if fed else "Add", ["total"] if fed else ["total", "y"], ["more"]))
    body = branch("body", nodes, inputs=given, outputs=made)
    return node("Loop", ["times", "", "image" if fed else "start"], ["out"], name="loop", body=body)


LOOPED = {**KERNEL, "times": np.array(3, np.int64), "start": noise(1, 5, 6, 6)}


def test_a_convolution_in_a_loop_is_reached(source: Open):
    path = traced(source, model([loop(fed=False)], LOOPED))
    assert (reached(path), blocks(path)) == ([("Conv", "OIHW", 3)], [])


def test_an_image_that_a_loop_carries_is_not_followed(source: Open):
    path = traced(source, model([loop(fed=True)], LOOPED))
    assert (reached(path), blocks(path)) == ([], [("loop", "Loop")])

"""Axes through operations that select, mix or cut channels: sizes as onnx itself infers them, and which axis each is of."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from onnx import NodeProto, shape_inference

from chkpt_channels.formats.onnx.dataflow.axes import NEW, OPEN, Axes, Piece, image_axes, size
from chkpt_channels.formats.onnx.dataflow.axes import source as axis_source
from chkpt_channels.formats.onnx.dataflow.selections import merged
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from tests.support.onnx_models import Open, Weights, floats, ints, model, node, noise, opened

SHAPE = (2, 3, 8, 10)
Row = tuple[list[NodeProto], Weights, tuple[int, ...]]


def one(op: str, *inputs: str, weights: Weights | None = None, **attributes: object) -> tuple[list[NodeProto], Weights]:
    return [node(op, ["image", *inputs], ["out"], **attributes)], weights or {}


ROWS: Mapping[str, tuple[tuple[list[NodeProto], Weights], tuple[int, ...]]] = {
    "Gather of some channels": (one("Gather", "i", weights={"i": ints(2, 0)}, axis=1), (0, 1, 2, 3)),
    "Gather of one": (one("Gather", "i", weights={"i": ints(2).reshape(())}, axis=1), (0, 2, 3)),
    "Gather of pairs": (one("Gather", "i", weights={"i": ints(2, 0).reshape(1, 2)}, axis=1), (0, NEW, NEW, 2, 3)),
    "GatherND": (one("GatherND", "i", weights={"i": ints(1, 0, 1).reshape(3, 1)}), (0, 1, 2, 3)),
    "Slice of channels": (one("Slice", "s", "e", "a", weights={"s": ints(0), "e": ints(2), "a": ints(1)}), (0, 1, 2, 3)),
    "Split": (one("Split", weights={}, axis=2, num_outputs=2), (0, 1, 2, 3)),
    "a mean of channels": (one("ReduceMean", "a", weights={"a": ints(1)}), (0, NEW, 2, 3)),
    "a mean that drops them": (one("ReduceSum", "a", weights={"a": ints(1)}, keepdims=0), (0, 2, 3)),
    "colors from one": ((
        [node("ReduceMax", ["image", "a"], ["x"]), node("Mul", ["x", "c"], ["out"])],
        {"a": ints(1), "c": noise(1, 4, 1, 1)},
    ), (0, NEW, 2, 3)),
    "Concat of other channels": ((
        [node("Gather", ["image", "i"], ["x"], axis=1), node("Concat", ["x", "image"], ["out"], axis=1)],
        {"i": ints(2, 0)},
    ), (0, 1, 2, 3)),
    "Tile": (one("Tile", "r", weights={"r": ints(1, 2, 1, 1)}), (0, 1, 2, 3)),
    "DepthToSpace": ((
        [node("Gather", ["image", "i"], ["x"], axis=1), node("DepthToSpace", ["x"], ["out"], blocksize=2)],
        {"i": ints(0, 1, 2, 0)},
    ), (0, 1, 2, 3)),
    "constants for each pixel": (one("Add", "c", weights={"c": noise(3, 8, 10)}), (0, 1, 2, 3)),
    "Softmax": (one("Softmax", axis=1), (0, 1, 2, 3)),
    "Where": ((
        [node("Greater", ["image", "half"], ["is"]), node("Where", ["is", "image", "half"], ["out"])],
        {"half": floats(0.5)},
    ), (0, 1, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_axes_are_those_that_onnx_infers(name: str, source: Open):
    (nodes, weights), sources = ROWS[name]
    made = model(nodes, weights, SHAPE, opset=18)
    checkpoint = opened(source, made)
    path = ImageTrace(checkpoint.model, checkpoint.model.inputs[0], None)
    axes = path.values["out"].axes
    assert axes is not None
    assert tuple(map(axis_source, axes)) == sources
    inferred = shape_inference.infer_shapes(made, data_prop=True).graph.output[0].type.tensor_type.shape.dim
    assert all(size(axis) == dim.dim_value or size(axis) >= OPEN for axis, dim in zip(axes, inferred, strict=True))


NOT_FOLLOWED: Mapping[str, tuple[list[NodeProto], Weights]] = {
    "places that are fed": one("Gather", "fed", axis=1),
    "several axes by fed numbers": one("Slice", "fed", "fed", "fed"),
    "a sum over fed axes": one("ReduceSum", "fed"),
    "values of other rank": ([node("Flatten", ["image"], ["x"]), node("Concat", ["x", "image"], ["out"], axis=1)], {}),
    "an operator of another domain": one("Mystery", domain="other"),
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_is_not_known_is_lost(name: str, source: Open):
    nodes, weights = NOT_FOLLOWED[name]
    checkpoint = opened(source, model(nodes, weights, SHAPE, inputs={"fed": [2]}))
    path = ImageTrace(checkpoint.model, checkpoint.model.inputs[0], None)
    assert path.values["out"].axes is None
    assert [lost.op for lost in path.lost] == [nodes[-1].op_type]


def test_branches_are_of_the_axes_that_all_of_them_are_of():
    image = image_axes([1, 3, 8, 8])
    turned: Axes = (image[0], image[1], image[3], image[2])
    assert merged([image, image]) == image
    both = merged([image, turned])
    assert both is not None
    assert [axis_source(axis) for axis in both] == [0, 1, NEW, NEW]
    larger: Axes = (*image[:2], (Piece(2, 16, resized=True),), image[3])
    assert [axis_source(axis) for axis in merged([image, larger]) or ()] == [0, 1, 2, 3]
    assert merged([image, image[:3]]) is None
    assert merged([image, None]) is None

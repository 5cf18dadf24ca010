"""Operations that move pixels: where the channels stand afterwards is where onnx's reference implementation puts them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import NodeProto

from chkpt_channels.formats.onnx.dataflow.axes import OPEN, around, holder, opened, size
from chkpt_channels.formats.onnx.dataflow.values import Flow
from tests.support.onnx_models import SIZE, Dims, Open, Weights, floats, ints, model, node, run, traced

LAST = (1, SIZE, SIZE, 3)
HUGE = np.iinfo(np.int64).max
Row = tuple[Sequence[NodeProto], Weights]


def shuffled(first: Sequence[int], order: Sequence[int], second: Sequence[int]) -> Row:
    nodes = [
        node("Reshape", ["image", "first"], ["cut"]),
        node("Transpose", ["cut"], ["turned"], perm=order),
        node("Reshape", ["turned", "second"], ["out"]),
    ]
    return nodes, {"first": ints(*first), "second": ints(*second)}


def one(op: str, *inputs: str, weights: Weights | None = None, **attributes: object) -> Row:
    return [node(op, ["image", *inputs], ["out"], **attributes)], weights or {}


def flow_of(source: Open, row: Row, shape: Dims, channel: int, opset: int = 17) -> Flow:
    return traced(source, model(*row, shape, opset=opset), channel).values["out"]


def assert_told_as_it_is(flow: Flow, row: Row, shape: Sequence[int], channel: int, opset: int = 17) -> None:
    """An image whose every pixel is the number of its channel: they stand along the axis that is told, in that order."""
    assert flow.axes is not None
    dims = [-1 if k == channel else 1 for k in range(len(shape))]
    image = np.broadcast_to(np.arange(1, shape[channel] + 1, dtype=np.float32).reshape(dims), shape)
    (out,) = run(model(*row, shape, opset=opset), image)
    at = holder(flow.axes, channel)
    assert at is not None
    known = [size(axis) for axis in flow.axes]
    assert all(n in (out.shape[k], opened(k)) for k, n in enumerate(known))
    slower, faster = around(flow.axes[at], channel)
    told = np.tile(np.repeat(np.arange(1, shape[channel] + 1), faster), slower)
    padding = out == 0
    assert flow.padded or not padding.any()
    assert np.array_equal(np.where(padding, 0, told.reshape(-1, *[1] * (out.ndim - at - 1))), out)


FOLLOWED: dict[str, tuple[Row, Sequence[int], int, tuple[int, int, int]]] = {
    "Transpose": (one("Transpose", perm=[0, 3, 1, 2]), LAST, 3, (1, 1, 1)),
    "Transpose without an order": (one("Transpose"), LAST, 3, (0, 1, 1)),
    "Reshape that merges the rest": (one("Reshape", "s", weights={"s": ints(1, 3, -1)}), (1, 3, 8, 8), 1, (1, 1, 1)),
    "Reshape with zeros": (one("Reshape", "s", weights={"s": ints(0, 0, 4, -1)}), (2, 3, 8, 8), 1, (1, 1, 1)),
    "Reshape that flattens all": (one("Reshape", "s", weights={"s": ints(-1)}), (1, 3, 8, 8), 1, (0, 1, 64)),
    "Reshape of one channel": (one("Reshape", "s", weights={"s": ints(8, 8, 1)}), (1, 1, 8, 8), 1, (0, 1, 8)),
    "pixels fastest": (shuffled([1, 3, 4, 2, 4, 2], [0, 1, 3, 5, 2, 4], [1, 12, 4, 4]), (1, 3, 8, 8), 1, (1, 1, 4)),
    "colors fastest": (shuffled([1, 3, 4, 2, 4, 2], [0, 3, 5, 1, 2, 4], [1, 12, 4, 4]), (1, 3, 8, 8), 1, (1, 4, 1)),
    "colors between": (shuffled([1, 3, 4, 2, 4, 2], [0, 3, 1, 5, 2, 4], [1, 12, 4, 4]), (1, 3, 8, 8), 1, (1, 2, 2)),
    "rows of patches": (shuffled([1, 3, 4, 2, 4, 2], [0, 2, 4, 3, 5, 1], [1, 16, 12]), (1, 3, 8, 8), 1, (2, 4, 1)),
    "Flatten": (one("Flatten"), (1, 3, 8, 8), 1, (1, 1, 64)),
    "Flatten from the third axis": (one("Flatten", axis=2), (1, 3, 8, 8), 1, (0, 1, 1)),
    "Unsqueeze": (one("Unsqueeze", "a", weights={"a": ints(0, 3)}), (1, 3, 8, 8), 1, (2, 1, 1)),
    "Unsqueeze from behind": (one("Unsqueeze", "a", weights={"a": ints(-1, -4)}), (1, 3, 8, 8), 1, (1, 1, 1)),
    "Squeeze": (one("Squeeze", "a", weights={"a": ints(0)}), (1, 3, 8, 8), 1, (0, 1, 1)),
    "Squeeze from behind": (one("Squeeze", "a", weights={"a": ints(-1)}), (1, 3, 8, 1), 1, (1, 1, 1)),
    "Pad of pixels": (one("Pad", "p", weights={"p": ints(0, 0, 1, 2, 0, 0, 3, 4)}), (1, 3, 8, 8), 1, (1, 1, 1)),
    "Pad with the edge": (one("Pad", "p", weights={"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}, mode="edge"), (1, 3, 8, 8), 1, (1, 1, 1)),
    "Resize by scales": (one("Resize", "", "s", weights={"s": floats(1, 1, 2, 0.5)}), (1, 3, 8, 8), 1, (1, 1, 1)),
    "Resize to sizes": (one("Resize", "", "", "s", weights={"s": ints(1, 3, 12, 5)}), (1, 3, 8, 8), 1, (1, 1, 1)),
    "Slice of pixels": (
        one("Slice", "b", "e", "a", "s", weights={"b": ints(1, -1), "e": ints(HUGE, -HUGE), "a": ints(2, 3), "s": ints(2, -1)}),
        *((1, 3, 8, 8), 1, (1, 1, 1)),
    ),
    "Slice of the last axis": (
        one("Slice", "b", "e", "a", weights={"b": ints(0), "e": ints(-3), "a": ints(-1)}),
        *((1, 3, 8, 8), 1, (1, 1, 1)),
    ),
    "Slice of the first axes": (one("Slice", "b", "e", weights={"b": ints(1), "e": ints(2)}), (2, 3, 8, 8), 1, (1, 1, 1)),
    "Resize to one pixel": (one("Resize", "", "", "s", weights={"s": ints(1, 3, 1, 1)}), (1, 3, 8, 8), 1, (1, 1, 1)),
    "SpaceToDepth of single pixels": (one("SpaceToDepth", blocksize=1), (1, 3, 8, 8), 1, (1, 1, 1)),
    "SpaceToDepth": (one("SpaceToDepth", blocksize=4), (1, 3, 8, 8), 1, (1, 16, 1)),
    "AveragePool": (one("AveragePool", kernel_shape=[2, 2], strides=[2, 2]), (1, 3, 8, 8), 1, (1, 1, 1)),
    "GlobalAveragePool": (one("GlobalAveragePool"), (1, 3, 8, 8), 1, (1, 1, 1)),
    "MaxPool": (one("MaxPool", kernel_shape=[3, 3], strides=[1, 2]), (1, 3, 8, 8), 1, (1, 1, 1)),
    "volumes": (one("Transpose", perm=[0, 4, 1, 2, 3]), (1, 4, 4, 4, 3), 4, (1, 1, 1)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_channels_are_where_they_are_told_to_be(name: str, source: Open):
    row, shape, channel, (at, slower, faster) = FOLLOWED[name]
    flow = flow_of(source, row, shape, channel)
    assert flow.axes is not None
    assert holder(flow.axes, channel) == at
    assert around(flow.axes[at], channel) == (slower, faster)
    assert_told_as_it_is(flow, row, shape, channel)


@pytest.mark.parametrize(("axis", "sizes"), [(-1, [24, 8]), (-2, [3, 64]), (-3, [1, 192])])
def test_flatten_counts_from_behind(axis: int, sizes: list[int], source: Open):
    row = one("Flatten", axis=axis)
    assert list(run(model(*row), np.zeros((1, 3, 8, 8), np.float32))[0].shape) == sizes
    flow = flow_of(source, row, (1, 3, 8, 8), 1)
    assert [size(each) for each in flow.axes or ()] == sizes


def test_a_pad_may_crop(source: Open):
    row = one("Pad", "p", weights={"p": ints(0, 0, -1, 0, 0, 0, 0, -2)})
    assert [size(axis) for axis in flow_of(source, row, (1, 3, 8, 8), 1).axes or ()] == [1, 3, 7, 6]
    row = one("Pad", "p", weights={"p": ints(0, 0, -7, 0, 0, 0, 0, -7)})
    assert [size(axis) for axis in flow_of(source, row, (1, 3, 8, 8), 1).axes or ()] == [1, 3, 1, 1]


OLDER: dict[str, tuple[Row, int]] = {
    "Pad": (one("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1]), 2),
    "Unsqueeze": (one("Unsqueeze", axes=[2]), 11),
    "Squeeze": (one("Squeeze", axes=[0]), 11),
    "Slice": (one("Slice", starts=[2], ends=[6], axes=[3]), 9),
    "Resize": (one("Resize", "s", weights={"s": floats(1, 1, 2, 2)}), 10),
    "Upsample": (one("Upsample", "s", weights={"s": floats(1, 1, 2, 2)}), 9),
}


@pytest.mark.parametrize("name", OLDER)
def test_attributes_that_became_inputs_are_read_where_they_were(name: str, source: Open):
    row, opset = OLDER[name]
    flow = flow_of(source, row, (1, 3, 8, 8), 1, opset)
    assert flow.axes is not None
    assert holder(flow.axes, 1) == (0 if name == "Squeeze" else 1)
    if name not in ("Resize", "Upsample"):  # the reference implementation has no such versions of these
        assert_told_as_it_is(flow, row, (1, 3, 8, 8), 1, opset)


def test_the_axes_of_a_pad_or_a_resize_may_be_chosen(source: Open):
    padded = one("Pad", "p", "", "a", weights={"p": ints(1, 2), "a": ints(-1)})
    resized = one("Resize", "", "s", weights={"s": floats(2, 3)}, axes=[3, 2])
    for row, shape in ((padded, [1, 3, 8, 11]), (resized, None)):
        flow = flow_of(source, row, (1, 3, 8, 8), 1, 18)
        assert_told_as_it_is(flow, row, (1, 3, 8, 8), 1, 18)
        assert shape is None or [size(axis) for axis in flow.axes or ()] == shape


NOT_FOLLOWED: dict[str, tuple[Row, Sequence[int | str]]] = {
    "Transpose of other axes": (one("Transpose", perm=[0, 1, 2]), (1, 3, 8, 8)),
    "Reshape that cuts the channels": (one("Reshape", "s", weights={"s": ints(1, 2, 12, 8)}), (1, 3, 8, 8)),
    "Reshape whose sizes do not come out": (one("Reshape", "s", weights={"s": ints(1, 3, 5, -1)}), (1, 3, 8, 8)),
    "Reshape to nothing": (one("Reshape", "s", weights={"s": ints(0, 3, 8, 8)}, allowzero=1), (1, 3, 8, 8)),
    "Reshape that copies an axis that is not there": (one("Reshape", "s", weights={"s": ints(1, 3, 8, 8, 0)}), (1, 3, 8, 8)),
    "Reshape to a shape that is fed": (one("Reshape", "shape"), (1, 3, 8, 8)),
    "Unsqueeze without axes": (one("Unsqueeze"), (1, 3, 8, 8)),
    "Squeeze of whatever is one": (one("Squeeze"), (1, 3, 8, 8)),
    "Squeeze of pixels": (one("Squeeze", "a", weights={"a": ints(2)}), (1, 3, 8, 8)),
    "Squeeze of the only channel": (one("Squeeze", "a", weights={"a": ints(1)}), (1, 1, 8, 8)),
    "Pad of the channels": (one("Pad", "p", weights={"p": ints(0, 1, 0, 0, 0, 0, 0, 0)}), (1, 3, 8, 8)),
    "Pad that takes everything": (one("Pad", "p", weights={"p": ints(0, 0, -8, 0, 0, 0, 0, 0)}), (1, 3, 8, 8)),
    "Resize of the channels": (one("Resize", "", "s", weights={"s": floats(1, 2, 1, 1)}), (1, 3, 8, 8)),
    "Resize to more channels": (one("Resize", "", "", "s", weights={"s": ints(1, 6, 8, 8)}), (1, 3, 8, 8)),
    "Resize to sizes that are fed": (one("Resize", "", "", "shape"), (1, 3, 8, 8)),
    "Resize to too few sizes": (one("Resize", "", "", "s", weights={"s": ints(8, 8)}), (1, 3, 8, 8)),
    "Slice of the channels": (
        one("Slice", "b", "e", "a", weights={"b": ints(0), "e": ints(2), "a": ints(-3)}),
        (1, 3, 8, 8),
    ),
    "Slice of nothing": (one("Slice", "b", "e", "a", weights={"b": ints(8), "e": ints(9), "a": ints(2)}), (1, 3, 8, 8)),
    "Slice with a step of zero": (
        one("Slice", "b", "e", "a", "s", weights={"b": ints(0), "e": ints(9), "a": ints(2), "s": ints(0)}),
        (1, 3, 8, 8),
    ),
    "Slice from where it is told": (one("Slice", "shape", "e", weights={"e": ints(1)}), (1, 3, 8, 8)),
    "SpaceToDepth that does not come out": (one("SpaceToDepth", blocksize=3), (1, 3, 8, 8)),
    "SpaceToDepth without a size": (one("SpaceToDepth"), (1, 3, 8, 8)),
    "SpaceToDepth of a list of patches": (one("SpaceToDepth", blocksize=2), (1, 3, 8)),
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_reaches_into_the_channels_is_not_followed(name: str, source: Open):
    row, shape = NOT_FOLLOWED[name]
    path = traced(source, model(*row, shape, inputs={"shape": [4]}))
    assert path.values["out"].mixed
    assert [found.operation[:4] for found in path.operations] == [("out", row[0][0].op_type, None, None)]


def test_a_pool_of_the_channels_is_not_followed(source: Open):
    row = one("AveragePool", kernel_shape=[2, 2])
    assert flow_of(source, row, LAST, 3).axes is None


@pytest.mark.parametrize(
    ("row", "padded"),
    [
        (one("Pad", "p", weights={"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}), True),
        (one("Pad", "p", weights={"p": ints(0, 0, 0, 0, 0, 0, 0, 0)}), False),
        (one("Pad", "p", weights={"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}, mode="reflect"), False),
        (one("Pad", "fed"), True),
        (one("Pad", "fed", mode="edge"), False),
        (one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), False),
    ],
    ids=["zeros", "none", "reflected", "fed", "fed, edge", "pool"],
)
def test_only_a_pad_puts_zeros_around_the_image(row: Row, padded: bool, source: Open):
    path = traced(source, model(*row, inputs={"fed": [8]}))
    assert path.values["out"].padded == padded


COUNTING_ZEROS: dict[str, Row] = {
    "AveragePool": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "Resize": one(
        *("Resize", "roi", "", "sizes"),
        weights={"roi": floats(0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5), "sizes": ints(1, 3, 8, 8)},
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
    ),
}


@pytest.mark.parametrize("name", COUNTING_ZEROS)
def test_zeros_that_are_averaged_with_pixels_are_zeros_too(name: str, source: Open):
    row = COUNTING_ZEROS[name]
    (out,) = run(model(*row), np.ones((1, 3, 8, 8), np.float32))
    assert out.min() < 1 == out.max()
    assert traced(source, model(*row)).values["out"].padded


def cropped(*inputs: str, **weights: np.ndarray) -> Row:
    attributes = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    return one("Resize", *inputs, weights=weights, **attributes)


REGIONS: dict[str, tuple[Row, bool]] = {
    "inside": (cropped("roi", "", "s", roi=floats(0, 0, 0.25, 0, 1, 1, 0.75, 1), s=ints(1, 3, 8, 8)), False),
    "the whole image": (cropped("roi", "", "s", roi=floats(0, 0, 0, 0, 1, 1, 1, 1), s=ints(1, 3, 4, 4)), False),
    "before it": (cropped("roi", "", "s", roi=floats(0, 0, -0.1, 0, 1, 1, 1, 1), s=ints(1, 3, 8, 8)), True),
    "after it": (cropped("roi", "", "s", roi=floats(0, 0, 0, 0, 1, 1, 1, 1.1), s=ints(1, 3, 8, 8)), True),
    "fed": (cropped("fed", "", "s", s=ints(1, 3, 8, 8)), True),
}


@pytest.mark.parametrize("name", REGIONS)
def test_a_cropped_resize_puts_zeros_where_it_leaves_the_image(name: str, source: Open):
    row, padded = REGIONS[name]
    made = model(*row, inputs={"fed": [8]})
    assert traced(source, made).values["out"].padded == padded
    if name != "fed":
        (out,) = run(made, np.ones((1, 3, 8, 8), np.float32), fed=np.zeros(8, np.float32))
        assert (out.min() < 1) == padded


def test_pads_that_are_fed_leave_the_sizes_open(source: Open):
    flow = traced(source, model(*one("Pad", "fed"), inputs={"fed": [8]})).values["out"]
    assert [size(axis) for axis in flow.axes or ()] == [1, 3, opened(2), opened(3)]


def test_sizes_that_the_file_leaves_open_stay_open(source: Open):
    row = one("Slice", "b", "e", "a", weights={"b": ints(1), "e": ints(5), "a": ints(2)})
    flow = flow_of(source, row, ("n", 3, "h", 8), 1)
    sizes = [size(axis) for axis in flow.axes or ()]
    assert sizes[1::2] == [3, 8]
    assert min(sizes[::2]) >= OPEN


COUNTED: dict[str, tuple[Row, Dims, dict[str, tuple[int, int]]]] = {
    "both": (
        shuffled([1, 3, 4, 2, 4, 2], [0, 1, 3, 5, 2, 4], [1, 12, 4, 4]),
        (1, 3, 8, 8),
        {"first": (1, 1), "second": (1, 4)},
    ),
    "one that takes what is left": (
        shuffled([1, 3, 4, 2, 4, 2], [0, 1, 3, 5, 2, 4], [1, -1, 4, 4]),
        (1, 3, 8, 8),
        {"first": (1, 1)},
    ),
    "none where it is copied": (one("Reshape", "s", weights={"s": ints(0, 0, -1)}), (1, 3, 8, 8), {}),
    "sizes": (one("Resize", "", "", "s", weights={"s": ints(1, 3, 12, 12)}), (1, 3, 8, 8), {"s": (1, 1)}),
}


@pytest.mark.parametrize("name", COUNTED)
def test_stored_numbers_that_count_the_channels_are_told(name: str, source: Open):
    row, shape, expected = COUNTED[name]
    path = traced(source, model(*row, shape))
    assert {count.weight.name: (count.at, count.each) for count in path.counts} == expected
    assert all(count.reader in path.model.nodes for count in path.counts)


def test_a_minus_one_elsewhere_leaves_the_channels_to_be_edited(source: Open):
    path = traced(source, model(*one("Reshape", "s", weights={"s": ints(-1, 3, 8, 8)})))
    assert [(count.weight.name, count.at, count.each) for count in path.counts] == [("s", 1, 1)]


def test_a_number_that_is_the_channels_and_the_batch_at_once_is_not_followed(source: Open):
    nodes = [
        node("Shape", ["image"], ["sizes"]),
        node("Slice", ["sizes", "two", "four"], ["pixels"]),
        node("Concat", ["batch", "c", "pixels"], ["s"], axis=0),
        node("Reshape", ["image", "s"], ["out"]),
    ]
    weights = {"two": ints(2), "four": ints(4), "c": ints(3), "batch": ints(3)}
    assert traced(source, model(nodes, weights, (3, 3, 8, 8))).values["out"].axes is not None
    nodes[2].input[0] = "c"
    assert traced(source, model(nodes, weights, (3, 3, 8, 8))).values["out"].axes is None

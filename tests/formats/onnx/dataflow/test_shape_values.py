"""Shapes that a graph computes: the numbers now are those that onnx's reference implementation finds, and so are those with one
channel more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import NodeProto, TensorProto

from chkpt_channels.formats.onnx.dataflow.axes import holder, image_axes, size
from chkpt_channels.formats.onnx.dataflow.shape_values import MOST_NUMBERS, Number, Numbers
from tests.support.onnx_models import SIZE, Open, floats, ints, model, node, opened, run, traced

SHAPE = node("Shape", ["image"], ["s"])
STORED = {
    **{f"k{k}": np.array(k, np.int64) for k in range(4)},
    **{"zero": ints(0), "one": ints(1), "two": ints(2), "three": ints(3), "minus": ints(-1), "far": ints(1 << 40)},
    **{"all": ints(3, 2, 1, 0), "half": floats(0.5), "scalar": np.array(2, np.int64)},
}

COMPUTED: dict[str, Sequence[NodeProto]] = {
    "Shape": [SHAPE, node("Identity", ["s"], ["out"])],
    "Shape of a part": [node("Shape", ["image"], ["out"], start=1, end=3)],
    "Shape up to the last but one": [node("Shape", ["image"], ["out"], end=-1)],
    "Size": [node("Size", ["image"], ["out"])],
    "Gather of one": [SHAPE, node("Gather", ["s", "k1"], ["out"])],
    "Gather from behind": [SHAPE, node("Gather", ["s", "minus"], ["out"])],
    "Gather of all, turned": [SHAPE, node("Gather", ["s", "all"], ["out"])],
    "Slice": [SHAPE, node("Slice", ["s", "one", "far"], ["out"])],
    "Slice backwards": [SHAPE, node("Slice", ["s", "three", "zero", "zero", "minus"], ["out"])],
    "Slice from behind": [SHAPE, node("Slice", ["s", "minus", "far", "zero"], ["out"])],
    "Concat": [SHAPE, node("Slice", ["s", "zero", "two"], ["a"]), node("Concat", ["a", "minus", "three"], ["out"], axis=0)],
    "Unsqueeze of one": [
        SHAPE,
        node("Gather", ["s", "k1"], ["a"]),
        node("Unsqueeze", ["a", "zero"], ["b"]),
        node("Concat", ["b", "two"], ["out"], axis=0),
    ],
    "Squeeze, Cast": [
        SHAPE,
        node("Gather", ["s", "one"], ["a"]),
        node("Squeeze", ["a", "zero"], ["b"]),
        node("Cast", ["b"], ["out"], to=TensorProto.INT32),
    ],
    "arithmetic": [
        SHAPE,
        node("Gather", ["s", "k1"], ["c"]),
        node("Gather", ["s", "k2"], ["h"]),
        node("Mul", ["c", "scalar"], ["a"]),
        node("Add", ["a", "h"], ["b"]),
        node("Sub", ["b", "k3"], ["d"]),
        node("Div", ["d", "scalar"], ["out"]),
    ],
    "one number with all": [SHAPE, node("Mul", ["two", "s"], ["out"])],
    "number by number": [SHAPE, node("Mul", ["s", "all"], ["out"])],
}


@pytest.mark.parametrize("name", COMPUTED)
def test_numbers_are_what_the_graph_computes(name: str, source: Open):
    nodes = COMPUTED[name]
    path = traced(source, model(nodes, STORED, (2, 3, 6, 8)))
    found = path._numbers.known["out"]
    for channels, numbers in ((3, [n.now for n in found]), (4, [n.then for n in found])):
        (expected,) = run(model(nodes, STORED, (2, channels, 6, 8)), np.zeros((2, channels, 6, 8), np.float32))
        assert numbers == expected.reshape(-1).tolist()
    assert not path.operations


@pytest.mark.parametrize("minuend", ["k1", "k0"])
def test_a_division_of_a_negative_number_goes_toward_zero(minuend: str, source: Open):
    """Half of what is missing in front: (1 - 6) / 2, as ceilings are computed."""
    nodes = [
        SHAPE,
        node("Gather", ["s", "k2"], ["h"]),
        node("Add", ["h", "k1"], ["odd"]),
        node("Sub", [minuend, "odd" if minuend == "k0" else "h"], ["negative"]),
        node("Div", ["negative", "scalar"], ["out"]),
    ]
    (number,) = traced(source, model(nodes, STORED, (2, 3, 6, 8)))._numbers.known["out"]
    (expected,) = run(model(nodes, STORED, (2, 3, 6, 8)), np.zeros((2, 3, 6, 8), np.float32))
    assert number.now == expected


UNKNOWN: dict[str, tuple[Sequence[NodeProto], bool]] = {
    "Cast to floats": ([SHAPE, node("Cast", ["s"], ["out"], to=TensorProto.FLOAT)], True),
    "Gather outside": ([SHAPE, node("Gather", ["s", "far"], ["out"])], True),
    "Gather by a number of channels": ([SHAPE, node("Gather", ["s", "k1"], ["c"]), node("Gather", ["all", "c"], ["out"])], True),
    "Slice by a number of channels": (
        [SHAPE, node("Gather", ["s", "one"], ["c"]), node("Slice", ["all", "zero", "c"], ["out"])],
        True,
    ),
    "division by nothing": ([SHAPE, node("Div", ["s", "zero"], ["out"])], True),
    "a number that is too large": ([SHAPE, node("Mul", ["s", "far"], ["a"]), node("Mul", ["a", "far"], ["out"])], True),
    "Expand": ([SHAPE, node("Expand", ["half", "s"], ["out"])], True),
    "Concat with what is fed": ([SHAPE, node("Concat", ["s", "fed"], ["out"], axis=0)], True),
    "what has nothing to do with the channels": (
        [SHAPE, node("Gather", ["s", "k2"], ["h"]), node("Range", ["h", "k0", "k1"], ["out"])],
        False,
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_computed_blocks_if_it_depends_on_the_channels(name: str, source: Open):
    nodes, blocks = UNKNOWN[name]
    path = traced(source, model(nodes, STORED, inputs={"fed": [1]}))
    assert "out" not in path._numbers.known
    assert [found.operation.where for found in path.operations] == (["out"] if blocks else [])


def test_a_list_may_be_as_long_as_the_limit(source: Open):
    for more, known in ((MOST_NUMBERS - 4, True), (MOST_NUMBERS - 3, False)):
        path = traced(source, model([SHAPE, node("Concat", ["s", "more"], ["out"], axis=0)], {"more": ints(*range(more))}))
        assert ("out" in path._numbers.known) == known


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (ints(5, 6), [5, 6]),
        (np.array([5, 6], np.int32), [5, 6]),
        (np.array(5, np.int64), [5]),
        (floats(5), None),
        (np.array([5], np.uint8), None),
        (ints(5).reshape(1, 1), None),
        (ints(*range(MOST_NUMBERS + 1)), None),
    ],
    ids=["int64", "int32", "scalar", "float", "uint8", "table", "long"],
)
def test_stored_numbers_are_whole_and_few(stored: np.ndarray, read: list[int] | None, source: Open):
    checkpoint = opened(source, model([node("Reshape", ["image", "n"], ["out"])], {"n": stored}))
    numbers, (reader,) = Numbers(checkpoint.model, 1, 3), checkpoint.model.nodes
    found = numbers.of(reader, 1)
    assert (found and [n.now for n in found]) == read
    for at, number in enumerate(found or ()):
        assert (number.weight, number.at, number.reader) == (checkpoint.model.weights["n"], at, reader)
        assert not number.follows


def test_numbers_that_are_left_out_are_those_of_the_attribute(source: Open):
    nodes = [node("Unsqueeze", ["image"], ["x"], axes=[2]), node("Unsqueeze", ["x", "fed"], ["out"])]
    checkpoint = opened(source, model(nodes, inputs={"fed": [1]}))
    numbers = Numbers(checkpoint.model, 1, 3)
    first, second = checkpoint.model.nodes
    assert numbers.plain(first, 1, "axes") == [2]
    assert numbers.plain(second, 1, "axes") is None


def test_a_number_of_channels_is_no_plain_number(source: Open):
    nodes = [SHAPE, node("Slice", ["image", "s", "s"], ["out"])]
    checkpoint = opened(source, model(nodes))
    numbers = Numbers(checkpoint.model, 1, 3)
    numbers.shape_of(checkpoint.model.nodes[0], image_axes([1, 3, SIZE, SIZE]))
    assert numbers.of(checkpoint.model.nodes[1], 1) == [Number(1, 1), Number(3, 4), Number(SIZE, SIZE), Number(SIZE, SIZE)]
    assert numbers.plain(checkpoint.model.nodes[1], 1, "starts") is None


def test_a_computed_list_that_others_read_too_is_not_edited(source: Open):
    nodes = [
        SHAPE,
        node("Slice", ["s", "zero", "one"], ["n"]),
        node("Concat", ["n", "three", "minus"], ["shape"], axis=0),
        node("Reshape", ["image", "shape"], ["out"]),
    ]
    assert [count.weight.name for count in traced(source, model(nodes, STORED)).counts] == ["three"]
    nodes.append(node("Reshape", ["more", "shape"], ["other"]))
    made = model(nodes, STORED, inputs={"more": [3]}, outputs=("out", "other"))
    assert traced(source, made).values["out"].axes is None


@pytest.mark.parametrize(
    ("made", "opset", "scales"),
    [
        (node("Resize", ["image", "", "k"], ["out"]), 17, [1.0, 1.0, 2.0, 2.0]),
        (node("Resize", ["image", "k"], ["out"]), 10, [1.0, 1.0, 2.0, 2.0]),
        (node("Upsample", ["image", "k"], ["out"]), 9, [1.0, 1.0, 2.0, 2.0]),
        (node("Upsample", ["image"], ["out"], scales=[1.0, 1.0, 3.0, 3.0]), 7, [1.0, 1.0, 3.0, 3.0]),
        (node("Resize", ["image", "", "fed"], ["out"]), 17, []),
    ],
    ids=["Resize", "Resize of opset 10", "Upsample", "Upsample of opset 7", "fed"],
)
def test_scales_are_read_where_the_version_has_them(made: NodeProto, opset: int, scales: list[float], source: Open):
    checkpoint = opened(source, model([made], {"k": floats(1, 1, 2, 2)}, inputs={"fed": [4]}, opset=opset))
    numbers = Numbers(checkpoint.model, 1, 3)
    assert numbers.scales(checkpoint.model.nodes[0]) == scales


def space_to_depth() -> Sequence[NodeProto]:
    """view(N, C, H / 2, 2, W / 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(N, 4 C, H / 2, W / 2) as it is traced with open sizes."""
    nodes = [SHAPE]
    for k, name in enumerate("nchw"):
        nodes += [node("Gather", ["s", f"k{k}"], [f"{name}_"]), node("Unsqueeze", [f"{name}_", "zero"], [name])]
    nodes += [node("Div", ["h", "two"], ["h2"]), node("Div", ["w", "two"], ["w2"])]
    nodes += [node("Concat", ["n", "c", "h2", "two", "w2", "two"], ["first"], axis=0)]
    nodes += [node("Mul", ["c_", "four"], ["c4_"]), node("Unsqueeze", ["c4_", "zero"], ["c4"])]
    nodes += [node("Concat", ["n", "c4", "h2", "w2"], ["second"], axis=0)]
    nodes += [node("Reshape", ["image", "first"], ["cut"]), node("Transpose", ["cut"], ["turned"], perm=[0, 3, 5, 1, 2, 4])]
    return [*nodes, node("Reshape", ["turned", "second"], ["out"])]


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), ("n", 3, "h", "w"), (2, None, 8, 8)], ids=str)
def test_a_shape_that_is_computed_follows_the_channels_by_itself(shape: tuple, source: Open):
    path = traced(source, model(space_to_depth(), {**STORED, "four": np.array(4, np.int64)}, shape))
    axes = path.values["out"].axes
    assert axes is not None
    assert holder(axes, 1) == 1
    assert [piece.size for piece in axes[1]][:2] == [2, 2]
    assert axes[1][2].of == 1
    assert size(axes[1]) == 4 * size(path.values["image"].axes[1])
    assert (path.counts, path.operations) == ([], [])

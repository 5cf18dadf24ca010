"""Which inputs of a graph are images, and which of their axes holds the channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import ModelProto, NodeProto

from chkpt_channels.formats.onnx.dataflow.image_inputs import MOST_CHANNELS
from chkpt_channels.formats.onnx.dataflow.image_inputs import images as images_of
from tests.support.onnx_models import Dims, Open, branch, ints, model, node, noise, opened

CONV = node("Conv", ["image", "kernel"], ["out"])
TURNED = [node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]), node("Conv", ["x", "kernel"], ["out"])]
FLAT = [node("Flatten", ["image"], ["x"]), node("MatMul", ["x", "kernel"], ["out"])]


def images(source: Open, made: ModelProto, named: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Each image, and its axis of the channels."""
    checkpoint = opened(source, made)
    return [(path.image.name, path.channel) for path in images_of(checkpoint.model, named).traces]


SHAPES: dict[str, tuple[list[NodeProto], tuple[int, ...], Dims, int | None]] = {
    "channels first": ([CONV], (5, 3, 3, 3), (1, 3, 8, 8), 1),
    "channels last": (TURNED, (5, 3, 3, 3), (1, 8, 8, 3), 3),
    "open sizes": ([CONV], (5, 3, 3, 3), ("n", 3, "h", "w"), 1),
    "channels that are open": ([CONV], (5, 3, 3, 3), ("n", "c", "h", "w"), 1),
    "channels that are open, last": (TURNED, (5, 3, 3, 3), ("n", "h", "w", "c"), 3),
    "more channels than pixels": ([CONV], (5, 12, 1, 1), (1, 12, 4, 4), 1),
    "as many channels as the most": ([CONV], (5, MOST_CHANNELS, 3, 3), (1, MOST_CHANNELS, 64, 64), 1),
    "too many channels": ([CONV], (5, MOST_CHANNELS + 1, 3, 3), (1, MOST_CHANNELS + 1, 64, 64), None),
    "a volume": ([CONV], (5, 1, 3, 3, 3), (1, 1, 8, 8, 8), 1),
    "a line": ([CONV], (5, 3, 3), (1, 3, 8), 1),
    "a list": ([node("MatMul", ["image", "kernel"], ["out"])], (3, 5), (1, 3), None),
    "six axes": ([CONV], (5, 3, 3, 3, 3, 3), (1, 3, 4, 4, 4, 4), None),
    "no convolution": ([node("Relu", ["image"], ["out"])], (5, 3, 3, 3), (1, 3, 8, 8), None),
    "flat pixels": (FLAT, (192, 5), (1, 3, 8, 8), 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_image_has_a_shape_and_reaches_a_kernel(name: str, source: Open):
    nodes, kernel, shape, channel = SHAPES[name]
    found = images(source, model(nodes, {"kernel": noise(*kernel)}, shape))
    assert found == ([] if channel is None else [("image", channel)])


def test_behind_products_alone_the_shortest_axis_holds_the_channels(source: Open):
    kernel = {"kernel": noise(192, 5)}
    assert images(source, model(FLAT, kernel, (1, 3, 8, 8))) == [("image", 1)]
    assert images(source, model(FLAT, kernel, (1, 8, 8, 3))) == [("image", 3)]
    assert images(source, model(FLAT, kernel, (1, 12, 4, 4))) == [("image", 3)]


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 3, 8, 8)], ids=str)
def test_an_input_that_is_named_is_taken_in_any_shape(shape: Dims, source: Open):
    made = model([CONV], {"kernel": noise(5, 3, *[3] * (len(shape) - 2))}, shape, inputs={"more": [1, 3, 8, 8]})
    assert images(source, made, ["image"]) == [("image", 1)]


def test_an_input_that_is_named_leaves_the_others(source: Open):
    nodes = [CONV, node("Conv", ["more", "kernel"], ["other"])]
    made = model(nodes, {"kernel": noise(5, 3, 3, 3)}, inputs={"more": [1, 3, 8, 8]}, outputs=("out", "other"))
    assert images(source, made) == [("image", 1), ("more", 1)]
    assert images(source, made, ["more"]) == [("more", 1)]


def test_constants_that_leaked_as_inputs_are_no_images(source: Open):
    nodes = [
        node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]),
        node("Transpose", ["mean"], ["m"], perm=[0, 3, 1, 2]),
        node("Sub", ["x", "m"], ["y"]),
        node("Conv", ["y", "kernel"], ["out"]),
    ]
    made = model(nodes, {"kernel": noise(5, 3, 3, 3)}, (1, 8, 8, 3), inputs={"mean": [1, 1, 1, 3]})
    assert [name for name, _ in images(source, made)] == ["image"]


def test_initializers_that_are_listed_as_inputs_are_no_images(source: Open):
    made = model([CONV], {"kernel": noise(5, 3, 3, 3)}, inputs={"kernel": [5, 3, 3, 3]})
    assert images(source, made) == [("image", 1)]


def test_an_input_that_only_gives_a_shape_is_no_image(source: Open):
    nodes = [CONV, node("Shape", ["like"], ["s"]), node("Reshape", ["out", "s"], ["other"])]
    made = model(nodes, {"kernel": noise(5, 3, 3, 3)}, inputs={"like": [1, 5, 6, 6]}, outputs=("other",))
    assert images(source, made) == [("image", 1)]


def test_the_axis_that_a_convolution_takes_counts_more_than_one_that_a_product_takes(source: Open):
    """Channels first for the convolution, and the last axis goes into a product."""
    nodes = [CONV, node("MatMul", ["image", "product"], ["other"])]
    made = model(nodes, {"kernel": noise(5, 3, 3, 3), "product": noise(8, 5)}, outputs=("out", "other"))
    assert images(source, made) == [("image", 1)]


def test_channels_that_are_not_where_a_kernel_takes_them_are_still_an_image(source: Open):
    """Gathered ones: nothing is edited there, but one channel can be stacked."""
    nodes = [node("Gather", ["image", "order"], ["x"], axis=1), node("Conv", ["x", "kernel"], ["out"])]
    checkpoint = opened(source, model(nodes, {"order": ints(2, 1, 0), "kernel": noise(5, 3, 3, 3)}))
    (path,) = images_of(checkpoint.model).traces
    assert (path.channel, [reached.layout for reached in path.reached]) == (1, [None])


def test_a_product_of_patches_takes_the_channels_whole(source: Open):
    """Four frames of three channels: the place of an axis does not say which it is."""
    steps = [
        *(node("Reshape", ["image", "flat"], ["f"]), node("Reshape", ["f", "rows"], ["r"])),
        *(node("Transpose", ["r"], ["t"], perm=[0, 2, 4, 3, 5, 1]), node("Reshape", ["t", "patches"], ["p"])),
        node("MatMul", ["p", "kernel"], ["out"]),
    ]
    sizes = {"flat": ints(-1, 3, 8, 8), "rows": ints(-1, 3, 2, 4, 2, 4), "patches": ints(-1, 4, 48)}
    assert images(source, model(steps, {**sizes, "kernel": noise(48, 5)}, (1, 4, 3, 8, 8))) == [("image", 2)]


def test_an_axis_of_one_is_not_the_channels_of_an_axis_that_is_cut(source: Open):
    """[1, 12, 8, 8] holds four frames of three channels, which are selected one by one and mixed."""
    then, other = branch("then", [node("Div", ["g", "half"], ["a"])]), branch("else", [node("Identity", ["g"], ["b"])])
    nodes = [
        *(node("Reshape", ["image", "sizes"], ["r"]), node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4])),
        *(node("Gather", ["t", "order"], ["g"], axis=1), node("Mul", ["two", "two"], ["half"])),
        *(node("If", ["yes"], ["x"], then_branch=then, else_branch=other), node("Conv", ["x", "kernel"], ["out"])),
    ]
    weights = {"sizes": ints(-1, 4, 3, 8, 8), "order": ints(2, 1, 0), "kernel": noise(5, 3, 3, 3, 3)}
    weights |= {"yes": np.array(True), "two": noise(1, 3, 1, 1, 1)}
    assert images(source, model(nodes, weights, (1, 12, 8, 8))) == []


def test_of_a_video_behind_what_mixes_the_shortest_axis_may_be_the_frames(source: Open):
    nodes = [node("Softmax", ["image"], ["s"], axis=2), node("Flatten", ["s"], ["x"]), node("MatMul", ["x", "kernel"], ["out"])]
    assert images(source, model(nodes, {"kernel": noise(4 * 5 * 64, 5)}, (1, 4, 5, 8, 8))) == []
    assert images(source, model(nodes, {"kernel": noise(5 * 64, 5)}, (1, 5, 8, 8))) == [("image", 1)]


def test_pixels_in_a_row_with_channels_that_are_mixed_are_not_known(source: Open):
    """[1, 192] is no image of one channel: its rows and columns are of one axis, which holds the channels too."""
    nodes = [
        *(node("Reshape", ["image", "sizes"], ["r"]), node("Gather", ["r", "order"], ["g"], axis=3)),
        *(node("Transpose", ["g"], ["x"], perm=[0, 3, 1, 2]), node("Conv", ["x", "kernel"], ["out"])),
    ]
    weights = {"sizes": ints(-1, 8, 8, 3), "order": ints(2, 1, 0), "kernel": noise(5, 3, 3, 3)}
    assert images(source, model(nodes, weights, (1, 192))) == []
    nodes = [
        node("Reshape", ["image", "sizes"], ["r"]),
        node("Gather", ["r", "order"], ["x"], axis=1),
        node("Conv", ["x", "kernel"], ["out"]),
    ]
    assert images(source, model(nodes, {**weights, "sizes": ints(-1, 3, 8, 8)}, (12, 8, 8))) == []


def test_frames_of_no_declared_number_are_no_part_of_the_columns(source: Open):
    """[N, T, 3, H, W] to [-1, 3, 8, 8]: sizes that are open are what the Reshape says, and are not cut."""
    nodes = [node("Reshape", ["image", "sizes"], ["x"]), node("Conv", ["x", "kernel"], ["out"])]
    weights = {"sizes": ints(-1, 3, 8, 8), "kernel": noise(5, 3, 3, 3)}
    assert images(source, model(nodes, weights, ("n", "t", 3, "h", "w"))) == [("image", 2)]


def test_a_product_behind_what_is_not_followed_does_not_say_where_channels_are_that_are_open(source: Open):
    nodes = [node("Reshape", ["image", "rows"], ["x"]), node("MatMul", ["x", "kernel"], ["out"])]
    weights = {"rows": ints(-1, 48), "kernel": noise(48, 5)}
    assert images(source, model(nodes, weights, ("n", "h", "w", "c"))) == []

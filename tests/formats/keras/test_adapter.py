"""A convolution in front of a Keras model: where it may stand, its layer and its weights. Keras loads it in tests/frameworks."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from chkpt_channels import convert, verify
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import ChannelMap, FirstConv, Tensor
from chkpt_channels.formats.keras.adapter import behind, fold_obstacle, obstacle, put_in_front
from chkpt_channels.formats.keras.config import parse
from chkpt_channels.formats.keras.dataflow.trace import traces
from tests.formats.keras.test_config import old, old_model, sequential
from tests.formats.keras.test_h5_file import Entry, configuration, conv, image, layer, model, tensor, weights, write

A = ((0.5, 0.25, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0), (-1.0, 0.0, 2.0, 0.0))
T = (0.25, 0.0, -1.0)


def put(entry: Entry, offset: tuple[float, ...] = T) -> tuple[Entry, Any]:
    document, top = deepcopy(entry), parse(entry)
    assert top
    images = [trace.image for trace in traces(top)]
    assert not obstacle(top, images, {})
    return document, put_in_front(document, top, images[0], ChannelMap(A, offset))


def test_in_a_graph():
    entry = model(image(), conv("a", "image"), layer("Add", "end", [[tensor("a"), tensor("image")]]))
    document, added = put(entry)
    layers = document["config"]["layers"]
    assert [each["name"] for each in layers] == ["image", "image_adapter", "a", "end"]
    assert layers[0]["config"]["batch_shape"] == [None, 8, 8, 4]
    (call,) = layers[1]["inbound_nodes"]
    assert call["args"][0]["config"] == {"shape": [None, 8, 8, 4], "dtype": "float32", "keras_history": ["image", 0, 0]}
    found = parse(document)
    assert found
    assert [taker.name for taker, _, _ in found.takers["image", 0, 0]] == ["image_adapter"]
    assert (added.kind, added.name) == ("Conv2DTranspose", "image_adapter")
    assert np.array_equal(added.weights["kernel"], np.array(A)[None, None])
    assert np.array_equal(added.weights["bias"], T)


def test_without_a_constant_it_has_no_bias():
    document, added = put(model(image(), conv("a", "image")), ())
    assert list(added.weights) == ["kernel"]
    assert document["config"]["layers"][1]["config"]["use_bias"] is False


def test_another_class_where_the_first_is_held():
    _, added = put(model(image(), conv("a", "image"), conv("b", "a", kind="Conv2DTranspose")))
    assert added.kind == "Dense"
    assert np.array_equal(added.weights["kernel"], np.array(A).T)


@pytest.mark.parametrize("has_input", [True, False])
def test_in_a_sequential(has_input: bool):
    first = [layer("InputLayer", "image", batch_shape=[None, 8, 8, 3])] if has_input else []
    stem = conv("a") if has_input else conv("a", batch_input_shape=[None, 8, 8, 3])
    document, added = put(sequential(*first, stem))
    layers = document["config"]["layers"]
    names = [each["config"]["name"] for each in layers]
    assert names == (["image", "image_adapter", "a"] if has_input else ["a_adapter", "a"])
    assert added.name == names[-2]
    shapes = [key for each in layers for key in ("batch_shape", "batch_input_shape") if key in each["config"]]
    assert len(shapes) == 1
    assert layers[0]["config"][shapes[0]] == [None, 8, 8, 4]


def test_as_keras_2_writes_it():
    stem = old("Conv2D", "a", [["image", 0, 0, {}]], filters=4, kernel_size=[3, 3], padding="same")
    first = old("InputLayer", "image", batch_input_shape=[None, 8, 8, 3])
    document, _ = put(old_model(first, stem, inputs=[["image", 0, 0]], outputs=[["a", 0, 0]]))
    layers = document["config"]["layers"]
    assert layers[1]["inbound_nodes"] == [[["image", 0, 0, {}]]]
    assert layers[2]["inbound_nodes"] == [[["image_adapter", 0, 0, {}]]]
    assert "module" not in layers[1]


SLOT = {"optimizer/vars/2": Tensor("optimizer/vars/2", BY_NAME["F32"], (3, 3, 3, 4), "optimizer")}
OBSTACLES: dict[str, tuple[Entry, bool, str]] = {
    "two inputs": (model(image(), image("mask", 1), conv("a", "image"), inputs=["image", "mask"]), False, "takes 2 inputs"),
    "bytes": (
        model(layer("InputLayer", "image", batch_shape=[None, 8, 8, 3], dtype="uint8"), conv("a", "image")),
        False,
        "takes image as uint8",
    ),
    "trained": (model(image(), conv("a", "image")), True, "holds an optimizer's state"),
    "every class": (
        model(image(), conv("a", "image"), conv("b", "a", kind="Conv2DTranspose"), layer("Dense", "c", "b", units=2)),
        False,
        "holds layers of each class",
    ),
    "inside": (
        sequential(sequential(conv("a", batch_input_shape=[None, 8, 8, 3])) | {"name": "inner"}),
        False,
        "inside of another model",
    ),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_where_none_may_stand(what: str):
    entry, is_trained, message = OBSTACLES[what]
    top = parse(entry)
    assert top
    assert message in obstacle(top, [trace.image for trace in traces(top)], SLOT if is_trained else {})


def test_its_weights_are_the_first_that_an_h5_lists(tmp_path: Path):
    before, after = tmp_path / "a.h5", tmp_path / "b.h5"
    write(before, model(image(), conv("stem", "image")), {"stem/stem": weights()}, layer_names=["image", "stem"])
    convert(before, after, to=4, method="adapter")
    with h5py.File(after) as file:
        groups = file["model_weights"]
        assert list(groups.attrs["layer_names"]) == ["image_adapter", "image", "stem"]
        (name,) = groups["image_adapter"].attrs["weight_names"]
        assert groups["image_adapter"][name].shape == (1, 1, 3, 4)
    assert [each["name"] for each in configuration(after)["config"]["layers"]] == ["image", "image_adapter", "stem"]
    assert verify(before, after, to=4, method="adapter").ok
    again = tmp_path / "c.h5"
    convert(before, again, to=4, method="adapter")
    assert again.read_bytes() == after.read_bytes()


def kernel(*shape: int) -> FirstConv:
    return FirstConv(Tensor("front/kernel", BY_NAME["F32"], shape), Layout("HWIO"), 3, "graph")


FRONT = conv("front", "image")
KEPT: dict[str, tuple[Entry, FirstConv, dict[str, Tensor], str]] = {
    "none": (model(image(), FRONT), kernel(1, 1, 3, 4), {}, ""),
    "a window": (model(image(), FRONT), kernel(1, 3, 3, 4), {}, "is no 1×1 convolution that takes every pixel"),
    "strides": (model(image(), conv("front", "image", strides=[1, 2])), kernel(1, 1, 3, 4), {}, "is no 1×1 convolution that"),
    "no strides": (model(image(), conv("front", "image", strides=[{}])), kernel(1, 1, 3, 4), {}, "is no 1×1 convolution that"),
    "an activation": (
        model(image(), conv("front", "image", activation="tanh")),
        kernel(1, 1, 3, 4),
        {},
        "has the activation 'tanh'",
    ),
    "numbered": (
        model(image(), FRONT),
        kernel(1, 1, 3, 4),
        {"layers/conv2d/vars/0": kernel(1, 1).tensor},
        "is one of the layers",
    ),
    "trained": (model(image(), FRONT), kernel(1, 1, 3, 4), {"slot": next(iter(SLOT.values()))}, "has a part in"),
    "another class": (model(image(), layer("Dense", "front", "image", units=3)), kernel(1, 1, 3, 4), {}, "is a Dense"),
    "two calls": (
        old_model(old("InputLayer", "image"), old("Conv2D", "front", [["image", 0, 0, {}]], [["image", 0, 0, {}]])),
        kernel(1, 1, 3, 4),
        {},
        "is called more than once",
    ),
    "without an input": (
        sequential(conv("front", batch_input_shape=[None, 8, 8, 3])),
        kernel(1, 1, 3, 4),
        {},
        "states the shape of the input",
    ),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_can_be_taken_out(what: str):
    entry, first, tensors, message = KEPT[what]
    top = parse(entry)
    assert top
    why, hint = fold_obstacle(top, top.layers["front"], first, tensors)
    assert message in why
    assert bool(message) == bool(why)
    assert bool(hint) == bool(tensors)


def test_what_follows_it_is_an_image_of_its_own():
    """Its channels are the filters; the shapes that repeat them are known, and the input's are none of them."""
    top = parse(model(image(), FRONT, conv("a", "front")))
    assert top
    trace = behind(top, top.layers["front"], kernel(1, 1, 3, 4))
    assert (trace.image.channels, trace.image.axis, trace.image.rank) == (4, 3, 4)
    assert [reached.layer.name for reached in trace.reached] == ["a"]
    assert trace.entrance == []
    assert not any(where.startswith("layers/image") for where in trace.numbers)

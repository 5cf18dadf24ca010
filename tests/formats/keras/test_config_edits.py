"""Edits of a configuration: spelled as before, and a layer that repeats the channel, by what that layer does to numbers."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.core.errors import Location
from chkpt_channels.formats.keras.config import at, parse
from chkpt_channels.formats.keras.config_edits import can_stack, choose, encoder, set_at, stack, take_out
from chkpt_channels.formats.keras.dataflow.effects import Image
from chkpt_channels.formats.keras.dataflow.trace import traces
from tests.formats.keras.test_config import old, old_model, sequential
from tests.formats.keras.test_h5_file import Entry, conv, image, layer, model, tensor

PLACE = Location("a.h5", "model_config")
DOCUMENT = {"class_name": "Sequential", "config": {"name": "größe", "layers": [1, 2.5, None, True]}}

# Spelling


@pytest.mark.parametrize(
    "style",
    [
        {},
        {"ensure_ascii": False},
        {"separators": (",", ":")},
        {"separators": (",", ":"), "ensure_ascii": False},
        {"indent": 1},
        {"indent": 2},
        {"indent": 4},
    ],
    ids=str,
)
def test_an_edit_is_spelled_as_its_writer_would(style: dict[str, Any]):
    encode = encoder(json.dumps(DOCUMENT, **style), deepcopy(DOCUMENT), PLACE)
    edited = {**DOCUMENT, "more": ["ü", 1]}
    assert encode(edited) == json.dumps(edited, **style)


@pytest.mark.parametrize(
    "text",
    [json.dumps(DOCUMENT) + "\n", json.dumps(DOCUMENT, sort_keys=True, indent="\t"), json.dumps(DOCUMENT).replace("2.5", "2.50")],
)
def test_an_unknown_hand_is_refused(text: str):
    with pytest.raises(
        UnsupportedError, match=r"^a\.h5: model_config: its configuration is encoded in a JSON style that"
    ) as refused:
        encoder(text, json.loads(text), PLACE)
    assert refused.value.hint == "save it again with Keras"


def test_a_number_is_set_where_a_path_leads():
    document = {"a": [{"b": [1, 2]}]}
    set_at(document, ("a", 0, "b", 1), 7)
    assert document == {"a": [{"b": [1, 7]}]}
    choose(document, ("a", 0, "b"), [1])
    assert document == {"a": [{"b": [7]}]}


# Stack


def of(entry: Entry) -> Image:
    return traces(parse(entry))[0].image


def stacked(entry: Entry) -> Entry:
    document = deepcopy(entry)
    stack(document, of(entry))
    return document


def upsampled(config: Entry, x: np.ndarray) -> np.ndarray:
    """What UpSampling does: every step of the axes that it takes for space is repeated."""
    size = config["size"] if isinstance(config["size"], list) else [config["size"]]
    begin = 2 if config.get("data_format", "channels_last") == "channels_first" else 1
    for axis, times in enumerate(size, begin):
        x = x.repeat(times, axis)
    return x


def test_in_a_graph_the_channel_is_concatenated_with_itself():
    entry = model(image(), conv("a", "image"), layer("Add", "end", [[tensor("a"), tensor("image")]]))
    document = stacked(entry)
    layers = document["config"]["layers"]
    assert [one["name"] for one in layers] == ["image", "image_stack", "a", "end"]
    made = layers[1]
    assert (made["class_name"], made["config"]["axis"], made["config"]["dtype"]) == ("Concatenate", -1, "float32")
    (call,) = made["inbound_nodes"]
    assert [t["config"]["keras_history"] for t in call["args"][0]] == [["image", 0, 0]] * 3
    assert [t["config"]["shape"] for t in call["args"][0]] == [[None, 8, 8, 1]] * 3
    assert layers[0]["config"]["batch_shape"] == [None, 8, 8, 1]
    found = parse(document)
    assert [taker.name for taker, _, _ in found.takers["image", 0, 0]] == ["image_stack"] * 3
    assert {taker.name for taker, _, _ in found.takers["image_stack", 0, 0]} == {"a", "end"}


def test_everything_that_took_the_image_takes_the_stack():
    """Calls of inner models and the model's own outputs too, wherever Keras 2 spells them."""
    inner = old_model(
        old("InputLayer", "image"),
        old("Dense", "d", [["image", 0, 0, {}]]),
        name="inner",
        inputs=[["image", 0, 0]],
        outputs=[["d", 0, 0]],
        calls=[[["image", 0, 0, {}]]],
    )
    entry = old_model(
        old("InputLayer", "image", batch_input_shape=[None, 8, 8, 3]),
        old("Conv2D", "conv", [["image", 0, 0, {}]]),
        old("Attention", "mask", [["conv", 0, 0, {"mask": ["image", 0, 0]}]]),
        inner,
        inputs=[["image", 0, 0]],
        outputs=[["conv", 0, 0], ["image", 0, 0]],
    )
    document = stacked(entry)
    layers = {one["name"]: one for one in document["config"]["layers"]}
    assert list(layers) == ["image", "image_stack", "conv", "mask", "inner"]
    assert layers["image_stack"]["inbound_nodes"] == [[["image", 0, 0, {}]] * 3]
    assert layers["conv"]["inbound_nodes"] == [[["image_stack", 0, 0, {}]]]
    assert layers["mask"]["inbound_nodes"] == [[["conv", 0, 0, {"mask": ["image_stack", 0, 0]}]]]
    assert layers["inner"]["inbound_nodes"] == [[["image_stack", 0, 0, {}]]]
    assert layers["inner"]["config"] == inner["config"]
    assert document["config"]["input_layers"] == [["image", 0, 0]]
    assert document["config"]["output_layers"] == [["conv", 0, 0], ["image_stack", 0, 0]]


def test_channels_first_are_concatenated_there():
    source = layer("InputLayer", "image", batch_shape=[None, 3, 8, 8])
    document = stacked(model(source, conv("a", "image", data_format="channels_first")))
    source, made, _ = document["config"]["layers"]
    assert (source["config"]["batch_shape"], made["config"]["axis"]) == ([None, 1, 8, 8], 1)


def test_a_name_that_is_taken_is_not_taken_again():
    entry = model(image(), conv("image_stack", "image"), conv("image_stack1", "image_stack"))
    assert [one["name"] for one in stacked(entry)["config"]["layers"]][1] == "image_stack2"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float16"), ("uint8", "float32"), (None, "float32"), ({"class_name": "DTypePolicy"}, "float32")],
)
def test_the_layer_passes_its_input_on_as_it_is(dtype: Any, expected: str):
    entry = model({**image(), "config": {**image()["config"], "dtype": dtype}}, conv("a", "image"))
    assert stacked(entry)["config"]["layers"][1]["config"]["dtype"] == expected


def test_the_layer_has_the_fields_that_the_files_entries_have():
    keras3 = {**image(), "module": "keras.layers", "registered_name": None}
    made = stacked(model(keras3, conv("a", "image")))["config"]["layers"][1]
    assert (made["module"], made["registered_name"]) == ("keras.layers", None)
    assert made["build_config"] == {"input_shape": [[None, 8, 8, 1]] * 3}
    assert "module" not in stacked(model(image(), conv("a", "image")))["config"]["layers"][1]


SEQUENTIALS: dict[str, tuple[list[int], str, str]] = {
    "last": ([None, 8, 6, 3], "Conv2D", "channels_last"),
    "first": ([None, 3, 8, 6], "Conv2D", "channels_first"),
    "volume, last": ([None, 4, 5, 6, 3], "Conv3D", "channels_last"),
    "volume, first": ([None, 3, 4, 5, 6], "Conv3D", "channels_first"),
    "signal, first": ([None, 3, 9], "Conv1D", "channels_first"),
}


@pytest.mark.parametrize("with_input", [True, False], ids=["InputLayer", "a first layer"])
@pytest.mark.parametrize("name", SEQUENTIALS)
def test_in_a_sequential_the_channel_is_repeated(name: str, with_input: bool):
    """UpSampling that looks for its channels elsewhere repeats exactly the axis of the channels."""
    shape, kind, where = SEQUENTIALS[name]
    if with_input:
        entry = sequential(layer("InputLayer", "image", batch_shape=shape), conv("conv", kind=kind, data_format=where))
    else:
        entry = sequential(conv("conv", kind=kind, data_format=where, batch_input_shape=shape))
    assert can_stack(of(entry))
    document = stacked(entry)
    layers = document["config"]["layers"]
    made = layers[1] if with_input else layers[0]
    axis = shape.index(3)
    gray = [1 if k == axis else n for k, n in enumerate(shape)]
    assert made["class_name"] == f"UpSampling{len(shape) - 2}D"
    assert (layers[0]["config"].get("batch_shape") or layers[0]["config"]["batch_input_shape"]) == gray
    assert [one["config"].get("batch_input_shape") for one in layers[1:]] == [None] * (len(layers) - 1)
    x = np.random.default_rng(0).normal(size=[2, *gray[1:]])
    assert np.array_equal(upsampled(made["config"], x), x.repeat(3, axis))
    assert parse(document).is_sequential


def test_a_signal_with_its_channels_last_cannot_be_repeated_in_a_sequential():
    entry = sequential(layer("InputLayer", "image", batch_shape=[None, 9, 3]), conv("conv", kind="Conv1D"))
    assert not can_stack(of(entry))
    assert can_stack(of(model(layer("InputLayer", "image", batch_shape=[None, 9, 3]), conv("conv", "image", kind="Conv1D"))))


def test_nothing_else_of_a_configuration_changes():
    entry = model(image(), conv("a", "image"), conv("b", "a"))
    document = stacked(entry)
    layers = document["config"]["layers"]
    del layers[1]
    set_at(document, ("config", "layers", 0, "config", "batch_shape", 3), 3)
    layers[1]["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = "image"
    assert document == entry
    assert at(document, ("config", "layers", 2)) == entry["config"]["layers"][2]


@pytest.mark.parametrize("is_sequential", [True, False])
def test_of_a_video_with_channels_before_the_pixels_not_time_is_repeated(is_sequential: bool):
    source = layer("InputLayer", "image", batch_shape=[None, 5, 3, 8, 8])
    frames = layer("TimeDistributed", "frames", "image", layer=conv("conv", data_format="channels_first"))
    document = stacked(sequential(source, frames) if is_sequential else model(source, frames))
    entry, made = document["config"]["layers"][:2]
    assert entry["config"]["batch_shape"] == [None, 5, 1, 8, 8]
    if not is_sequential:
        assert made["config"]["axis"] == 2
        return
    x = np.random.default_rng(0).normal(size=[2, 5, 1, 8, 8])
    assert np.array_equal(upsampled(made["config"], x), x.repeat(3, 2))


# A layer that goes


def test_its_takers_take_what_it_took():
    entry = model(image(), conv("a", "image"), conv("b", "a"), layer("Add", "end", [[tensor("a"), tensor("b")]]))
    take_out(entry, parse(entry).layers["a"])
    found = parse(entry)
    assert list(found.layers) == ["image", "b", "end"]
    assert [one.ref for node in found.layers["end"].nodes for one in node.inbound] == [("image", 0, 0), ("b", 0, 0)]
    assert [one.ref for node in found.layers["b"].nodes for one in node.inbound] == [("image", 0, 0)]


def test_a_layer_of_keras_2_and_of_a_sequential():
    first, a = old("InputLayer", "image"), old("Conv2D", "a", [["image", 0, 0, {}]])
    entry = old_model(
        first, a, old("Dense", "b", [["a", 0, 0, {"y": ["a", 0, 0]}]]), inputs=[["image", 0, 0]], outputs=[["a", 0, 0]]
    )
    take_out(entry, parse(entry).layers["a"])
    assert entry["config"]["layers"][1]["inbound_nodes"] == [[["image", 0, 0, {"y": ["image", 0, 0]}]]]
    assert entry["config"]["output_layers"] == [["image", 0, 0]]
    entry = sequential(first, a, old("Dense", "b"))
    take_out(entry, parse(entry).layers["a"])
    assert [each["config"]["name"] for each in entry["config"]["layers"]] == ["image", "b"]

"""Where an image goes in a configuration: the convolutions it reaches, what is on the way, and where its channels are stated."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels.formats.keras.config import at, parse
from chkpt_channels.formats.keras.dataflow import trace as trace_module
from chkpt_channels.formats.keras.dataflow.trace import InputTrace, traces
from tests.formats.keras.test_config import sequential
from tests.formats.keras.test_h5_file import Entry, conv, image, layer, model, tensor

SCALES = layer("Rescaling", "scale", "image", scale=[1.0, 2.0, 3.0], offset=0.0)


def traced(entry: Entry) -> InputTrace:
    (trace,) = traces(parse(entry))
    return trace


def reached(trace: InputTrace) -> list[tuple[str, list[str], list[str], str | None]]:
    """(where, gates, steps, what blocked before) of each convolution."""
    return [
        (
            one.layer.where,
            [operation.layer.name for operation in one.operations],
            list(one.steps),
            one.blocked and one.blocked.where,
        )
        for one in trace.reached
    ]


def shaped(*shape: Any) -> Entry:
    return layer("InputLayer", "image", batch_shape=[None, *shape])


# Which inputs are images


@pytest.mark.parametrize(
    ("source", "last", "expected"),
    [
        (shaped(8, 8, 3), conv("conv", "image"), ("channels_last", 3, 3)),
        (shaped(3, 8, 8), conv("conv", "image", data_format="channels_first"), ("channels_first", 1, 3)),
        (shaped(None, None, 3), conv("conv", "image"), ("channels_last", 3, 3)),
        (shaped(8, 8, 40), conv("conv", "image"), ("channels_last", 3, 40)),
        (shaped(100, 2), conv("conv", "image", kind="Conv1D"), ("channels_last", 2, 2)),
        (shaped(4, 8, 8, 1), conv("conv", "image", kind="Conv3D"), ("channels_last", 4, 1)),
        (shaped(8, 8, None), conv("conv", "image"), None),
        (shaped(8), conv("conv", "image"), None),
        (shaped(8, 8, 3), layer("Dense", "dense", "image"), ("channels_last", 3, 3)),
        (shaped(3, 8, 8), layer("Dense", "dense", "image"), None),
        (shaped(4, 8, 8, 3), layer("ConvLSTM2D", "lstm", "image", data_format="channels_last"), ("channels_last", 4, 3)),
        (shaped(4, 3, 8, 8), layer("ConvLSTM2D", "lstm", "image", data_format="channels_first"), ("channels_first", 2, 3)),
        (shaped(8, 8, 3), layer("Lambda", "own", "image"), None),
        (layer("InputLayer", "image"), conv("conv", "image"), None),
    ],
    ids=[
        "last",
        "first",
        "open",
        "many",
        "signal",
        "volume",
        "open channels",
        "a vector",
        "Dense",
        "rows",
        "video",
        "first in time",
        "no convolution",
        "no shape",
    ],
)
def test_an_image_has_a_shape_and_reaches_a_convolution(source: Entry, last: Entry, expected: tuple[str, int, int] | None):
    found = traces(parse(model(source, last)))
    assert [(t.image.data_format, t.image.axis, t.image.channels) for t in found] == ([expected] if expected else [])


def test_where_channels_are_moved_the_axis_must_be_as_short_as_colors():
    """Permute in front: nothing tells the axis but its length."""
    for channels, count in ((3, 1), (4, 1), (5, 0)):
        entry = model(shaped(8, 8, channels), layer("Permute", "p", "image", dims=[3, 1, 2]), conv("conv", "p"))
        assert len(traces(parse(entry))) == count


def test_every_input_that_is_an_image_is_traced():
    entry = model(
        image("a"), image("b", 1), shaped(7), conv("x", "a"), conv("y", "b"), inputs=["a", "b", "image"], outputs=["x", "y"]
    )
    assert [(t.image.layer.name, t.image.channels, t.image.number) for t in traces(parse(entry))] == [("a", 3, 0), ("b", 1, 1)]


def test_a_sequential_says_its_shape_in_its_first_layer():
    first = conv("conv", batch_input_shape=[None, 8, 8, 3])
    trace = traced(sequential(first, conv("more")))
    assert (trace.image.layer.name, trace.image.path[-1], reached(trace)) == (
        "conv",
        "batch_input_shape",
        [("conv", [], [], None)],
    )


def test_a_sequential_in_a_sequential_says_it_there():
    inner = sequential(conv("conv", batch_input_shape=[None, 8, 8, 3]), name="inner")
    trace = traced({"class_name": "Sequential", "config": {"name": "net", "layers": [inner]}})
    assert (trace.image.layer.where, reached(trace)) == ("inner/conv", [("inner/conv", [], [], None)])


# Where it goes


def test_layers_that_keep_channels_apart_are_steps():
    pad, drop = layer("ZeroPadding2D", "pad", "image", data_format="channels_last"), layer("Dropout", "drop", "pad")
    trace = traced(model(image(), pad, drop, conv("conv", "drop"), conv("behind", "conv")))
    assert (reached(trace), trace.blocks) == ([("conv", [], ["pad", "drop"], None)], [])


def test_constants_of_single_channels_are_gates():
    trace = traced(model(image(), SCALES, layer("BatchNormalization", "norm", "scale"), conv("conv", "norm")))
    assert reached(trace) == [("conv", ["scale", "norm"], ["scale", "norm"], None)]
    assert [operation.effect for operation in trace.reached[0].operations] == ["scales", "scales"]


@pytest.mark.parametrize(
    ("entry", "operations", "blocked"),
    [
        (layer("Rescaling", "scale", "image", scale=2.0, offset=0.5), ["relu"], None),
        (SCALES, ["scale"], "relu"),
    ],
    ids=["alike", "each its own"],
)
def test_in_front_of_a_bend_only_what_treats_all_alike_can_be_left(entry: Entry, operations: list[str], blocked: str | None):
    trace = traced(model(image(), entry, layer("ReLU", "relu", "scale"), conv("conv", "relu")))
    assert reached(trace) == [("conv", operations, ["scale", "relu"], blocked)]
    assert [one and one.name for one in trace.blocks] == ([blocked] if blocked else [])


def test_behind_what_mixes_channels_convolutions_are_reached_blocked():
    trace = traced(model(image(), layer("Lambda", "mix", "image"), conv("a", "mix"), conv("b", "image")))
    assert sorted(reached(trace)) == [("a", [], ["mix"], "mix"), ("b", [], [], None)]
    assert [one.name for one in trace.blocks] == ["mix"]


def test_a_convolution_over_other_axes_blocks_itself():
    trace = traced(model(image(), conv("a", "image", data_format="channels_first"), conv("b", "image")))
    assert sorted(reached(trace)) == [("a", [], [], "a"), ("b", [], [], None)]


def test_an_image_that_is_given_out_is_a_block():
    trace = traced(model(image(), conv("conv", "image"), outputs=["conv", "image"]))
    assert trace.blocks == [None]
    trace = traced(model(image(), layer("Lambda", "mix", "image"), conv("conv", "image"), outputs=["conv", "mix"]))
    assert [one and one.name for one in trace.blocks] == ["mix"]


def test_calls_are_counted_where_the_channels_are_apart():
    shared = conv("shared", "image", "stem")
    trace = traced(
        model(image(), conv("stem", "image"), shared, layer("Add", "end", [[tensor("shared", 0), tensor("shared", 1)]]))
    )
    assert {trail: len(calls) for trail, calls in trace.calls.items()} == {("stem",): 1, ("shared",): 1}


def test_an_inner_model_is_entered_and_left():
    inner = model(image("in"), layer("Dropout", "drop", "in"), name="inner", inputs=["in"], calls=["image"])
    trace = traced(model(image(), inner, conv("conv", "inner")))
    assert reached(trace) == [("conv", [], ["drop"], None)]


def test_an_inner_model_that_is_called_twice_is_followed_each_time():
    inner = model(image("in"), layer("Dropout", "drop", "in"), name="inner", inputs=["in"], calls=["image", "scale"])
    calls = [[tensor("inner", 0)], [tensor("inner", 1)]]
    trace = traced(model(image(), SCALES, inner, conv("a", *calls[:1]), conv("b", *calls[1:]), outputs=["a", "b"]))
    assert sorted(reached(trace)) == [("a", [], ["drop"], None), ("b", ["scale"], ["scale", "drop"], None)]


# Where its channels are stated


def built(entry: Entry, *shape: Any) -> Entry:
    return {**entry, "build_config": {"input_shape": [None, *shape]}}


def test_places_that_state_the_channels_follow_and_the_entrance_is_known():
    shape = {"shape": [None, 8, 8, 3]}
    seen = {"class_name": "__keras_tensor__", "config": {**shape, "keras_history": ["image", 0, 0]}}
    entry = {
        **model(image(), built(layer("Dropout", "drop", [seen]), 8, 8, 3), built(conv("conv", "drop"), 8, 8, 3)),
        "build_config": {"input_shape": [None, 8, 8, 3]},
    }
    trace = traced(entry)
    assert set(trace.numbers) == {
        "layers/image/batch_shape",
        "build_config/input_shape",
        "layers/drop/build_config/input_shape",
        "layers/drop/inbound_nodes/0/0",
        "layers/conv/build_config/input_shape",
    }
    assert {at(entry, path) for path in trace.numbers.values()} == {3}
    assert set(trace.entrance) == {"layers/image/batch_shape", "build_config/input_shape"}
    assert trace.stale == []


def test_places_that_contradict_the_image_are_stale():
    trace = traced(model(image(), built(conv("conv", "image"), 8, 8, 5)))
    assert (set(trace.numbers), trace.stale) == ({"layers/image/batch_shape"}, ["layers/conv/build_config/input_shape"])


@pytest.mark.parametrize("shape", [(8, 8, None), (8, 3), (3,)], ids=["open", "another rank", "a vector"])
def test_shapes_that_say_nothing_are_left(shape: tuple[Any, ...]):
    trace = traced(model(image(), built(conv("conv", "image"), *shape)))
    assert (set(trace.numbers), trace.stale) == ({"layers/image/batch_shape"}, [])


def test_of_several_shapes_the_one_at_the_place_of_the_image_counts():
    add = layer("Concatenate", "both", [[tensor("image"), tensor("more")]])
    add["build_config"] = {"input_shape": [[None, 8, 8, 3], [None, 8, 8, 1]]}
    entry = model(
        image(), image("more", 1), add, conv("a", "image"), conv("b", "more"), inputs=["image", "more"], outputs=["a", "b"]
    )
    first, second = traces(parse(entry))
    place = "layers/both/build_config/input_shape"
    assert (at(entry, first.numbers[place]), at(entry, second.numbers[place])) == (3, 1)
    assert (first.stale, second.stale) == ([], [])


def test_inner_models_state_what_they_take():
    inner = model(image("in"), conv("conv", "in"), name="inner", inputs=["in"], calls=["image"])
    trace = traced(model(image(), {**inner, "build_config": {"input_shape": [None, 8, 8, 3]}}))
    assert {"layers/inner/in/batch_shape", "layers/inner/build_config/input_shape"} <= set(trace.numbers)
    assert set(trace.entrance) == {"layers/image/batch_shape"}


def test_behind_what_mixes_channels_shapes_are_others():
    trace = traced(model(image(), layer("Lambda", "mix", "image"), built(conv("conv", "mix"), 8, 8, 7)))
    assert trace.stale == []


def test_models_that_call_each_other_too_often_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trace_module, "MOST_STEPS", 5)
    steps = [layer("Dropout", f"d{k}", "image" if not k else f"d{k - 1}") for k in range(9)]
    with pytest.raises(ValueError, match="its nested models takes more than 5 steps"):
        traces(parse(model(image(), *steps, conv("conv", "d8"))))


# Layers around others


def around(kind: str, **inner: Entry) -> Entry:
    return layer(
        kind, "around", "image", **{key: {k: v for k, v in entry.items() if k != "inbound_nodes"} for key, entry in inner.items()}
    )


def test_time_distributed_takes_one_frame_at_a_time():
    inner = {**conv("conv"), "build_config": {"input_shape": [None, 8, 8, 3]}}
    trace = traced(model(shaped(4, 8, 8, 3), around("TimeDistributed", layer=inner)))
    assert (reached(trace), trace.image.axis) == ([("around/conv", [], ["around"][:0], None)], 4)
    assert trace.numbers["layers/around/conv/build_config/input_shape"][-1] == 3


def test_of_a_video_with_channels_before_the_pixels_time_is_left_alone():
    trace = traced(model(shaped(3, 3, 8, 8), around("TimeDistributed", layer=conv("conv", data_format="channels_first"))))
    assert (trace.image.axis, reached(trace)[0][0]) == (2, "around/conv")


def test_both_directions_take_the_video():
    ways = {
        key: layer("ConvLSTM2D", name, data_format="channels_last") for key, name in (("layer", "a"), ("backward_layer", "b"))
    }
    trace = traced(model(shaped(4, 8, 8, 3), around("Bidirectional", **ways)))
    assert [where for where, *_ in reached(trace)] == ["around/a", "around/b"]


def test_where_axes_are_moved_the_channels_are_followed():
    last = conv("conv", "move", data_format="channels_first")
    trace = traced(model(shaped(8, 8, 3), layer("Permute", "move", "image", dims=[3, 1, 2]), built(last, 3, 8, 8)))
    assert (reached(trace), trace.image.axis) == ([("conv", [], ["move"], None)], 3)
    assert trace.numbers["layers/conv/build_config/input_shape"][-1] == 1


def test_behind_time_distributed_the_axes_are_those_of_the_video():
    scaled = layer("Rescaling", "scaled", "around", scale=[[[1.0]], [[2.0]], [[3.0]]], offset=0.0)
    stem = layer("TimeDistributed", "stem", "scaled", layer=conv("conv", data_format="channels_first"))
    inner = layer("Rescaling", "half", scale=0.5, offset=0.0)
    trace = traced(model(shaped(3, 3, 8, 8), around("TimeDistributed", layer=inner), scaled, stem))
    assert (trace.image.axis, reached(trace)) == (2, [("stem/conv", ["half", "scaled"], ["half", "scaled"], None)])


@pytest.mark.parametrize(
    ("shape", "first", "expected"),
    [
        ((8, 8, 3), False, 3),
        ((3, 8, 8), True, 1),
        ((3, 8, 8), False, 1),
        ((3, 8, 8, 3), False, 4),
        ((3, 3, 8, 8), True, None),
        ((4, 8, 8, 9), False, None),
        ((16, 3, 8, 8), True, 2),
    ],
)
def test_behind_what_mixes_the_axis_is_not_guessed(shape: tuple[int, ...], first: bool, expected: int | None):
    last = conv("conv", "mix", data_format="channels_first" if first else "channels_last")
    found = traces(parse(model(shaped(*shape), layer("Lambda", "mix", "image"), last)))
    assert [trace.image.axis for trace in found] == ([expected] if expected else [])


def test_zeros_around_the_image_are_noted():
    pad = layer("ZeroPadding2D", "pad", "image", data_format="channels_last")
    assert [one.is_padded for one in traced(model(image(), pad, conv("conv", "pad"))).reached] == [True]
    assert [one.is_padded for one in traced(model(image(), conv("conv", "image"))).reached] == [False]

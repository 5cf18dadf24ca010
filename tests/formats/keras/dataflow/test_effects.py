"""What layers in front of a convolution do to the channels of an image."""

from __future__ import annotations

import pytest

from chkpt_channels.formats.keras.config import Layer, parse
from chkpt_channels.formats.keras.dataflow.effects import Image, effect, moved, pads, repeats
from chkpt_channels.formats.keras.dataflow.trace import traces
from tests.formats.keras.test_h5_file import Entry, conv, image, layer, model, tensor

MEAN, VARIANCE = [0.5, -1.0, 2.0], [4.0, 0.25, 1.0]


def of(entry: Entry, *, first: bool = False) -> tuple[Layer, Image]:
    """The layer and the image in front of it."""
    source = image()
    if first:
        source["config"]["batch_shape"] = [None, 3, 8, 8]
    last = conv("conv", entry["name"], data_format="channels_first" if first else "channels_last")
    top = parse(model(source, entry, last))
    (trace,) = traces(top)
    return top.layers[entry["name"]], trace.image


ALONG = [[[MEAN]]]
SERIALISED = {"class_name": "__numpy__", "config": {"value": MEAN, "dtype": "float32"}}
FIRST = [[[MEAN[0]]], [[MEAN[1]]], [[MEAN[2]]]]


def pad(widths: list[list[int]], value: float | None = None) -> Entry:
    entry = layer("Pad", "x", "image", module="keras.src.ops.numpy", pad_width=widths, mode="constant")
    entry["inbound_nodes"][0]["kwargs"] = {"constant_values": value}
    return entry


EFFECTS: dict[str, tuple[Entry, str]] = {
    "Dropout": (layer("Dropout", "x", "image"), "keeps"),
    "Identity": (layer("Identity", "x", "image"), "keeps"),
    "ZeroPadding2D": (layer("ZeroPadding2D", "x", "image", data_format="channels_last"), "keeps"),
    "ZeroPadding2D elsewhere": (layer("ZeroPadding2D", "x", "image", data_format="channels_first"), "mixes"),
    "AveragePooling2D": (layer("AveragePooling2D", "x", "image", data_format="channels_last"), "keeps"),
    "MaxPooling2D": (layer("MaxPooling2D", "x", "image", data_format="channels_last"), "bends"),
    "ReLU": (layer("ReLU", "x", "image"), "bends"),
    "Activation": (layer("Activation", "x", "image", activation="tanh"), "bends"),
    "Activation, linear": (layer("Activation", "x", "image", activation="linear"), "keeps"),
    "Activation, softmax": (layer("Activation", "x", "image", activation="log_softmax"), "mixes"),
    "Rescaling by one": (layer("Rescaling", "x", "image", scale=2.0, offset=-1.0), "shifts"),
    "Rescaling by default": (layer("Rescaling", "x", "image"), "shifts"),
    "Rescaling by each": (layer("Rescaling", "x", "image", scale=MEAN, offset=0.0), "scales"),
    "Rescaling, nested": (layer("Rescaling", "x", "image", scale=ALONG, offset=0.0), "scales"),
    "Rescaling, serialized": (layer("Rescaling", "x", "image", scale=1.0, offset=SERIALISED), "scales"),
    "Rescaling by two": (layer("Rescaling", "x", "image", scale=[1.0, 2.0], offset=0.0), "mixes"),
    "Rescaling along another axis": (layer("Rescaling", "x", "image", scale=FIRST, offset=0.0), "mixes"),
    "Rescaling by words": (layer("Rescaling", "x", "image", scale="half", offset=0.0), "mixes"),
    "Normalization": (layer("Normalization", "x", "image", axis=[-1], mean=MEAN, variance=VARIANCE), "scales"),
    "Normalization of all": (layer("Normalization", "x", "image", axis=None, mean=1.0, variance=2.0), "shifts"),
    "Normalization of rows": (layer("Normalization", "x", "image", axis=[1], mean=MEAN, variance=VARIANCE), "mixes"),
    "Normalization of pixels": (layer("Normalization", "x", "image", axis=[1, 2, 3], mean=None, variance=None), "mixes"),
    "Normalization, adapted": (layer("Normalization", "x", "image", axis=3, mean=None, variance=None), "scales"),
    "Normalization, strange": (layer("Normalization", "x", "image", axis="last", mean=MEAN, variance=VARIANCE), "mixes"),
    "BatchNormalization": (layer("BatchNormalization", "x", "image", axis=[3]), "scales"),
    "BatchNormalization by default": (layer("BatchNormalization", "x", "image"), "scales"),
    "BatchNormalization of rows": (layer("BatchNormalization", "x", "image", axis=1), "mixes"),
    "LayerNormalization": (layer("LayerNormalization", "x", "image"), "mixes"),
    "Conv2D": (conv("x", "image"), "conv"),
    "Conv1D": (conv("x", "image", kind="Conv1D"), "mixes"),
    "a layer of the user's own": (layer("Mine", "x", "image"), "mixes"),
    "multiply": (layer("Multiply", "x", ["image", MEAN], module="keras.src.ops.numpy"), "scales"),
    "multiply by one": (layer("Multiply", "x", ["image", 2.0], module="keras.src.ops.numpy"), "shifts"),
    "divide": (layer("TrueDivide", "x", ["image", MEAN], module="keras.src.ops.numpy"), "scales"),
    "divide into": (layer("TrueDivide", "x", [1.0, "image"], module="keras.src.ops.numpy"), "bends"),
    "divide into each": (layer("TrueDivide", "x", [MEAN, "image"], module="keras.src.ops.numpy"), "mixes"),
    "subtract from": (layer("Subtract", "x", [MEAN, "image"], module="keras.src.ops.numpy"), "scales"),
    "add itself": (layer("Add", "x", ["image", "image"], module="keras.src.ops.numpy"), "mixes"),
    "cast": (layer("Cast", "x", "image", module="keras.src.ops.core"), "keeps"),
    "power": (layer("Power", "x", ["image", 2.0], module="keras.src.ops.numpy"), "bends"),
    "maximum of two": (layer("Maximum", "x", ["image", "image"], module="keras.src.ops.numpy"), "mixes"),
    "negative": (layer("Negative", "x", "image", module="keras.src.ops.numpy"), "shifts"),
    "resize": (layer("Resize", "x", "image", module="keras.src.ops.image", data_format=None, fill_value=0.0), "keeps"),
    "another function": (layer("Softmax", "x", "image", module="keras.src.ops.nn"), "mixes"),
    "pad": (pad([[0, 0], [1, 1], [1, 1], [0, 0]]), "keeps"),
    "pad with a value": (pad([[0, 0], [1, 1], [1, 1], [0, 0]], 0.5), "bends"),
    "pad channels": (pad([[0, 0], [1, 1], [1, 1], [0, 1]]), "mixes"),
    "Permute": (layer("Permute", "x", "image", dims=[3, 1, 2]), "keeps"),
    "Reshape": (layer("Reshape", "x", "image", target_shape=[16, 4, 3]), "keeps"),
    "Reshape of channels": (layer("Reshape", "x", "image", target_shape=[4, 4, 12]), "mixes"),
    "Dense": (layer("Dense", "x", "image"), "conv"),
    "EinsumDense": (layer("EinsumDense", "x", "image", equation="abci,io->abco"), "conv"),
    "EinsumDense of rows": (layer("EinsumDense", "x", "image", equation="aibc,io->aobc"), "mixes"),
    "ConvLSTM2D": (layer("ConvLSTM2D", "x", "image", data_format="channels_last"), "mixes"),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_what_a_layer_does_to_an_image(name: str):
    entry, expected = EFFECTS[name]
    found, source = of(entry)
    assert effect(found, 0, source) == expected


def test_constants_along_the_channels_stand_where_the_channels_do():
    for scale, expected in ((FIRST, "scales"), (MEAN, "mixes"), ([FIRST], "scales"), (2.0, "shifts")):
        found, source = of(layer("Rescaling", "x", "image", scale=scale, offset=0.0), first=True)
        assert effect(found, 0, source) == expected


def test_an_image_knows_how_keras_names_its_axes():
    for first, expected in ((True, "channels_first"), (False, "channels_last")):
        assert of(layer("Dropout", "x", "image"), first=first)[1].data_format == expected


def test_a_convolution_over_another_axis_mixes():
    found, source = of(conv("x", "image"))
    assert effect(found, 0, source._replace(axis=1)) == "mixes"
    found, source = of(layer("ConvLSTM2D", "x", "image", data_format="channels_first"))
    assert [effect(found, 0, source._replace(rank=5, axis=axis)) for axis in (1, 2, 4)] == ["mixes", "conv", "mixes"]


MOVES = {
    "Permute": (layer("Permute", "x", "image", dims=[3, 1, 2]), (1, 4)),
    "transpose": (layer("Transpose", "x", "image", axes=[0, 3, 1, 2]), (1, 4)),
    "moveaxis": (layer("Moveaxis", "x", "image", source=-1, destination=1), (1, 4)),
    "swapaxes": (layer("Swapaxes", "x", "image", axis1=1, axis2=3), (1, 4)),
    "expand_dims": (layer("ExpandDims", "x", "image", axis=1), (4, 5)),
    "expand_dims at the end": (layer("ExpandDims", "x", "image", axis=-1), (3, 5)),
    "squeeze": (layer("Squeeze", "x", "image", axis=1), (2, 3)),
    "squeeze of the channels": (layer("Squeeze", "x", "image", axis=-1), None),
    "Reshape": (layer("Reshape", "x", "image", target_shape=[64, 3]), (2, 3)),
    "Reshape, unknown": (layer("Reshape", "x", "image", target_shape=[64, -1]), None),
}


@pytest.mark.parametrize("name", MOVES)
def test_where_the_channels_are_after_axes_are_moved(name: str):
    entry, expected = MOVES[name]
    found, source = of(entry)
    after = moved(found, source._replace(axis=3, channels=3))
    assert (after and (after.axis, after.rank)) == expected


def test_layers_take_their_own_axis_for_the_channels():
    """Of a video with channels in the middle, and of a signal with channels first, pixels would be padded that are none."""
    for kind, axis, rank, expected in (
        ("ZeroPadding3D", 1, 5, "keeps"),
        ("ZeroPadding3D", 2, 5, "mixes"),
        ("MaxPooling3D", 2, 5, "mixes"),
    ):
        found, source = of(layer(kind, "x", "image", data_format="channels_first"))
        assert effect(found, 0, source._replace(axis=axis, rank=rank)) == expected, kind
    for kind in ("ZeroPadding1D", "Cropping1D", "UpSampling1D"):
        found, source = of(layer(kind, "x", "image"))
        assert [effect(found, 0, source._replace(axis=axis, rank=3)) for axis in (1, 2)] == ["mixes", "keeps"]


@pytest.mark.parametrize(
    ("entry", "axis", "expected"),
    [
        (layer("Concatenate", "x", [[tensor("image"), tensor("image")]], axis=-1), 3, True),
        (layer("Concatenate", "x", [[tensor("image"), tensor("image")]], axis=-1), 1, False),
        (layer("Concatenate", "x", [[tensor("image"), tensor("other")]], axis=-1), 3, False),
        (layer("UpSampling2D", "x", "image", size=[1, 3], data_format="channels_first"), 3, True),
        (layer("UpSampling2D", "x", "image", size=[3, 1], data_format="channels_last"), 1, True),
        (layer("UpSampling2D", "x", "image", size=[3, 3], data_format="channels_last"), 1, False),
        (layer("UpSampling2D", "x", "image", size=[2, 2], data_format="channels_last"), 3, False),
        (layer("Dropout", "x", "image"), 3, False),
    ],
)
def test_what_repeats_the_only_channel_shows_its_axis(entry: Entry, axis: int, expected: bool):
    top = parse(model(image(), image("other"), entry, conv("conv", "x"), inputs=["image", "other"]))
    source = Image(("image", 0, 0), 0, top.layers["image"], (), 1, axis, 4)
    assert repeats(top.layers["x"], 0, source) is expected
    assert not repeats(top.layers["x"], 0, source._replace(channels=3))


def test_what_puts_zeros_around_an_image():
    made = {"ZeroPadding2D": {}, "Pad": {}, "Resizing": {"pad_to_aspect_ratio": True}, "Dropout": {}, "Cropping2D": {}}
    assert [pads(of(layer(kind, "x", "image", **config))[0]) for kind, config in made.items()] == [True] * 3 + [False] * 2

"""What layers in front of a convolution do to each channel: by their formulas, on numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from chkpt_channels.formats.keras.config import Layer, parse
from chkpt_channels.formats.keras.dataflow import traces
from chkpt_channels.formats.keras.preprocessing import Image, constants, effect, operands, select_channels
from tests.formats.keras.test_config import old, old_model
from tests.formats.keras.test_h5_file import Entry, conv, image, layer, model

X = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
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


def nothing(_: str) -> None:
    return None


ALONG = [[[MEAN]]]
SERIALISED = {"class_name": "__numpy__", "config": {"value": MEAN, "dtype": "float32"}}
FIRST = [[[MEAN[0]]], [[MEAN[1]]], [[MEAN[2]]]]

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
    "Conv2D elsewhere": (conv("x", "image", data_format="channels_first"), "mixes"),
    "Conv1D": (conv("x", "image", kind="Conv1D"), "mixes"),
    "a layer of the user's own": (layer("Mine", "x", "image"), "mixes"),
    "multiply": (layer("Multiply", "x", ["image", MEAN], module="keras.src.ops.numpy"), "scales"),
    "multiply by one": (layer("Multiply", "x", ["image", 2.0], module="keras.src.ops.numpy"), "shifts"),
    "divide": (layer("TrueDivide", "x", ["image", MEAN], module="keras.src.ops.numpy"), "scales"),
    "divide into": (layer("TrueDivide", "x", [1.0, "image"], module="keras.src.ops.numpy"), "mixes"),
    "subtract from": (layer("Subtract", "x", [MEAN, "image"], module="keras.src.ops.numpy"), "scales"),
    "add itself": (layer("Add", "x", ["image", "image"], module="keras.src.ops.numpy"), "mixes"),
    "cast": (layer("Cast", "x", "image", module="keras.src.ops.core"), "keeps"),
    "another function": (layer("Power", "x", ["image", 2.0], module="keras.src.ops.numpy"), "mixes"),
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


STATISTICS: Mapping[str, Sequence[float]] = {
    **{"mean": MEAN, "variance": VARIANCE, "gamma": [1.0, 2.0, -3.0], "beta": [0.5, 0.0, 1.0]},
    **{"moving_mean": MEAN, "moving_variance": VARIANCE},
}
ROOT = np.sqrt(VARIANCE)
NUMBERS: dict[str, tuple[Entry, Callable[[np.ndarray], np.ndarray], int, tuple[str, ...]]] = {
    "Rescaling": (layer("Rescaling", "x", "image", scale=2.0, offset=-1.0), lambda x: 2 * x - 1, 0, ()),
    "Rescaling by each": (layer("Rescaling", "x", "image", scale=MEAN, offset=VARIANCE), lambda x: x * MEAN + VARIANCE, 2, ()),
    "Normalization": (
        layer("Normalization", "x", "image", axis=[-1], mean=ALONG, variance=[[[VARIANCE]]]),
        lambda x: (x - MEAN) / ROOT,
        *(2, ()),
    ),
    "Normalization, inverted": (
        layer("Normalization", "x", "image", axis=[-1], mean=MEAN, variance=VARIANCE, invert=True),
        lambda x: MEAN + x * ROOT,
        *(2, ()),
    ),
    "Normalization, adapted": (
        layer("Normalization", "x", "image", axis=[-1], mean=None, variance=None),
        lambda x: (x - MEAN) / ROOT,
        *(0, ("mean", "variance")),
    ),
    "BatchNormalization": (
        layer("BatchNormalization", "x", "image", epsilon=0.5),
        lambda x: np.array([1.0, 2.0, -3.0]) * (x - MEAN) / np.sqrt(np.array(VARIANCE) + 0.5) + [0.5, 0.0, 1.0],
        *(0, ("gamma", "beta", "moving_mean", "moving_variance")),
    ),
    "multiply": (layer("Multiply", "x", ["image", MEAN], module="keras.src.ops.numpy"), lambda x: x * MEAN, 1, ()),
    "multiply from the left": (layer("Multiply", "x", [MEAN, "image"], module="keras.src.ops.numpy"), lambda x: x * MEAN, 1, ()),
    "divide": (layer("TrueDivide", "x", ["image", VARIANCE], module="keras.src.ops.numpy"), lambda x: x / VARIANCE, 1, ()),
    "add": (layer("Add", "x", ["image", MEAN], module="keras.src.ops.numpy"), lambda x: x + MEAN, 1, ()),
    "subtract": (layer("Subtract", "x", ["image", MEAN], module="keras.src.ops.numpy"), lambda x: x - MEAN, 1, ()),
    "subtract from": (layer("Subtract", "x", [MEAN, "image"], module="keras.src.ops.numpy"), lambda x: MEAN - x, 1, ()),
    "divide by one": (layer("TrueDivide", "x", ["image", 255.0], module="keras.src.ops.numpy"), lambda x: x / 255, 0, ()),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_scale_and_shift_are_the_formula_of_the_layer(name: str):
    entry, formula, lists, tensors = NUMBERS[name]
    found, source = of(entry)
    made = constants(found, 0, source, STATISTICS.get)
    assert made is not None
    assert np.allclose(X * made.scale + made.shift, formula(X), atol=1e-12)
    assert (len(made.lists), made.tensors) == (lists, tensors)


def test_a_deviation_of_nothing_is_kerass_epsilon():
    found, source = of(layer("Normalization", "x", "image", axis=[-1], mean=MEAN, variance=[0.0, 1e-20, 1.0]))
    made = constants(found, 0, source, nothing)
    assert made.scale == (1e7, 1e7, 1.0)


@pytest.mark.parametrize("kind", ["Normalization", "BatchNormalization"])
def test_numbers_that_are_not_in_the_file_are_not_known(kind: str):
    found, source = of(layer(kind, "x", "image", axis=[-1]))
    assert constants(found, 0, source, nothing) is None


def test_without_gamma_and_beta_a_batch_normalization_has_one_and_nought():
    found, source = of(layer("BatchNormalization", "x", "image", scale=False, center=False, epsilon=0.0))
    kept = {name: STATISTICS[name] for name in ("moving_mean", "moving_variance")}
    made = constants(found, 0, source, kept.get)
    assert np.allclose(X * made.scale + made.shift, (X - MEAN) / ROOT)
    assert made.tensors == ("moving_mean", "moving_variance")


KERAS_2: dict[str, tuple[Any, str, tuple[str, Any, bool], Callable[[np.ndarray], np.ndarray]]] = {
    "math.multiply": (["image", 0, 0, {"y": MEAN}], "math.multiply", ("*", MEAN, False), lambda x: x * MEAN),
    "tf.math.subtract": (["image", 0, 0, {"y": MEAN}], "tf.math.subtract", ("-", MEAN, False), lambda x: x - MEAN),
    "__operators__.add": (["image", 0, 0, {"y": MEAN}], "__operators__.add", ("+", MEAN, False), lambda x: x + MEAN),
    "nn.bias_add": (["image", 0, 0, {"bias": MEAN}], "nn.bias_add", ("+", MEAN, False), lambda x: x + MEAN),
    "a constant first": (
        ["_CONSTANT_VALUE", -1, MEAN, {"y": ["image", 0, 0]}],
        "math.subtract",
        ("-", MEAN, True),
        lambda x: MEAN - x,
    ),
}


@pytest.mark.parametrize("name", KERAS_2)
def test_functions_of_keras_2(name: str):
    node, function, expected, formula = KERAS_2[name]
    entries = [
        old("InputLayer", "image", batch_input_shape=[None, 8, 8, 3]),
        old("TFOpLambda", "f", node, function=function),
        old("Conv2D", "conv", [["f", 0, 0, {}]]),
    ]
    top = parse(old_model(*entries, inputs=[["image", 0, 0]], outputs=[["conv", 0, 0]]))
    (trace,) = traces(top)
    sign, constant, _, turned = operands(top.layers["f"], 0)
    assert (sign, constant, turned) == expected
    made = constants(top.layers["f"], 0, trace.image, nothing)
    assert np.allclose(X * made.scale + made.shift, formula(X))


@pytest.mark.parametrize(
    ("document", "path", "expected"),
    [
        ({"scale": [1, 2, 3]}, ("scale",), [3, 1]),
        ({"scale": [[[[1, 2, 3]]]]}, ("scale",), [[[[3, 1]]]]),
        ({"scale": [[[1]], [[2]], [[3]]]}, ("scale",), [[[3]], [[1]]]),
        (
            {"mean": {"class_name": "__numpy__", "config": {"value": [1, 2, 3], "dtype": "float32"}}},
            ("mean",),
            {"class_name": "__numpy__", "config": {"value": [3, 1], "dtype": "float32"}},
        ),
    ],
    ids=["list", "nested", "channels first", "serialized"],
)
def test_constants_of_chosen_channels_are_nested_as_before(document: Any, path: tuple[str, ...], expected: Any):
    assert select_channels(document, path, [2, 0]) == expected


def test_an_image_knows_how_keras_names_its_axes():
    for first, expected in ((True, "channels_first"), (False, "channels_last")):
        assert of(layer("Dropout", "x", "image"), first=first)[1].data_format == expected

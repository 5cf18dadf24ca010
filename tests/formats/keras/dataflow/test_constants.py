"""The numbers of what layers in front of a convolution do to each channel: by their formulas, on numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from chkpt_channels.formats.keras.config import parse
from chkpt_channels.formats.keras.dataflow.constants import constants, select_channels
from chkpt_channels.formats.keras.dataflow.effects import operands
from chkpt_channels.formats.keras.dataflow.trace import traces
from tests.formats.keras.dataflow.test_effects import ALONG, MEAN, VARIANCE, of
from tests.formats.keras.test_config import old, old_model
from tests.formats.keras.test_h5_file import Entry, layer

X = np.random.default_rng(0).normal(size=(2, 4, 4, 3))


def nothing(_: str) -> None:
    return None


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
    "negative": (layer("Negative", "x", "image", module="keras.src.ops.numpy"), lambda x: -x, 0, ()),
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


def test_an_adapted_normalization_of_one_channel_has_a_place_for_each():
    found, source = of(layer("Normalization", "x", "image", axis=[-1], mean=None, variance=None))
    one = constants(found, 0, source._replace(channels=1), {"mean": [0.5], "variance": [4.0]}.get)
    assert (one.scale, one.shift, one.tensors) == ((0.5,), (-0.25,), ("mean", "variance"))
    found, source = of(layer("Normalization", "x", "image", axis=None, mean=None, variance=None))
    assert constants(found, 0, source, {"mean": [0.5], "variance": [4.0]}.get).tensors == ()

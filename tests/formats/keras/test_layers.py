"""The tables of Keras's layers: weights, formats, sizes and constants as Keras 1 to 3 spell them."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels.formats.keras.layers import (
    CHANNELWISE,
    CONVS,
    NONLINEAR,
    data_format,
    extents,
    flat,
    kernel_size,
    one_channel_shape,
    snake_case,
    weight_names,
)


@pytest.mark.parametrize(
    ("kind", "layout", "depthwise"),
    [
        ("Conv2D", "HWIO", False),
        ("Conv1D", "WIO", False),
        ("Conv3D", "DHWIO", False),
        ("Convolution2D", "HWIO", False),
        ("Conv2DTranspose", "HWOI", False),
        ("DepthwiseConv2D", "HWIO", True),
        ("SeparableConvolution1D", "WIO", True),
    ],
)
def test_convolutions_have_a_layout(kind: str, layout: str, depthwise: bool):
    assert (CONVS[kind].layout, CONVS[kind].depthwise) == (layout, depthwise)


def test_a_class_is_in_one_table():
    assert NONLINEAR <= CHANNELWISE
    assert not CHANNELWISE & CONVS.keys()


WEIGHTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("Conv2D", {}, ("kernel", "bias")),
    ("Conv2D", {"use_bias": False}, ("kernel",)),
    ("Convolution2D", {"bias": False}, ("kernel",)),
    ("Convolution2D", {"bias": True}, ("kernel", "bias")),
    ("DepthwiseConv2D", {"use_bias": False}, ("depthwise_kernel",)),
    ("SeparableConv2D", {}, ("depthwise_kernel", "pointwise_kernel", "bias")),
    ("SeparableConv2D", {"use_bias": False}, ("depthwise_kernel", "pointwise_kernel")),
    ("BatchNormalization", {}, ("gamma", "beta", "moving_mean", "moving_variance")),
    ("BatchNormalization", {"scale": False}, ("beta", "moving_mean", "moving_variance")),
    ("BatchNormalization", {"scale": False, "center": False}, ("moving_mean", "moving_variance")),
    ("Normalization", {"mean": None}, ("mean", "variance", "count")),
    ("Normalization", {"mean": [1.0], "variance": [2.0]}, ()),
    ("Dense", {}, ("kernel", "bias")),
    ("EinsumDense", {"bias_axes": None}, ("kernel",)),
    ("SpectralNormalization", {}, ("kernel", "vector_u")),
    ("SomebodysLayer", {}, ()),
]


@pytest.mark.parametrize(("kind", "config", "names"), WEIGHTS)
def test_weights_are_listed_in_the_order_in_which_they_are_saved(kind: str, config: dict[str, Any], names: tuple[str, ...]):
    assert weight_names(kind, config) == names


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "channels_last"),
        ({"data_format": None}, "channels_last"),
        ({"data_format": "channels_first"}, "channels_first"),
        ({"dim_ordering": "th"}, "channels_first"),
        ({"dim_ordering": "tf"}, "channels_last"),
        ({"dim_ordering": "default"}, "channels_last"),
    ],
    ids=str,
)
def test_channels_are_looked_for_where_the_configuration_says(config: dict[str, Any], expected: str):
    assert data_format(config) == expected


@pytest.mark.parametrize(
    ("config", "rank", "expected"),
    [
        ({"kernel_size": [3, 5]}, 2, (3, 5)),
        ({"kernel_size": 3}, 2, (3, 3)),
        ({"kernel_size": 3}, 1, (3,)),
        ({"nb_row": 3, "nb_col": 5}, 2, (3, 5)),
        ({"filter_length": 7}, 1, (7,)),
        ({"kernel_size": [3, 5]}, 3, None),
        ({"kernel_size": "3"}, 1, None),
        ({}, 2, None),
    ],
    ids=str,
)
def test_the_window_of_a_kernel(config: dict[str, Any], rank: int, expected: tuple[int, ...] | None):
    assert kernel_size(config, rank) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Conv2D", "conv2d"),
        ("Conv2DTranspose", "conv2d_transpose"),
        ("DepthwiseConv2D", "depthwise_conv2d"),
        ("BatchNormalization", "batch_normalization"),
        ("Normalization", "normalization"),
        ("ReLU", "re_lu"),
        ("Functional", "functional"),
        ("TFOpLambda", "tf_op_lambda"),
        ("my-Layer", "my_layer"),
    ],
)
def test_classes_in_the_paths_of_weights_files(name: str, expected: str):
    assert snake_case(name) == expected


SERIALISED = {"class_name": "__numpy__", "config": {"value": [[1.0, 2.0]], "dtype": "float32"}}


@pytest.mark.parametrize(
    ("value", "numbers", "lengths"),
    [
        (2, [2.0], ()),
        (0.5, [0.5], ()),
        ([1, 2.5], [1.0, 2.5], (2,)),
        ([[[[1.0]], [[2.0]]]], [1.0, 2.0], (1, 2, 1, 1)),
        (SERIALISED, [1.0, 2.0], (1, 2)),
        ({"class_name": "__tensor__", "config": {"value": 3.0}}, [3.0], ()),
        ([], [], (0,)),
        (None, None, ()),
        (True, None, ()),
        ("1.0", None, ()),
        ([1.0, None], None, (2,)),
        ([1.0, True], None, (2,)),
        ([1.0, [2.0]], None, (2,)),
        ({"class_name": "Constant", "config": {"value": 3.0}}, None, ()),
        ({"class_name": "__numpy__"}, None, ()),
    ],
    ids=repr,
)
def test_constants_are_numbers_in_nested_lists(value: Any, numbers: list[float] | None, lengths: tuple[int, ...]):
    assert flat(value) == numbers
    assert extents(value) == lengths


def test_the_bytes_of_a_depthwise_kernel_serve_one_channel():
    assert one_channel_shape((3, 3, 3, 2), depthwise=True) == (3, 3, 1, 6)
    assert one_channel_shape((3, 3, 3, 2), depthwise=False) == (3, 3, 3, 2)

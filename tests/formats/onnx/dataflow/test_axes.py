"""Axes through Reshape, numbers through shape arithmetic, and kernels over the border: without a model."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.formats.onnx.dataflow.axes import (
    Axes,
    Piece,
    around,
    counted,
    holder,
    image_axes,
    opened,
    reshaped,
    resized,
    size,
)
from chkpt_channels.formats.onnx.dataflow.padding import _span
from chkpt_channels.formats.onnx.dataflow.shape_values import NUMBER_LIMIT, Number, _arithmetic

CHANNEL = 1
IMAGE = image_axes([1, 3, 8, 8])


def turned(axes: Axes, order: list[int]) -> Axes:
    return tuple(axes[k] for k in order)


def test_blocks_say_which_is_faster():
    cut = reshaped(IMAGE, [1, 3, 4, 2, 4, 2], CHANNEL)
    assert cut is not None
    assert holder(cut, CHANNEL) == 1
    slowest = reshaped(turned(cut, [0, 1, 3, 5, 2, 4]), [1, 12, 4, 4], CHANNEL)
    fastest = reshaped(turned(cut, [0, 3, 5, 1, 2, 4]), [1, 12, 4, 4], CHANNEL)
    between = reshaped(turned(cut, [0, 3, 1, 5, 2, 4]), [1, 12, 4, 4], CHANNEL)
    assert [around(axes[1], CHANNEL) for axes in (slowest, fastest, between) if axes] == [(1, 4), (4, 1), (2, 2)]
    assert [counted(axes[1], CHANNEL, 5) for axes in (slowest, fastest, between) if axes] == [20, 20, 20]


def test_channels_that_are_cut_are_not_followed():
    assert reshaped(IMAGE, [1, 2, 12, 8], CHANNEL) is None
    assert reshaped(image_axes([1, 6, 8, 8]), [1, 2, 3, 8, 8], CHANNEL) is None


def test_sizes_that_do_not_come_out_are_not_followed():
    for shape in ([1, 3, 8, 9], [1, 3, 8], [3, 8, 8, 8], [1, 3, 8, 8, 2]):
        assert reshaped(IMAGE, shape, CHANNEL) is None


def test_an_open_size_is_no_number_of_a_graph():
    axes = image_axes([None, 3, None, 8])
    assert [size(axis) for axis in axes] == [opened(0), 3, opened(2), 8]
    assert reshaped(axes, [1, 3, 4, 2, 8], CHANNEL) is None
    assert reshaped(axes, [1, 3, 8, 8], CHANNEL) == image_axes([1, 3, 8, 8])
    assert reshaped(axes, [opened(0), 3, opened(2) // 4, 4, 8], CHANNEL) is not None


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24, 64, 192]), min_size=1, max_size=5))
def test_a_reshape_moves_elements_as_numpy_does(shape: list[int]):
    """The indices of the image's axes, laid out by the pieces, are those that numpy's reshape gives."""
    if prod(shape) != 192 or (axes := reshaped(IMAGE, shape, CHANNEL)) is None:
        return
    assert [size(axis) for axis in axes] == shape
    channels = np.broadcast_to(np.arange(3).reshape(1, 3, 1, 1), (1, 3, 8, 8)).reshape(shape)
    at = holder(axes, CHANNEL)
    assert at is not None
    slower, faster = around(axes[at], CHANNEL)
    expected = np.tile(np.repeat(np.arange(3), faster), slower)
    assert np.array_equal(channels, np.broadcast_to(expected.reshape(-1, *[1] * (len(shape) - at - 1)), shape))


def test_a_new_size_is_no_channel():
    axes = resized(((), (Piece(CHANNEL, 3),)), 0, 5)
    assert holder(axes, CHANNEL) == 1


def test_numbers_follow_the_channels_or_stay():
    three, two = Number(3, 4), Number(2, 2)
    made = _arithmetic("Mul", [[three], [two, two]])
    assert made == [Number(6, 8), Number(6, 8)]
    assert made[0].follows
    assert _arithmetic("Div", [[three], [Number(0, 0)]]) is None
    assert _arithmetic("Mul", [[Number(NUMBER_LIMIT // 2, 1)], [two]]) is None
    assert _arithmetic("Add", [[three, three], [two, two, two]]) is None


@given(*(st.integers(*limits) for limits in ((-9, 12), (1, 3), (1, 5), (1, 9))))
def test_taps_inside_are_those_on_pixels(at: int, dilation: int, taps: int, steps: int):
    start, stop = _span(at, dilation, taps, steps)
    assert list(range(start, stop)) == [u for u in range(taps) if 0 <= at + u * dilation < steps]

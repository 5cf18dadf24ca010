"""Quantized kernels: nothing is lost that the numbers can hold, and nothing more than half a step elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.transform.quantization import dequantized, requantized

ZERO = {np.int8: st.just(0), np.uint8: st.integers(0, 255)}


@st.composite
def quantized(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(numbers, scale, zero points, axis), one scale for all or one a filter."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype, axis = draw(st.sampled_from([np.int8, np.uint8])), draw(st.integers(0, 1))
    numbers = chance.integers(-127 if dtype == np.int8 else 0, 127 if dtype == np.int8 else 255, (3, 3, 2, 2), endpoint=True)
    count = draw(st.sampled_from([1, 3]))
    scale = chance.uniform(0.001, 1, count).astype(draw(st.sampled_from([np.float32, np.float64])))
    return numbers.astype(dtype), scale, np.array([draw(ZERO[dtype]) for _ in range(count)]), axis


@given(quantized())
def test_what_was_quantized_comes_back(given_: tuple[np.ndarray, np.ndarray, np.ndarray, int]):
    numbers, scale, zero, axis = given_
    values = dequantized(numbers, scale, zero, axis)
    again, same = requantized(values, numbers.dtype, scale, zero, axis)
    assert again.tobytes() == numbers.tobytes()
    assert same is scale
    chosen, same = requantized(values[:, :, :1], numbers.dtype, scale, zero, axis)
    assert (chosen == numbers[:, :, :1]).all()
    assert same is scale


@given(quantized(), st.floats(1.0625, 900))
def test_other_values_are_off_by_half_a_step_at_most(given_: tuple[np.ndarray, np.ndarray, np.ndarray, int], factor: float):
    numbers, scale, zero, axis = given_
    values = dequantized(numbers, scale, zero, axis) * factor + 0.01
    again, new = requantized(values, numbers.dtype, scale, zero, axis)
    assert (new.shape, new.dtype, again.dtype) == (scale.shape, scale.dtype, numbers.dtype)
    steps = new.astype(np.float64).reshape([-1 if i == axis and new.size > 1 else 1 for i in range(4)])
    assert (np.abs(dequantized(again, new, zero, axis) - values) <= steps * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_scale_is_as_fine_as_it_can_be(axis: int):
    values = np.random.default_rng(0).normal(size=(3, 3, 5, 5))
    numbers, scale = requantized(values, np.dtype(np.int8), np.ones(3), np.zeros(3), axis)
    assert np.abs(np.moveaxis(numbers, axis, 0).reshape(3, -1).astype(int)).max(1).tolist() == [127] * 3
    assert np.allclose(scale, np.abs(np.moveaxis(values, axis, 0).reshape(3, -1)).max(1) / 127)


def test_a_filter_of_zeros_has_a_scale():
    numbers, scale = requantized(np.zeros((2, 1, 3, 3)), np.dtype(np.int8), np.ones(2, np.float32), np.zeros(2), 0)
    assert not numbers.any()
    assert (scale > 0).all()

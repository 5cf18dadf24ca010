"""Answers of filters to one image: the same with numpy and without, and what their difference is measured in."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from chkpt_channels.core.dtypes import BY_NAME, numpy_dtype
from chkpt_channels.core.elements import PLAIN, SmallTensor
from chkpt_channels.transform.mixing import responses


def test_noise_is_the_same_every_time():
    """The first outputs of SplitMix64 from the state 0 are e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f."""
    assert responses.noise((3,)).values() == [0xE2 / 255, 0x6E / 255, 0x06 / 255]
    assert responses.noise((2, 3)).shape == (2, 3)


def test_long_noise_repeats(monkeypatch: pytest.MonkeyPatch):
    short = responses.noise((4,)).values()
    monkeypatch.setattr(responses, "PERIOD", 4)
    assert responses.noise((2, 5)).values() == [*short, *short, *short[:2]]


@pytest.mark.parametrize("name", sorted(PLAIN))
@pytest.mark.parametrize("axis", [0, 1, 3])
def test_answers_are_the_same_with_numpy(name: str, axis: int):
    kernel = np.random.default_rng(axis).normal(size=(4, 3, 2, 5)).astype(numpy_dtype(BY_NAME[name]))
    shape = [1 if i == axis else n for i, n in enumerate(kernel.shape)]
    image = responses.noise(shape)
    plain = responses.of_filters(SmallTensor(kernel.tobytes(), BY_NAME[name], kernel.shape), image, axis)
    assert plain == responses.of_filters(kernel, image.array(), axis)
    exact = np.tensordot(np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1), image.array().ravel(), 1)
    assert np.allclose(plain, exact.astype(np.float64))


def test_the_unit_is_that_of_the_largest_answer():
    assert responses.difference([3.0, -5.0], [3.0, -5.25], BY_NAME["F16"]) == (0.25, 0.25 / (4 * 2.0**-10))
    assert responses.difference([0.0], [0.5], BY_NAME["F32"]) == (0.5, 0.5)
    assert responses.difference([2.0**-1060], [0.0], BY_NAME["F64"]) == (2.0**-1060, 2.0**-1060)


def test_what_is_not_finite_takes_no_part():
    assert responses.difference([nan, inf, 1.0], [nan, inf, 1.5], BY_NAME["F32"])[0] == 0.5

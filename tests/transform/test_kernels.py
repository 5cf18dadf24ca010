"""The arithmetic around a kernel: what is not finite, and how far old and new answers lie apart."""

from __future__ import annotations

import numpy as np
import pytest

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv
from chkpt_channels.transform.kernels import KernelChange, first_not_finite, mixed_kernel, parity
from chkpt_channels.transform.mixing.matrix import Mixing, luma, mean, sum_
from tests.support.memory import BF16, Memory, kernel


@pytest.mark.parametrize("layout", ["OIHW", "IOHW", "HWIO", "HWOI", "OHWI"])
def test_a_bad_filter_is_found_wherever_its_axis_is(layout: str):
    sizes = {"O": 4, "I": 3, "H": 2, "W": 2}
    good = np.ones([sizes[letter] for letter in layout], np.float32)
    assert first_not_finite(good, Layout(layout)) is None
    np.moveaxis(good, layout.index("O"), 0)[2].flat[5] = np.nan
    assert first_not_finite(good, Layout(layout)) == 2


def change(array: np.ndarray, rule: Mixing, layout: str) -> tuple[Memory, KernelChange]:
    checkpoint = Memory({"": {"w": array}})
    form = Layout(layout)
    conv = FirstConv(checkpoint.tensors["w"], form, rule.old, "user")
    return checkpoint, KernelChange(conv, form, rule, form.with_channels(array.shape, rule.old, rule.new))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16])
@pytest.mark.parametrize(
    ("rule", "layout", "shape"),
    [(sum_(3), "OIHW", (8, 3, 5, 5)), (luma([0.3, 0.6, 0.1]), "HWIO", (5, 5, 1, 8)), (sum_(3), "O(HWI)", (8, 75))],
    ids=["sum", "luma", "folded"],
)
def test_the_right_kernel_is_as_near_as_rounding_allows(dtype: type, rule: Mixing, layout: str, shape: tuple[int, ...]):
    """One rounding an element: the sum of 75 of them stays within a few units of the largest answer."""
    checkpoint, right = change(kernel(*shape, dtype=dtype), rule, layout)
    largest, ulp = parity(checkpoint, right, mixed_kernel(checkpoint, right), None)
    assert 0 <= largest < 0.1
    assert ulp < 8


def test_the_wrong_kernel_is_far_away():
    checkpoint, right = change(kernel(8, 3, 5, 5), sum_(3), "OIHW")
    wrong = mixed_kernel(checkpoint, right._replace(mixing=mean(3)))
    largest, ulp = parity(checkpoint, right, wrong, None)
    assert largest > 0.1
    assert ulp > 10_000


def test_a_kernel_of_zeros_has_no_unit():
    checkpoint, right = change(np.zeros((8, 3, 5, 5), np.float32), sum_(3), "OIHW")
    assert parity(checkpoint, right, mixed_kernel(checkpoint, right), None) == (0, 0)

"""The arithmetic around a kernel: what is not finite, and how far old and new answers lie apart."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels import UnsupportedError
from chkpt_channels.core import elements
from chkpt_channels.core.dtypes import BY_NAME, numpy_dtype
from chkpt_channels.core.layout import KNOWN, Layout
from chkpt_channels.core.tensors import FirstConv
from chkpt_channels.transform.kernels import KernelChange, first_not_finite, mixed_kernel, parity, stored
from chkpt_channels.transform.mixing.matrix import Mixing, luma, mean, repeat, select, sum_, zero
from chkpt_channels.transform.parametrizations import Parametrization
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


NAMES = sorted(elements.PLAIN)
RULES = [sum_(3), select(3, [2, 1, 0]), select(3, [0, 0, 2, 1]), repeat(3, 5), zero(3, 4), mean(3, 2), luma([0.3, 0.6, 0.1])]


@given(
    st.sampled_from(NAMES),
    st.sampled_from(RULES),
    st.sampled_from(KNOWN),
    st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=40),
    st.booleans(),
)
def test_small_kernels_are_mixed_to_the_bits_of_numpy(name: str, rule: Mixing, spelling: str, bits: list[int], allow: bool):
    """Or refused for the same filter: of any bits, NaNs, infinities and subnormal numbers among them, in every layout."""
    layout, dtype = Layout(spelling), BY_NAME[name]
    sizes = {"O": 3, "I": rule.old, "H": 2, "W": 3, "D": 2, "G": 4}
    shape = tuple(prod(sizes[letter] for letter in letters) for letters in layout.axes)
    patterns = np.array(bits, "u8").astype(f"u{dtype.bits // 8}")
    array = np.resize(patterns, shape).view(numpy_dtype(dtype))
    answers = []
    for most in (elements.MOST, 0):
        checkpoint, right = change(array, rule, spelling)
        with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
            patch.setattr(elements, "MOST", most)
            try:
                new = mixed_kernel(checkpoint, right, allow_nonfinite=allow)
                assert isinstance(new, elements.SmallTensor) == bool(most)
                answers.append((new.tobytes(), new.shape, parity(checkpoint, right, new, None)))
            except UnsupportedError as error:
                answers.append(str(error))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "changed", [{"mixing": luma([0.3, 0.6, 0.1])._replace(offset=(0.5,))}, {"parametrization": Parametrization()}, {"groups": 3}]
)
def test_what_else_depends_on_the_kernel_is_computed_with_numpy(changed: dict):
    checkpoint, right = change(kernel(6, 1, 3, 3), luma([0.3, 0.6, 0.1]), "OIHW")
    assert isinstance(stored(checkpoint, right), elements.SmallTensor)
    conv = right.conv._replace(groups=changed.get("groups", 1))
    others = {name: value for name, value in changed.items() if name != "groups"}
    assert isinstance(stored(checkpoint, right._replace(conv=conv, **others)), np.ndarray)

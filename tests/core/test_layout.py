"""Layouts: where the channel axis is, however the kernel lies."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.core.layout import KNOWN, Layout


@pytest.mark.parametrize(
    ("spelling", "shape", "channels", "view"),
    [
        ("OIHW", (8, 3, 7, 5), 3, (8, 3, 35)),
        ("OIW", (8, 1, 9), 1, (8, 1, 9)),
        ("OIDHW", (8, 3, 2, 7, 5), 3, (8, 3, 70)),
        ("OI", (8, 3), 3, (8, 3, 1)),
        ("IOHW", (3, 8, 7, 5), 3, (1, 3, 280)),
        ("HWIO", (7, 5, 3, 8), 3, (35, 3, 8)),
        ("HWOI", (7, 5, 8, 3), 3, (280, 3, 1)),
        ("OHWI", (8, 7, 5, 3), 3, (280, 3, 1)),
        ("O(GI)HW", (8, 12, 3, 3), 3, (32, 3, 9)),
        ("O(IG)HW", (8, 12, 3, 3), 3, (8, 3, 36)),
        ("O(HWI)", (8, 768), 3, (2048, 3, 1)),
        ("O(IHW)", (8, 768), 3, (8, 3, 256)),
        ("(HWI)O", (768, 8), 3, (256, 3, 8)),
        ("(IHW)O", (768, 8), 3, (1, 3, 2048)),
    ],
)
def test_views(spelling: str, shape: tuple[int, ...], channels: int, view: tuple[int, int, int]):
    assert Layout(spelling).view(shape, channels) == view


@given(st.sampled_from(KNOWN), st.integers(1, 5), st.integers(1, 5), st.data())
def test_a_view_holds_every_element_before_and_after(spelling: str, old: int, new: int, data: st.DataObject):
    layout = Layout(spelling)
    folded = data.draw(st.integers(1, 4)) if layout.folded else 1
    shape = tuple(old * folded if "I" in letters else data.draw(st.integers(1, 4)) for letters in layout.axes)
    grown = layout.with_channels(shape, old, new)
    pre, channels, post = layout.view(shape, old)
    assert (channels, pre * channels * post) == (old, prod(shape))
    assert layout.view(grown, new) == (pre, new, post)


@pytest.mark.parametrize(
    ("spelling", "shape", "channels"),
    [("OIHW", (8, 3, 7), 3), ("OIHW", (8, 6, 7, 7), 3), ("O(GI)HW", (8, 13, 3, 3), 3), ("OIHW", (8, 3, 7, 7), 0)],
    ids=["rank", "not folded", "folded", "none"],
)
def test_shapes_that_do_not_fit(spelling: str, shape: tuple[int, ...], channels: int):
    with pytest.raises(ValueError, match=r"axes|does not hold"):
        Layout(spelling).view(shape, channels)


@pytest.mark.parametrize("spelling", ["", "NCHW", "oihw", "OIHWX", "O(I)HW"])
def test_unknown_spellings(spelling: str):
    with pytest.raises(ValueError, match="known are OIHW"):
        Layout(spelling)

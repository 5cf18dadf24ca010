"""How many channels an axis holds that may hold more than them."""

from __future__ import annotations

import pytest

from chkpt_channels.discovery.like.widths import before_target, image, may_be_folded


@pytest.mark.parametrize(
    ("pair", "convolution", "linear"),
    [
        ((3, 1), False, False),
        ((1, 3), False, False),
        ((3, 4), False, False),
        ((4, 3), False, False),
        ((4, 9), False, False),
        ((4, 8), False, True),
        ((8, 4), False, True),
        ((3, 13), False, False),
        ((3, 6), False, True),
        ((3, 12), False, True),
        ((13, 12), False, False),
        ((6, 2), True, True),
        ((9, 3), True, True),
        ((12, 4), True, True),
        ((4, 12), True, True),
        ((12, 16), True, True),
        ((12, 24), True, True),
        ((48, 16), True, True),
        ((192, 64), True, True),
        ((768, 256), True, True),
        ((588, 196), True, True),
        ((21, 7), True, True),
        ((200, 150), True, True),
        ((200, 100), False, True),
        ((3 << 20, 1 << 20), True, True),
    ],
)
def test_widths_that_may_be_more_than_channels(pair: tuple[int, int], convolution: bool, linear: bool):
    assert may_be_folded(pair, convolves=True) is convolution
    assert may_be_folded(pair, convolves=False) is linear


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((12, 4), (3, 1)),
        ((4, 12), (1, 3)),
        ((768, 256), (3, 1)),
        ((256, 768), (1, 3)),
        ((768, 1024), (3, 4)),
        ((1024, 768), (4, 3)),
        ((256, 1024), (1, 4)),
        ((1536, 768), (6, 3)),
        ((8, 2), (4, 1)),
        ((1 << 62, 1 << 60), (4, 1)),
    ],
)
def test_the_image_of_a_folded_axis(pair: tuple[int, int], expected: tuple[int, int]):
    assert image(pair) == expected


@pytest.mark.parametrize(
    ("pair", "target", "expected"), [((12, 4), 1, 3), ((12, 4), 4, 12), ((12, 4), 3, None), ((3, 1), 3, None), ((3, 4), 3, None)]
)
def test_the_channels_before_a_target(pair: tuple[int, int], target: int, expected: int | None):
    assert before_target(pair, target) == expected

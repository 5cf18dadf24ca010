"""How many channels the image has where an axis may hold more than them.

Patches of a Linear layer, space-to-depth and stacked images put pixels or frames into the channel axis. LIKE shows the ratio of
the widths, 12 to 4, and not whether these are bands or blocks of 2 × 2 colors: where both are common, the layout is ambiguous.
"""

from __future__ import annotations

from fractions import Fraction
from math import gcd, isqrt

from chkpt_channels.discovery.law.patch_embeddings import SPACE_TO_DEPTH

COLORS = frozenset({1, 3, 4})
"""The channels of usual images: gray, RGB, RGBA."""
WIDEST = 1 << 14
"""Wider axes are patches in any case: 64 × 64 pixels of RGBA."""

Pair = tuple[int, int]
"""A width before and after."""


def may_be_folded(pair: Pair, *, convolves: bool) -> bool:
    """Whether an axis of these widths may hold more than channels: in a Linear layer wherever the widths have a common factor, in
    a convolution where blocks of that size leave usual images."""
    common = gcd(*pair)
    if common == 1 or max(pair) > WIDEST:
        return common > 1
    if not convolves:
        return max(pair) > max(COLORS)
    blocks = {width // SPACE_TO_DEPTH[width] for width in pair if width in SPACE_TO_DEPTH}
    if any(common % block == 0 for block in blocks):
        return True
    return any(_are_usual(pair, block) for block in range(2, common + 1) if common % block == 0)


def _are_usual(pair: Pair, block: int) -> bool:
    """Whether blocks of so many pixels or frames make both images usual ones. Three frames of gray and RGBA: 3 and 12 bands."""
    colors = {pair[0] // block, pair[1] // block}
    return colors <= COLORS and (colors != {1, 4} or _is_square(block))


def image(pair: Pair) -> Pair:
    """The channels of the image, before and after, where a folded axis of these widths is all that is known: three colors if that
    fits, as without LIKE; else the fewest that leave a square of pixels; else the fewest."""
    step = pair[0] // gcd(*pair)
    fits = [count for count in range(step, min(pair[0], WIDEST), step) if pair[0] % count == 0] or [step]
    channels = 3 if 3 in fits else next((count for count in fits if _is_square(pair[0] // count)), fits[0])
    return channels, channels * pair[1] // pair[0]


def before_target(pair: Pair, target: int) -> int | None:
    """The old channels from which the ratio of these widths leads to `target` new ones; None where there are none."""
    before = Fraction(pair[0], pair[1]) * target
    return int(before) if before.denominator == 1 and pair[0] % int(before) == 0 else None


def _is_square(number: int) -> bool:
    return isqrt(number) ** 2 == number

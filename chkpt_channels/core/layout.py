"""Where a kernel keeps its input channels.

A layout is written with one letter an axis (O output, I input, D H W space, G space-to-depth block), parentheses around
letters that share one stored axis: "OIHW", "HWIO", "O(GI)HW". Every layout is viewed as three axes (pre, I, post): all that
precede the input channels, the channels, all that follow.
"""

from __future__ import annotations

import re
from math import prod
from typing import Self

KNOWN = (
    *("OIHW", "OIW", "OIDHW", "OI"),
    *("IOHW", "IOW", "IODHW"),
    *("HWIO", "WIO", "DHWIO", "IO"),
    *("HWOI", "WOI", "DHWOI"),
    *("OHWI", "OWI", "ODHWI"),
    # Space-to-depth and Linear patch embeddings: the order of colors and pixels is in the network's code, not in the shape.
    # Colors fastest, (GI): tresnet, YOLOv5's Focus; slowest, (IG): pixel_unshuffle. The wrong one is over 100 % off.
    *("O(GI)HW", "O(IG)HW"),
    # Colors fastest, (HWI): naflexvit, siglip2, fuyu; slowest, (IHW): llama4, gemma4_vit. The wrong one is 24 to 110 % off.
    *("O(HWI)", "O(IHW)", "(HWI)O", "(IHW)O"),
)

_AXES = {text: tuple(group or letter for group, letter in re.findall(r"\((\w+)\)|(\w)", text)) for text in KNOWN}
_CHANNEL_AXES = {text: next(i for i, letters in enumerate(axes) if "I" in letters) for text, axes in _AXES.items()}


class Layout(str):
    """A layout as it is written. Raises ValueError for what is not in KNOWN."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """The layout that is written so."""
        if text not in KNOWN:
            raise ValueError(f"{text!r} is not a layout; known are {', '.join(KNOWN)}")
        return super().__new__(cls, text)

    @property
    def axes(self) -> tuple[str, ...]:
        """The letters of each stored axis: ("O", "GI", "H", "W")."""
        return _AXES[self]

    @property
    def channel_axis(self) -> int:
        """The stored axis that holds I."""
        return _CHANNEL_AXES[self]

    @property
    def folded(self) -> bool:
        """Whether the channel axis holds more than the channels."""
        return len(self.axes[self.channel_axis]) > 1

    @property
    def transposed(self) -> bool:
        """Whether it is that of transposed convolutions."""
        return self in ("IOHW", "IOW", "IODHW", "HWOI", "WOI", "DHWOI")

    def holds(self, shape: tuple[int, ...], channels: int) -> bool:
        """Whether the channel axis of `shape` has room for so many input channels, and for pixels only where it holds these."""
        size = shape[self.channel_axis]
        return channels > 0 and (size % channels == 0 if self.folded else size == channels)

    def view(self, shape: tuple[int, ...], channels: int) -> tuple[int, int, int]:
        """(pre, I, post) with pre * I * post = the number of elements.

        Raises ValueError where `shape` has another rank or does not hold `channels` input channels.
        """
        if len(shape) != len(self.axes):
            raise ValueError(f"{self} has {len(self.axes)} axes, the shape {list(shape)} has {len(shape)}")
        at = self.channel_axis
        letters = self.axes[at]
        if not self.holds(shape, channels):
            raise ValueError(f"axis {at} of {list(shape)} does not hold {channels} input channels in {self}")
        folded = shape[at] // channels
        before, after = (folded, 1) if letters.endswith("I") else (1, folded)
        return prod(shape[:at]) * before, channels, after * prod(shape[at + 1 :])

    def with_channels(self, shape: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
        """`shape` after its `old` input channels became `new` ones."""
        at = self.channel_axis
        return (*shape[:at], shape[at] // old * new, *shape[at + 1 :])

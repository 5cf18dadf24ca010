"""Whether the channels of a kernel come from somewhere, for kernels that take more than one.

The law: a kernel that takes as many channels as an image has is a first conv, or something is known to make that width for it.
A kernel whose width an earlier layer makes is inside the network, and so is one that is grouped over a wider layer. Where the
evidence is weak it is open: a heads' width made somewhere in a file without order, a group count that nothing else confirms.
What is neither is free: only the image explains it. One channel has evidence of its own (depthwise.py).
"""

from __future__ import annotations

from enum import Enum

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.discovery.law.network import LayerWeight, Network
from chkpt_channels.discovery.law.places import ENDS, Places

MOST_BANDS = 32
"""Wider inputs are features, not images (the widest public pretrained input has 13 bands)."""
NEAREST = 3
"""Layers before a kernel that can feed it: a block with branches puts others in between."""

MOST_CLASSES = 4
"""Channels that a Linear layer makes as scores: it feeds no convolution with them."""
MOST_OF_STEM = 4
"""Layers of a block in which one that makes a width feeds the one that takes it."""


class State(Enum):
    """What is known of a kernel's input: other layers make it, the evidence does not decide, or only an image explains it."""

    INSIDE = "inside"
    OPEN = "open"
    FREE = "free"


class Verdict(NamedTuple):
    """A kernel's state, and the evidence in words. `is_weak` says that one piece of evidence alone puts it inside, `by_place`
    that its place or window, not its name alone, shows that it sees the image, `is_fed` that a layer which may come before it
    makes its width: another network's output."""

    state: State
    why: str = ""
    is_weak: bool = False
    by_place: bool = False
    is_fed: bool = False


class Evidence:
    """The verdicts on kernels of several channels. `first` is the first convolution, where the order is known."""

    def __init__(self, places: Places, first: LayerWeight | None) -> None:
        self.network: Network = places.network
        self.places, self.first = places, first

    def verdict(self, kernel: LayerWeight) -> Verdict:
        """The verdict on one."""
        width = kernel.channels
        if self.network.is_made_before(kernel, width):
            return self._fed(kernel)
        if doubled := self._doubled(kernel):
            return Verdict(State.INSIDE, f"{doubled.key} makes two numbers for each of {width} channels, a mean and a variance")
        grouped = self._grouped(kernel)
        if grouped is State.INSIDE:
            return Verdict(grouped, f"a grouped convolution over the {kernel.filters} channels of an earlier layer")
        if self._in_series(kernel):
            return Verdict(State.INSIDE, "is one of a series of inner layers")
        if grouped is State.OPEN:
            return Verdict(grouped, f"may be a grouped convolution over the {kernel.filters} channels of an earlier layer")
        if not self.network.ordered and (maker := self._made_somewhere(kernel)):
            home = self.places.home(kernel)
            if home and home == self.places.home(maker) and len(self.places.inside[home]) <= MOST_OF_STEM:
                return Verdict(State.INSIDE, f"{maker.key} of the same block makes {width} channels")
            return Verdict(State.OPEN, f"{maker.key} makes {width} channels, and the order is not known", is_fed=True)
        return Verdict(State.FREE)

    def _fed(self, kernel: LayerWeight) -> Verdict:
        """The verdict where layers before it make its width. A network that begins behind another one that ends in colors may
        take these, or the image: a generator and its discriminator."""
        part = self.places.part(kernel) or (kernel.layer if kernel.layer.count(".") <= self.network.trunk + 1 else "")
        may_begin = part and kernel.is_wide and kernel.channels == 3 and not ENDS.search(kernel.key)
        makers = self.network.made_before(kernel, kernel.channels) if may_begin else []
        if may_begin and not any(k.layer.startswith(f"{part}.") for k in makers):
            why = f"begins a part of the network behind {makers[-1].key}, which makes 3 channels"
            return Verdict(State.OPEN, why, is_fed=True)
        return Verdict(State.INSIDE, f"an earlier layer makes {kernel.channels} channels")

    def _doubled(self, kernel: LayerWeight) -> LayerWeight | None:
        """A layer that makes the mean and the variance of as many channels, as VAE encoders end."""
        width = kernel.channels
        for maker in self.network.makers.get(2 * width, ()):
            is_last = maker.window and maker.channels != width and (maker.channels >= 2 * maker.filters or maker.is_point)
            is_near = maker in self.network.preceding(kernel, NEAREST)  # not in another network: a discriminator takes two images
            is_near = is_near and self.network.branch(maker) == self.network.branch(kernel)
            if is_last and (ENDS.search(kernel.key) or is_near):
                return maker
        return None

    def _grouped(self, kernel: LayerWeight) -> State:
        """Whether it is grouped: as many filters right before it, a whole number of groups, and its series has one number of
        groups or one width of a group. DPN-92 has features.conv2_1.c3x3_b.conv [96, 3, 3, 3] of 32 groups."""
        if kernel is self.first or self.places.begins_network(kernel) or not looks_grouped(self.network, kernel):
            return State.FREE
        series = self.network.series[kernel.pattern]
        counts, widths = {k.filters / k.channels for k in series}, {k.channels for k in series}
        several = len({k.filters for k in series}) > 1
        return State.INSIDE if several and 1 in (len(counts), len(widths)) else State.OPEN

    def _in_series(self, kernel: LayerWeight) -> bool:
        """Whether three or more of its name have this width and several numbers of filters, and none stands where stems do."""
        series = [k for k in self.network.series[kernel.pattern] if k.channels == kernel.channels]
        if len(series) < 3 or len({k.filters for k in series}) < 2 or len({self.places.home(k) for k in series}) < 2:
            return False
        return not any(self.places.is_named(k) or self.places.inside[self.places.home(k)][0] is k for k in series)

    def _made_somewhere(self, kernel: LayerWeight) -> LayerWeight | None:
        """A layer that makes its width and may come before it. Heads as wide as the image say nothing of other parts."""
        for maker in self.network.makers.get(kernel.channels, ()):
            is_conv = bool(maker.window) or kernel.channels > MOST_CLASSES
            is_other = maker is not kernel and maker.channels != kernel.channels and not maker.follows(kernel) and is_conv
            if is_other and (ENDS.search(kernel.key) or not ENDS.search(maker.key)):
                return maker
        return None


def looks_grouped(network: Network, kernel: LayerWeight) -> bool:
    """Whether a layer right before it makes as many channels as it has filters, and these can be cut into groups of its width."""
    if kernel.channels == 1 or kernel.filters % kernel.channels or kernel.filters == kernel.channels:
        return False
    if kernel.at not in network.grouped:
        before = network.preceding(kernel, NEAREST)
        fed = any(k.filters == kernel.channels for k in before)
        made = not fed and any(k.filters == kernel.filters and k.channels != kernel.channels for k in before)
        network.grouped[kernel.at] = made
    return network.grouped[kernel.at]


def is_full(network: Network, kernel: LayerWeight) -> bool:
    """Whether it takes several channels and does not look grouped."""
    return kernel.channels > 1 and not looks_grouped(network, kernel)


def is_composed(network: Network, kernel: LayerWeight, *, is_named: bool) -> bool:
    """Whether its width may come from others by splitting or joining them: a multiple or a sum of widths that layers make, or a
    group or a part of one right before it."""
    width, made = kernel.channels, [w for w in network.makers if w > 1]
    if any(3 < m < width and width % m == 0 for m in made):
        return True
    if is_named:
        return False
    if not network.ordered and any(m > width and m % width == 0 and kernel.filters % (m // width) == 0 for m in made):
        return True
    if any(k.filters % width == 0 for k in network.preceding(kernel, NEAREST)):
        return True
    if any(k.channels > width and k.channels % width == 0 for k in network.preceding(kernel, NEAREST - 1)):
        return True
    return any(width - m in network.makers for m in made if 3 < m < width - 3)

"""What speaks for and against a kernel that could see the image."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property

from chkpt_channels.discovery.network import LayerWeight, Network, numbered_apart

MOST_BANDS = 32
"""Wider inputs are features, not images (the widest public pretrained input has 13 bands)."""

STEM = re.compile(
    r"(^|[._/])(conv_?stem|stem|conv_?1|conv_?in|conv_first|first_conv|patch_embed\w*|conv1_1|features[._]0|inc|embedder)([._/]|$)"
)
ENTRY = re.compile(rf"{STEM.pattern}|input_blocks?[._]0|x_embedder|input_proj|conv_?0|^0[._]")
FED = "an earlier layer produces"
_SENSES = r"audio|speech|wav|language|mask_|prompt|(^|[._])(text|lm[._]|mel_|depth_|point)"
OTHER_SENSES = re.compile(_SENSES)
"""Towers for something else than the image."""
ENDS = re.compile(rf"{_SENSES}|decoder|heads?[._]|(^|[._])(neck|up|out|final|deconv)")
"""These, and where networks end."""
_DEPTHWISE = re.compile(r"dw|depth|spatial|token_conv|lepe|pos_conv")


class Evidence:
    """The kernels of a network that are narrow enough for an image, and what shapes say of each."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.narrow = [k for k in network.convs if k.channels <= MOST_BANDS and not is_no_kernel(k)]
        self._inner_parents: defaultdict[str, set[str]] = defaultdict(set)
        self._equal: dict[tuple[str, int], set[int]] = {}
        self._series: defaultdict[tuple[str, int], list[LayerWeight]] = defaultdict(list)
        for kernel in self.narrow:
            self._series[kernel.pattern, kernel.channels].append(kernel)

    @cached_property
    def verdicts(self) -> dict[int, str]:
        """For each narrow kernel by its place, what speaks against it; "" for those that could see the image."""
        inner = {k.at: self._fed(k) or self._handed(k) or self._repeats(k) for k in self.narrow}
        for kernel in self.narrow:
            if inner[kernel.at] and kernel.channels == 1:
                self._inner_parents[kernel.pattern].add(_parent(kernel))
        return {k.at: inner[k.at] or self._works_in_block(k) for k in self.narrow}

    @cached_property
    def first(self) -> LayerWeight | None:
        """The first convolution, where the order is known and nothing that convolves comes before it."""
        first = next((k for k in self.network.convs if not is_no_kernel(k)), None) if self.network.ordered else None
        if first is None or first.channels > MOST_BANDS or self._takes_over(first):
            return None
        return first

    @cached_property
    def makers(self) -> dict[int, list[LayerWeight]]:
        """The convolutions by their number of filters."""
        made: defaultdict[int, list[LayerWeight]] = defaultdict(list)
        for kernel in self.network.convs:
            if not is_color_shift(kernel):
                made[kernel.filters].append(kernel)
        return made

    def _fed(self, kernel: LayerWeight) -> str:
        """Another layer hands on exactly the channels that this one takes. One channel is too few to tell."""
        width = kernel.channels
        if width == 1:
            return ""
        made = [k for k in self.makers.get(width, ()) if k is not kernel]
        if self.network.ordered and any(k.at < kernel.at for k in made):
            return f"{FED} {width} channels"
        if width == 3:
            return ""  # decoders and heads make three channels too
        # a mean and a variance, or two predictions: made of many channels
        doubled = [k for k in self.makers.get(2 * width, ()) if k.channels >= 2 * k.filters or set(k.window) == {1}]
        narrow = [k for k in (*made, *doubled) if kernel.window == k.window == (1, 1) or _gives_back(k)]
        return f"its {width} channels are produced inside the network" if narrow else ""

    def _handed(self, kernel: LayerWeight) -> str:
        """The width in front is its number of filters: grouped, depthwise, or transposed."""
        if kernel is self.first or not self._takes_over(kernel):
            return ""
        kin = self._series[kernel.pattern, kernel.channels]
        lowest = min(kin, key=lambda k: k.at) if kernel.channels == 3 else self.first
        if lowest is not kernel and self.is_analogue(kernel, lowest) and not self._takes_over(kernel, most=1):
            return ""
        return f"a grouped convolution over the {kernel.filters} channels of an earlier layer"

    def _takes_over(self, kernel: LayerWeight, most: int = 6) -> bool:
        """Whether one of the nearest layers in front makes or takes as many channels as this has filters."""
        if kernel.is_patch or self.begins_full(kernel):
            return False
        before = list(self.network.preceding(kernel, most))
        if kernel.channels == 1 and self.network.ordered and kernel.at:
            before.append(self.network.kernels[kernel.at - 1])
        for other in before:
            if other.channels == kernel.channels and (kernel.channels > 1 or self.are_branches(kernel, other)):
                continue
            if kernel.filters == other.filters or (kernel.filters == other.channels and most > 1):
                return True
        return False

    def begins_full(self, kernel: LayerWeight) -> bool:
        """Whether a full convolution over a window takes its filters next: behind grouped ones stand pointwise ones, behind
        a transposed one to three channels nothing does."""
        takers = [k for k in self.network.following(kernel, 6) if k.channels == kernel.filters]
        if kernel.channels > 1:
            return bool(kernel.filters % kernel.channels and takers)
        return bool(takers and takers[0].window and set(takers[0].window) != {1})

    def is_analogue(self, kernel: LayerWeight, first: LayerWeight | None) -> bool:
        """Whether it stands in a branch just like the one that the first convolution begins."""
        if first is None or kernel is first or kernel.pattern != first.pattern:
            return False
        for mine, its in zip(_modules(kernel.key), _modules(first.key), strict=False):
            if mine != its and (inside := self.network.blocks.get(mine)) == self.network.blocks.get(its) and inside:
                return any(k.channels > kernel.channels for k in self.network.under(mine + "."))
        return False

    def _repeats(self, kernel: LayerWeight) -> str:
        """It stands in one of several blocks that are alike."""
        series = self._series[kernel.pattern, kernel.channels]
        if kernel.channels == 3 or len(series) < 2 or self._is_first(kernel):
            return ""
        return "is in a repeated block" if kernel.at in self._in_equal_blocks(kernel.pattern, kernel.channels) else ""

    def _is_first(self, kernel: LayerWeight) -> bool:
        """Whether it is the first convolution, of its series, or a branch beside it."""
        first = self.first
        return first is not None and (first.pattern == kernel.pattern or self.are_branches(kernel, first))

    def _in_equal_blocks(self, pattern: str, channels: int) -> set[int]:
        """Those of a series whose numbered module holds the same layers as another one's."""
        key = (pattern, channels)
        if key not in self._equal:
            seen: defaultdict[tuple[int, frozenset[str]], dict[str, list[int]]] = defaultdict(dict)
            for kernel in self._series[key]:
                for depth, module in enumerate(_modules(kernel.key)):
                    inside = self.network.blocks.get(module, frozenset())
                    if len(inside) > 1:
                        seen[depth, inside].setdefault(module, []).append(kernel.at)
            self._equal[key] = {at for modules in seen.values() if len(modules) > 1 for ats in modules.values() for at in ats}
        return self._equal[key]

    def _works_in_block(self, kernel: LayerWeight) -> str:
        """The rest of its block takes what it gives, and others of its kind are known to be inside the network."""
        if kernel.channels != 1 or self._is_first(kernel):
            return ""
        alike = self._inner_parents[kernel.pattern] - {_parent(kernel)} or (
            _DEPTHWISE.search(kernel.key) and not STEM.search(_last_words(kernel))
        )
        if alike and any(k.channels == kernel.filters for k in self._block(kernel)):
            return "depthwise: the next layer of its block takes its filters"
        return ""

    def is_lone_point(self, kernel: LayerWeight) -> bool:
        """Whether it looks at single pixels, and stands beside no kernel that sees more: images are not begun so."""
        wide = [k for k in self.narrow_near(kernel) if set(k.window) != {1}]
        if kernel.key.isdecimal():  # frozen TorchScript numbers its constants: no name tells branches
            return set(kernel.window) == {1} and not any(k.filters == kernel.filters for k in wide)
        return set(kernel.window) == {1} and not any(self.are_branches(kernel, k) for k in wide)

    def narrow_near(self, kernel: LayerWeight) -> list[LayerWeight]:
        """The narrow kernels among the neighbors."""
        near = self.network.kernels[max(0, kernel.at - 8) : kernel.at + 9]
        return [k for k in near if k.window and k.channels == kernel.channels]

    def _block(self, kernel: LayerWeight) -> list[LayerWeight]:
        """The other layers of the smallest module that has any."""
        words = kernel.key.split(".")
        for i in range(len(words) - 2, 0, -1):
            module = ".".join(words[:i]) + "."
            near = self.network.kernels[max(0, kernel.at - 8) : kernel.at + 9]
            if others := [k for k in near if k is not kernel and k.key.startswith(module)]:
                return others
        return []

    def are_branches(self, a: LayerWeight, b: LayerWeight) -> bool:
        """Whether the two are parallel branches of a module that holds no other windows. Of one channel, one of them must
        look at single pixels, as in re-parameterised blocks: two windows are a convolution and a depthwise one behind it."""
        if a.filters != b.filters or a.channels != b.channels:
            return False
        module = self.network.shared_module(a, b)
        near = self.network.kernels[max(0, min(a.at, b.at) - 8) : max(a.at, b.at) + 9]
        inside = [k for k in near if k.key.startswith(module)]
        alike = [k for k in inside if k.channels == a.channels and k.filters == a.filters and k.window]
        if not module or any(set(k.window) - {1} for k in inside if k.channels != a.channels or k.filters != a.filters):
            return False
        return a.channels > 1 or (any(set(k.window) == {1} for k in alike) and not numbered_apart(a, b))


def is_no_kernel(kernel: LayerWeight) -> bool:
    """Whether it has the rank of a convolution's weight and is something else: one filter over a vector (attention over
    channels), a scale for each channel, or a shift of the colors (EDSR's MeanShift)."""
    scale = len(kernel.window) == 1 and kernel.window == (1,) and kernel.channels == 1
    return kernel.filters == 1 or scale or is_color_shift(kernel)


def is_color_shift(kernel: LayerWeight) -> bool:
    """Whether it maps three channels to three, pixel by pixel."""
    return kernel.filters == kernel.channels == 3 and set(kernel.window) == {1}


def _gives_back(kernel: LayerWeight) -> bool:
    """Whether a kernel could be the last one: with a window, or as many channels out as in."""
    return set(kernel.window) != {1} or kernel.filters == kernel.channels


def _modules(key: str) -> list[str]:
    """The modules that a layer stands in, outermost first."""
    words = key.split(".")[:-1]
    return [".".join(words[: i + 1]) for i in range(len(words))]


def _parent(kernel: LayerWeight) -> str:
    """The module around the layer's own one."""
    return kernel.key.rsplit(".", 2)[0]


def _last_words(kernel: LayerWeight) -> str:
    return ".".join(kernel.key.split(".")[-3:])

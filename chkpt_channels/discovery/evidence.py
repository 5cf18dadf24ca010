"""The evidence for and against each kernel that could see the image, from names, shapes and the order of layers.

The rule: channels come from somewhere. A kernel whose input width an earlier layer produces is inside the network; the first
convolution is one whose input no layer produces. One channel proves little, because a depthwise kernel [C, 1, k, k] has the
shape of a kernel over a gray image: for these the blocks around a kernel, and the series it belongs to, decide.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property

from chkpt_channels.discovery.network import LayerWeight, Network, numbered_apart

MOST_BANDS = 32
"""Wider inputs are features, not images (the widest public pretrained input has 13 bands)."""

# names of first convolutions: timm conv_stem and patch_embed, diffusers conv_in, RRDBNet conv_first, DPN conv1_1, U-Nets inc,
# transformers embedder; in a Sequential features.0
STEM = re.compile(
    r"(^|[._/])(conv_?stem|stem|conv_?1|conv_?in|conv_first|first_conv|patch_embed\w*|conv1_1|features[._]0|inc|embedder)([._/]|$)"
)
# further names with which networks begin: guided diffusion input_blocks.0, diffusers transformers x_embedder
ENTRY = re.compile(rf"{STEM.pattern}|input_blocks?[._]0|x_embedder|input_proj|conv_?0|^0[._]")
FED = "an earlier layer produces"
"""How the verdict on such a kernel begins; search.py looks for it."""
_SENSES = r"audio|speech|wav|language|mask_|prompt|(^|[._])(text|lm[._]|mel_|depth_|point)"
OTHER_SENSES = re.compile(_SENSES)
"""Branches for another input than the image."""
ENDS = re.compile(rf"{_SENSES}|decoder|heads?[._]|(^|[._])(neck|up|out|final|deconv)")
"""These branches, and the ends of networks: decoders, heads, upsampling."""
_DEPTHWISE = re.compile(r"dw|depth|spatial|token_conv|lepe|pos_conv")
"""Names of depthwise layers: dw and dwconv, lepe (CSWin), pos_conv (wav2vec 2.0)."""

NEAR_LAYERS = 8
"""Layers on either side of a kernel in which its parallel branches are looked for: MobileOne has five in a block."""
NEAREST_LAYERS = 6
"""Layers before or after a kernel that can be its direct neighbors: a block with branches puts others in between."""


class Evidence:
    """The kernels of a network that are narrow enough for an image, and the verdict on each."""

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
        """For each narrow kernel by its index, the evidence against it; "" for those that could see the image."""
        inner = {k.at: self._why_fed(k) or self._why_grouped(k) or self._why_repeated(k) for k in self.narrow}
        # a depthwise kernel is recognized by others of its series: these must be known first
        for kernel in self.narrow:
            if inner[kernel.at] and kernel.channels == 1:
                self._inner_parents[kernel.pattern].add(_parent(kernel))
        return {k.at: inner[k.at] or self._why_depthwise(k) for k in self.narrow}

    @cached_property
    def first(self) -> LayerWeight | None:
        """The first convolution, where the order is known and nothing that convolves comes before it."""
        first = next((k for k in self.network.convs if not is_no_kernel(k)), None) if self.network.ordered else None
        if first is None or first.channels > MOST_BANDS or self._is_grouped(first):
            return None
        return first

    @cached_property
    def makers(self) -> dict[int, list[LayerWeight]]:
        """The convolutions by their number of filters."""
        by_filters: defaultdict[int, list[LayerWeight]] = defaultdict(list)
        for kernel in self.network.convs:
            if not is_color_shift(kernel):  # EDSR begins with one: it takes and produces the colors
                by_filters[kernel.filters].append(kernel)
        return by_filters

    def _why_fed(self, kernel: LayerWeight) -> str:
        """The verdict where another layer produces exactly the channels that this one takes. One channel proves nothing: heads
        and attention maps have one filter."""
        width = kernel.channels
        if width == 1:
            return ""
        producers = [k for k in self.makers.get(width, ()) if k is not kernel]
        if self.network.ordered and any(k.at < kernel.at for k in producers):
            return f"{FED} {width} channels"
        if width == 3:
            return ""  # without the order: decoders and heads produce three channels too
        # a VAE encoder ends in the mean and the variance of each latent channel; a detector in two predictions
        doubled = [k for k in self.makers.get(2 * width, ()) if k.channels >= 2 * k.filters or set(k.window) == {1}]
        last = [k for k in (*producers, *doubled) if kernel.window == k.window == (1, 1) or _may_be_last(k)]
        return f"its {width} channels are produced inside the network" if last else ""

    def _why_grouped(self, kernel: LayerWeight) -> str:
        """The verdict where the preceding width is its number of filters: it is grouped, depthwise or transposed. DPN-92 has
        features.conv2_1.c3x3_b.conv [96, 3, 3, 3] of 32 groups; its stem is features.conv1_1.conv [64, 3, 7, 7]."""
        if kernel is self.first or not self._is_grouped(kernel):
            return ""
        kin = self._series[kernel.pattern, kernel.channels]
        # a parallel branch begins as the first one does: the layers before it are the end of another branch
        lowest = min(kin, key=lambda k: k.at) if kernel.channels == 3 else self.first
        if lowest is not kernel and self.is_analogue(kernel, lowest) and not self._is_grouped(kernel, most=1):
            return ""
        return f"a grouped convolution over the {kernel.filters} channels of an earlier layer"

    def _is_grouped(self, kernel: LayerWeight, most: int = NEAREST_LAYERS) -> bool:
        """Whether one of the nearest preceding layers produces or takes as many channels as this has filters."""
        if kernel.is_patch or self.begins_full(kernel):
            return False
        preceding = list(self.network.preceding(kernel, most))
        if kernel.channels == 1 and self.network.ordered and kernel.at:  # of another branch too: its input may be shared
            preceding.append(self.network.kernels[kernel.at - 1])
        for other in preceding:
            if other.channels == kernel.channels and (kernel.channels > 1 or self.are_branches(kernel, other)):
                continue
            if kernel.filters == other.filters or (kernel.filters == other.channels and most > 1):
                return True
        return False

    def begins_full(self, kernel: LayerWeight) -> bool:
        """Whether an ungrouped convolution over a window takes its filters next: pointwise layers follow a grouped one, none
        follows a transposed one to three channels."""
        takers = [k for k in self.network.following(kernel, NEAREST_LAYERS) if k.channels == kernel.filters]
        if kernel.channels > 1:
            return bool(kernel.filters % kernel.channels and takers)
        return bool(takers and takers[0].window and set(takers[0].window) != {1})

    def is_analogue(self, kernel: LayerWeight, first: LayerWeight | None) -> bool:
        """Whether it begins a numbered branch with the same layers as the one that the first convolution begins."""
        if first is None or kernel is first or kernel.pattern != first.pattern:
            return False
        for module, other in zip(_modules(kernel.key), _modules(first.key), strict=False):
            layers = self.network.blocks.get(module)
            if module != other and layers and layers == self.network.blocks.get(other):
                return any(k.channels > kernel.channels for k in self.network.under(module + "."))
        return False

    def _why_repeated(self, kernel: LayerWeight) -> str:
        """The verdict where it is in one of several blocks with the same layers."""
        series = self._series[kernel.pattern, kernel.channels]
        if kernel.channels == 3 or len(series) < 2 or self._is_first(kernel):
            return ""
        return "is in a repeated block" if kernel.at in self._in_equal_blocks(kernel.pattern, kernel.channels) else ""

    def _is_first(self, kernel: LayerWeight) -> bool:
        """Whether it is the first convolution, one of its series, or a branch parallel to it."""
        first = self.first
        return first is not None and (first.pattern == kernel.pattern or self.are_branches(kernel, first))

    def _in_equal_blocks(self, pattern: str, channels: int) -> set[int]:
        """The indices of those of a series whose numbered module holds the same layers as another one's."""
        key = (pattern, channels)
        if key not in self._equal:
            alike: defaultdict[tuple[int, frozenset[str]], dict[str, list[int]]] = defaultdict(dict)
            for kernel in self._series[key]:
                for depth, module in enumerate(_modules(kernel.key)):
                    layers = self.network.blocks.get(module, frozenset())
                    if len(layers) > 1:
                        alike[depth, layers].setdefault(module, []).append(kernel.at)
            self._equal[key] = {at for modules in alike.values() if len(modules) > 1 for ats in modules.values() for at in ats}
        return self._equal[key]

    def _why_depthwise(self, kernel: LayerWeight) -> str:
        """The verdict where the rest of its block takes its filters, and others of its series are known to be inside."""
        if kernel.channels != 1 or self._is_first(kernel):
            return ""
        alike = self._inner_parents[kernel.pattern] - {_parent(kernel)} or (
            _DEPTHWISE.search(kernel.key) and not STEM.search(_last_words(kernel))
        )
        if alike and any(k.channels == kernel.filters for k in self._block(kernel)):
            return "depthwise: the next layer of its block takes its filters"
        return ""

    def is_lone_point(self, kernel: LayerWeight) -> bool:
        """Whether it looks at single pixels and has no parallel branch with a window: no network begins so. RepVGG's
        stem.conv_1x1 and MobileOne's stem.conv_scale have one."""
        wide = [k for k in self.narrow_near(kernel) if set(k.window) != {1}]
        if kernel.key.isdecimal():  # frozen TorchScript numbers its constants: names show no branches
            return set(kernel.window) == {1} and not any(k.filters == kernel.filters for k in wide)
        return set(kernel.window) == {1} and not any(self.are_branches(kernel, k) for k in wide)

    def narrow_near(self, kernel: LayerWeight) -> list[LayerWeight]:
        """The narrow kernels among the neighbors."""
        near = self.network.kernels[max(0, kernel.at - NEAR_LAYERS) : kernel.at + NEAR_LAYERS + 1]
        return [k for k in near if k.window and k.channels == kernel.channels]

    def _block(self, kernel: LayerWeight) -> list[LayerWeight]:
        """The other layers of the smallest module that has any."""
        words = kernel.key.split(".")
        for i in range(len(words) - 2, 0, -1):
            module = ".".join(words[:i]) + "."
            near = self.network.kernels[max(0, kernel.at - NEAR_LAYERS) : kernel.at + NEAR_LAYERS + 1]
            if others := [k for k in near if k is not kernel and k.key.startswith(module)]:
                return others
        return []

    def are_branches(self, a: LayerWeight, b: LayerWeight) -> bool:
        """Whether the two are parallel branches of a module that holds no other windows. Of one channel, one of them must
        look at single pixels, as in re-parametrized blocks (RepVGG, MobileOne): two windows are a convolution and a depthwise
        one that follows."""
        if a.filters != b.filters or a.channels != b.channels:
            return False
        module = self.network.shared_module(a, b)
        near = self.network.kernels[max(0, min(a.at, b.at) - NEAR_LAYERS) : max(a.at, b.at) + NEAR_LAYERS + 1]
        inside = [k for k in near if k.key.startswith(module)]
        alike = [k for k in inside if k.channels == a.channels and k.filters == a.filters and k.window]
        if not module or any(set(k.window) - {1} for k in inside if k.channels != a.channels or k.filters != a.filters):
            return False
        return a.channels > 1 or (any(set(k.window) == {1} for k in alike) and not numbered_apart(a, b))


def is_no_kernel(kernel: LayerWeight) -> bool:
    """Whether it has the rank of a convolution's weight without being one over an image: one filter over a vector (CoaT
    aggregate.weight [1, 3, 1], attention over channels), a scale per channel [C, 1, 1], or a shift of the colors (EDSR's
    MeanShift)."""
    scale = len(kernel.window) == 1 and kernel.window == (1,) and kernel.channels == 1
    return kernel.filters == 1 or scale or is_color_shift(kernel)


def is_color_shift(kernel: LayerWeight) -> bool:
    """Whether it maps three channels to three, pixel by pixel."""
    return kernel.filters == kernel.channels == 3 and set(kernel.window) == {1}


def _may_be_last(kernel: LayerWeight) -> bool:
    """Whether a kernel could be the network's last: it has a window, or as many filters as channels."""
    return set(kernel.window) != {1} or kernel.filters == kernel.channels


def _modules(key: str) -> list[str]:
    """The modules around a layer, outermost first."""
    words = key.split(".")[:-1]
    return [".".join(words[: i + 1]) for i in range(len(words))]


def _parent(kernel: LayerWeight) -> str:
    """The module around the layer's own module."""
    return kernel.key.rsplit(".", 2)[0]


def _last_words(kernel: LayerWeight) -> str:
    return ".".join(kernel.key.split(".")[-3:])

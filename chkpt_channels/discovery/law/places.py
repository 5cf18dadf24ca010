"""Where layers stand in a network, by their names: modules with the same layers, pairs that take the same input, and the first
layers of its parts.

Names are read by their structure, not by their words: two modules are alike when their layers have the same names. The words are
asked last (`is_named`).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile

from chkpt_channels.core.records import pattern
from chkpt_channels.discovery.law.network import LayerWeight, Network, is_no_kernel

# names of first convolutions, wherever they stand: timm conv_stem and patch_embed, diffusers conv_in, RRDBNet conv_first,
# vit-pytorch to_patch_embedding, transformers embedder
_STEM = pattern(
    r"(^|[._/])(conv_?stem|stem\w*|conv_?in(it)?|conv_?first|first_?conv|patch_?embed\w*|embedder|init(ial)?_?(conv|block)|to_patch\w*)"
    r"([._/]|$)"
)
# names that stems have near the top of a network, and other layers deeper in it: DPN conv1_1, U-Nets inc, in a Sequential
# features.0
_TOP = pattern(
    r"(^|[._/])(conv_?[01]|conv1_1|features[._]0|stage_?0|inc|in_?conv|input_?(conv|block|layer|proj)s?|x_embedder|entry)([._/]|$)"
)
_SENSES = r"audio|speech|wav|language|mask_|prompt|(^|[._])(text|lm[._]|mel_|depth_|point)"
OTHER_SENSES = pattern(_SENSES)
"""Branches for another input than the image."""
ENDS = pattern(rf"{_SENSES}|decod|heads?[._]|(^|[._])(neck|up|out|final|deconv|tail)")
"""These branches, and the ends of networks: decoders, heads, upsampling."""
DEPTHWISE = pattern(
    r"(^|[._])(dw\w*|\w*_dw|lepe\w*|peg\w*|pos_conv\w*|token_conv)([._]|$)|dw_?conv|depth_?wise|conv_spatial|cpe|blur|pool\w*[._](kernel|filt\w*|weight)$"
)
"""Names of depthwise layers: dw and dwconv, lepe (CSWin), pos_conv (wav2vec 2.0), filters that blur."""

FEWEST_PART_LAYERS = 2
"""Of a part that is a network of its own."""
MOST_LINEAR = 3
"""Layers at the beginning of a part of which its first convolution is one: embeddings of time may stand before it."""
DEEPEST_BESIDE = 3
"""The words below their common module in the names of two branches of one input: `conv_kxk.0.conv` and `conv_scale.conv`; one
less where only the whole network is common."""


class Places:
    """The modules of a network, and where each of its layers stands."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.inside: defaultdict[str, list[LayerWeight]] = defaultdict(list)
        for kernel in network.kernels:
            for module in modules(kernel):
                self.inside[module].append(kernel)
        self._names: dict[str, frozenset[str]] = {}
        self._leading: dict[str, frozenset[str]] = {}
        self._towers: dict[int, bool] = {}
        self._kin: dict[tuple[str, frozenset[str]], list[tuple[str, LayerWeight]]] = {}
        self._homes = [self._find_home(kernel) for kernel in network.kernels]

    # Tables of all layers that not every network is asked for.

    @cached_property
    def _by_rest(self) -> Mapping[str, list[tuple[str, LayerWeight]]]:
        """The layers by their names inside their homes, each with its home."""
        found: defaultdict[str, list[tuple[str, LayerWeight]]] = defaultdict(list)
        for kernel, module in zip(self.network.kernels, self._homes, strict=True):
            found[_within(kernel, module)].append((module, kernel))
        return found

    @cached_property
    def _by_last(self) -> Mapping[str, list[LayerWeight]]:
        """The layers by the last words of their names."""
        found: defaultdict[str, list[LayerWeight]] = defaultdict(list)
        for kernel in self.network.kernels:
            found[kernel.layer.rpartition(".")[2]].append(kernel)
        return found

    def home(self, kernel: LayerWeight) -> str:
        """The smallest module that holds more layers than this one; "" is the whole network."""
        return self._homes[kernel.at]

    def names(self, module: str) -> frozenset[str]:
        """The names of the layers inside a module."""
        if module not in self._names:
            start = len(module) + 1 if module else 0
            self._names[module] = frozenset(k.layer[start:] for k in self.inside[module])
        return self._names[module]

    def kin(self, kernel: LayerWeight) -> list[LayerWeight]:
        """The layers at the same place of other modules with the same layers: blocks that repeat, towers."""
        home = self._homes[kernel.at]
        place = _within(kernel, home), self.names(home)
        if place not in self._kin:
            self._kin[place] = [(module, other) for module, other in self._by_rest[place[0]] if self.names(module) == place[1]]
        return [other for module, other in self._kin[place] if module != home]

    def take_same_input(self, a: LayerWeight, b: LayerWeight) -> bool:
        """Whether the same pair of names stands elsewhere in the network with one input width, more than 1, that nothing between
        the two makes, and nowhere with two: `conv1` and `downsample.0` of a residual block."""
        start = _shared_length(a.layer, b.layer)
        first, second = a.layer[start:], b.layer[start:]
        found = False
        for like in self._by_last[first.rpartition(".")[2]] if first and second else ():
            if like is a or not f".{like.layer}".endswith(f".{first}"):
                continue
            pair = self.network.by_layer.get(like.layer[: len(like.layer) - len(first)] + second)
            if pair is None:
                continue
            if pair.channels != like.channels:
                return False
            between = self.network.kernels[min(like.at, pair.at) : max(like.at, pair.at)]
            found = found or (like.channels > 1 and not any(k.filters == like.channels for k in between))
        return found

    def are_analogous(self, kernel: LayerWeight, stem: LayerWeight) -> bool:
        """Whether it stands at the place of `stem` in a module with the same layers, one of which takes more channels than it:
        towers, and branches of a stem. Where all take one channel, depthwise blocks look the same."""
        words, others = kernel.layer.split("."), stem.layer.split(".")
        for i in range(1, min(len(words), len(others))):
            if words[-i] != others[-i]:
                return False
            module, other = ".".join(words[:-i]), ".".join(others[:-i])
            inside = self.inside[module]
            has_wider = any(k.channels > kernel.channels for k in inside if k is not kernel)
            if module != other and has_wider and self.names(module) == self.names(other):
                return True
        return False

    def part(self, kernel: LayerWeight) -> str:
        """The part of the network, at most two words below what all names share, that begins with this kernel; "" for none."""
        trunk = self.network.trunk
        for module in modules(kernel)[trunk + 1 : trunk + 3]:
            inside = self.inside[module]
            if len(inside) >= FEWEST_PART_LAYERS and (kernel.key in self._begun(module) or self._is_stem_of(kernel, module)):
                return module
        return ""

    def _begun(self, module: str) -> frozenset[str]:
        """The keys of the convolutions that a module begins with: looked for once, as each kernel in it asks."""
        if module not in self._leading:
            self._leading[module] = frozenset(kernel.key for kernel in _leading(self.inside[module]))
        return self._leading[module]

    def _is_stem_of(self, kernel: LayerWeight, module: str) -> bool:
        """Whether it is the one layer of a module that is called as stems are, where the order does not tell the first."""
        if self.network.ordered or not _STEM.search(kernel.layer[len(module) :]) or ENDS.search(kernel.key):
            return False
        return sum(bool(_STEM.search(k.layer[len(module) :])) for k in self.inside[module]) == 1

    def begins_tower(self, kernel: LayerWeight) -> bool:
        """Whether it is the first of what its name has below what all names share."""
        own = modules(kernel)[self.network.trunk + 1 :]
        return not own or first_conv(self.inside[own[0]]) is kernel

    def begin_towers(self, series: Sequence[LayerWeight]) -> bool:
        """Whether all the kernels of a series do, which each of them asks."""
        first = series[0].at
        if first not in self._towers:
            self._towers[first] = all(map(self.begins_tower, series))
        return self._towers[first]

    def begins_network(self, kernel: LayerWeight) -> bool:
        """Whether it begins a part of the network that no other of a series of parts precedes: `layer2` follows `layer1`."""
        part = self.part(kernel)
        parent, _, name = part.rpartition(".")
        word = name.rstrip("0123456789")
        if not part or word == name:
            return bool(part)
        before = range(int(name[len(word) :]))
        return not any(f"{parent}.{word}{n}".lstrip(".") in self.inside for n in before)

    def begin_series(self, a: LayerWeight, b: LayerWeight) -> bool:
        """Whether both begin parts of one series, like `encoder1` and `encoder2`."""
        first, second = self.part(a), self.part(b)
        return first != second and bool(first) and first.rstrip("0123456789") == second.rstrip("0123456789")

    def begins_named_module(self, kernel: LayerWeight) -> bool:
        """Whether it is the first of the smallest module around it that holds more and is not numbered."""
        for module in reversed(modules(kernel)[1:]):
            if len(self.inside[module]) > 1 and not module[-1].isdigit():
                return first_conv(self.inside[module]) is kernel
        return kernel.layer.count(".") <= self.network.trunk + 1

    def is_named(self, kernel: LayerWeight) -> bool:
        """Whether it is called as stems are."""
        if _STEM.search(kernel.key):
            return True
        match = _TOP.search(kernel.key)
        return match is not None and kernel.key[: match.start() + 1].count(".") <= self.network.trunk + 1

    def may_be_named(self, kernel: LayerWeight) -> bool:
        """Whether it is called as stems are, wherever it stands, and not as the ends of networks are too."""
        return bool(_STEM.search(kernel.key) or _TOP.search(kernel.key)) and not ENDS.search(kernel.key)

    def is_named_stem(self, kernel: LayerWeight) -> bool:
        """Whether it is called as stems are, and not as the ends of networks are too."""
        return self.is_named(kernel) and not ENDS.search(kernel.key)

    def are_beside(self, a: LayerWeight, b: LayerWeight) -> bool:
        """Whether two stand near each other, with as many filters or in one series: branches of one input."""
        start = _shared_length(a.layer, b.layer)
        depth = max(a.layer.count(".", start), b.layer.count(".", start)) + 1
        is_inner = a.layer.count(".", 0, start) > self.network.trunk
        deepest = DEEPEST_BESIDE if is_inner else DEEPEST_BESIDE - 1
        is_series = a.pattern == b.pattern
        return depth <= deepest and (is_series or (a.filters == b.filters and is_inner))

    def _find_home(self, kernel: LayerWeight) -> str:
        return next((sys.intern(module) for module in reversed(modules(kernel)) if len(self.inside[module]) > 1), "")


def _within(kernel: LayerWeight, module: str) -> str:
    """The name of a layer inside a module."""
    return kernel.layer[len(module) + 1 :] if module else kernel.layer


def modules(kernel: LayerWeight) -> list[str]:
    """The modules around a layer, the whole network ("") first."""
    words = kernel.layer.split(".")
    return [".".join(words[:i]) for i in range(len(words))]


def first_conv(kernels: Sequence[LayerWeight]) -> LayerWeight | None:
    """The first that is a convolution."""
    return next((k for k in kernels if k.window and not is_no_kernel(k)), None)


def _leading(kernels: Sequence[LayerWeight]) -> list[LayerWeight]:
    """The convolutions of one width that a part begins with: the first and its branches. Of one channel the next is depthwise."""
    first = first_conv(kernels)
    if first is None or first not in kernels[:MOST_LINEAR]:
        return []
    if first.channels == 1:
        return [first]
    convs = (k for k in kernels if k.window and not is_no_kernel(k))
    return [*takewhile(lambda k: k.channels == first.channels, convs)]


def _shared_length(a: str, b: str) -> int:
    """The length of what two names have in common, up to and with a dot."""
    first, second = a.split("."), b.split(".")
    shared = next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second)))
    return sum(len(word) + 1 for word in first[:shared])

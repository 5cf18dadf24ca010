"""What else may see an image: kernels beside the stems of an answer that no layers explain, or not well enough.

The law asks of every kernel as narrow as an image that it is a stem or that something makes its channels. Here the whole answer
is held against it: one rival, and the file is refused with all of them named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from chkpt_channels.discovery.law.evidence import NEAREST, State, is_composed, looks_grouped
from chkpt_channels.discovery.law.judged import Judged
from chkpt_channels.discovery.law.network import SHIFT, LayerWeight, is_color_shift
from chkpt_channels.discovery.law.places import DEPTHWISE, ENDS, FEWEST_PART_LAYERS

FEWEST_FILTERS = 8
"""Of a network's first convolution; gates and attention maps have fewer."""
MOST_OF_SECOND = 16
"""Channels of a second image in a file: two images of several bands, blocks of 4 × 4 pixels."""
MOST_FILTERED = 6
"""Channels of an image, or of two, that a depthwise layer filters one by one, in front of everything."""
MOST_UNNAMED = 4
"""Channels of an image whose first conv nothing but its width shows, in a file without order."""
FEWEST_OF_NETWORK = 6
"""Layers of a branch that is a network, not its stem."""
BLOCKS = (4, 16)
"""Pixels in the blocks that a second network may take."""


class Rivals:
    """The rivals in a network; `channels` is the image's number of them where that is known."""

    def __init__(self, judged: Judged, channels: int | None) -> None:
        self.judged, self.channels = judged, channels
        self.network, self.places = judged.network, judged.places

    def of(self, stems: Sequence[LayerWeight], width: int) -> list[LayerWeight]:
        """The kernels that may see an image beside these stems, which take `width` channels: and what shifts the colors of an
        image of others."""
        others = [k for k in self.network.convs if k not in stems]
        rivals = [k for k in others if self._is_of_width(k, stems) or self._is_of_another(k, stems, width)]
        rivals += [k for k in (*self._of_networks(stems, width), *self._unfed(stems, width)) if k not in rivals]
        return rivals + [k for k in self.network.kernels if is_color_shift(k) and k.channels != width and SHIFT.search(k.key)]

    def _of_networks(self, stems: Sequence[LayerWeight], width: int) -> Iterator[LayerWeight]:
        """The kernels that begin networks beside one that the stems begin whole: over the gray image, or over several images or
        blocks of their pixels, where the layers before them do not make so many channels. The features of a network go on in its
        stages, which are as many branches of its names as its stem; to another network a whole one hands over its end."""
        branches, sizes = {self.network.branch(k) for k in stems}, Counter(self.network.branch(k) for k in self.network.kernels)
        blocks = {images * block * width for images in (1, 2, 3) for block in (1, *BLOCKS)} - {width}
        for first in self.network.convs[:1] if self.network.ordered else ():
            is_apart = self.network.branch(first) not in branches and not ENDS.search(first.key)
            if is_apart and first.is_wide and first.channels in blocks:
                yield first
        if not stems or min(sizes[branch] for branch in branches) < FEWEST_OF_NETWORK:
            return
        begun = set[str]()
        for kernel in self.network.convs:
            branch = self.network.branch(kernel)
            is_first = branch not in begun
            begun.add(branch)
            if branch in branches or sizes[branch] < FEWEST_PART_LAYERS or ENDS.search(kernel.key):
                continue
            if is_first and width == kernel.channels == 1 < kernel.filters and not DEPTHWISE.search(kernel.key):
                yield kernel
            if kernel.channels not in blocks:
                continue
            if kernel.channels in (2 * width, 3 * width) and sizes[branch] < FEWEST_OF_NETWORK:
                continue
            if not self.network.ordered and sizes[branch] < FEWEST_OF_NETWORK:
                continue
            is_named = self.places.is_named_stem(kernel)
            near = self.network.preceding(kernel, NEAREST) if self.network.ordered else ()
            begins = is_first or self._is_own_of(kernel, branch)
            if is_named or (begins and kernel.is_wide and not any(k.filters == kernel.channels for k in near)):
                yield kernel

    def _is_own_of(self, kernel: LayerWeight, branch: str) -> bool:
        """In a file without order, where a name says nothing of that: whether it is a layer of a branch's own, in none of its
        blocks, and nothing in the branch makes its channels."""
        if self.network.ordered or kernel.layer.count(".") > self.network.trunk + 2 or kernel.layer[-1].isdigit():
            return False
        return all(self.network.branch(k) != branch for k in self.network.makers.get(kernel.channels, ()))

    def _unfed(self, stems: Sequence[LayerWeight], width: int) -> Iterator[LayerWeight]:
        """The kernels over one channel that are the first of a branch, and whose width no layer before them makes: beside a stem
        over gray they are second ones, as far as can be told."""
        begun = {self.network.branch(k) for k in stems}
        for kernel in self.network.kernels if width == 1 and self.network.ordered else ():
            branch = self.network.branch(kernel)
            is_first = branch not in begun
            begun.add(branch)
            if not is_first or not kernel.channels == 1 < kernel.filters or not kernel.is_wide:
                continue
            if DEPTHWISE.search(kernel.key) or ENDS.search(kernel.key) or not self.places.begins_network(kernel):
                continue
            verdict = self.judged.verdicts.get(kernel.at)
            is_shown = verdict is not None and verdict.state is State.INSIDE and not verdict.is_weak
            if not is_shown and not self.network.is_made_before(kernel, kernel.filters):
                yield kernel

    def _is_of_width(self, kernel: LayerWeight, stems: Sequence[LayerWeight]) -> bool:
        """Whether a kernel of the stems' width may be one of them: it is called as stems are; it begins a network, as no
        depthwise layer does, or as what only mixes the colors does; or it is a branch of a stem by its window."""
        if not stems or kernel.channels != stems[0].channels or kernel.at not in self.judged.verdicts:
            return False
        state, begins = self.judged.state(kernel), self.places.begins_network(kernel)
        if kernel.channels == 1 and any(_may_be_alias(kernel, k) for k in stems):
            return True
        if state is State.INSIDE:
            is_weak = self.judged.verdicts[kernel.at].is_weak and kernel.is_wide
            is_series = begins and any(self.places.begin_series(kernel, k) for k in stems)
            if is_weak and (is_series or self.places.is_named_stem(kernel)):
                return True
            return kernel.channels > 1 and (self.places.is_named_stem(kernel) or (begins and self._begins_apart(kernel)))
        if state is State.FREE and begins and self.places.is_named_stem(kernel):
            return True
        if begins and kernel.is_wide:
            is_even = not any(side % 2 for side in kernel.window)  # depthwise layers keep the size: their windows are odd
            return is_even or (state is State.OPEN and kernel.filters == kernel.channels)
        home = self.places.home(kernel)
        beside = [k for k in stems if self.places.home(k) == home]
        if kernel.is_point:
            return kernel.channels == 1 and bool(beside)
        return bool(beside) and all(k.is_point for k in beside)

    def _begins_apart(self, kernel: LayerWeight) -> bool:
        """Whether only other parts of the network make the width of a kernel that begins one: they may end in as many classes."""
        if not kernel.is_wide or ENDS.search(kernel.key):
            return False
        makers = (k for k in self.network.makers.get(kernel.channels, ()) if k.channels != kernel.channels)
        return not any(self.network.branch(k) == self.network.branch(kernel) for k in makers)

    def _is_of_another(self, kernel: LayerWeight, stems: Sequence[LayerWeight], width: int) -> bool:
        """Whether a kernel of another width may see an image too."""
        if self._filters_image(kernel):
            return width != kernel.filters
        if kernel.channels == width or self.channels not in (None, kernel.channels):
            return False
        if kernel.at not in self.judged.verdicts:
            series = {k.channels for k in self.network.series[kernel.pattern]}
            return self._takes_blocks(kernel, stems, width) and len(series) == 1 and kernel.channels not in self.network.makers
        state, begins = self.judged.state(kernel), self.places.begins_network(kernel)
        if begins and kernel.is_wide and self.places.is_named_stem(kernel) and self._takes_blocks(kernel, stems, width):
            return True
        is_apart = all(self.network.branch(k) != self.network.branch(kernel) for k in stems)
        is_apart = is_apart and not self._is_grouped_behind(kernel, stems)
        if begins and is_apart and state is State.FREE and kernel.channels in (2 * width, 3 * width, 4 * width):
            return True
        if state is State.INSIDE:
            return self._is_pair(kernel, width) and self.may_be_image(kernel, width)
        is_same = width == 1 and not self.network.ordered and all(k.filters == kernel.filters for k in stems)
        if is_same and state is State.FREE and kernel.is_wide and self.places.is_named_stem(kernel):
            return True
        if 1 < kernel.channels <= MOST_OF_SECOND:
            is_inner = kernel.channels == kernel.filters
            if self.places.is_named_stem(kernel) and not is_inner and self._is_stem(kernel, stems, width):
                return True
            if state is State.FREE and self._takes_blocks(kernel, stems, width):
                return True
            if state is State.FREE and not is_inner and self._is_likelier(kernel, stems, width):
                return True
        return self.may_be_image(kernel, width)

    def _is_stem(self, kernel: LayerWeight, stems: Sequence[LayerWeight], width: int) -> bool:
        """Whether what is called a stem is one as far as can be told: it begins a network, and none of the stems makes its
        width; no other layer of its block makes it, and it is that of two images; or none of the stems is called so."""
        if self.places.begins_network(kernel):
            return not any(k.filters == kernel.channels for k in stems)
        if kernel.channels in (2 * width, 3 * width):
            return self._is_pair(kernel, width)
        is_open = not self.network.ordered and self.judged.state(kernel) is State.OPEN
        return is_open and not any(self.places.is_named_stem(k) or k.filters == kernel.channels for k in stems)

    def _takes_blocks(self, kernel: LayerWeight, stems: Sequence[LayerWeight], width: int) -> bool:
        """Whether it takes blocks of the same image's pixels: called as stems are, or beginning one more of several networks, or
        one with as many filters as a stem has."""
        branches = {self.network.branch(k) for k in stems}
        if not stems or kernel.channels not in (n * width for n in BLOCKS) or self.network.branch(kernel) in branches:
            return False
        if self.places.is_named_stem(kernel):
            return True
        is_twin = not looks_grouped(self.network, kernel) and any(k.filters == kernel.filters != kernel.channels for k in stems)
        is_unordered = not self.network.ordered and kernel.at in self.judged.verdicts and not ENDS.search(kernel.key)
        begins = self.places.begins_network(kernel) or is_unordered
        return (len(branches) > 1 or is_twin) and begins

    def _is_grouped_behind(self, kernel: LayerWeight, stems: Sequence[LayerWeight]) -> bool:
        """Whether the layer right before it is a stem, whose channels it may take in groups: 24 as 2·12."""
        return any(k in stems and k.filters % kernel.channels == 0 for k in self.network.preceding(kernel, 1))

    def _is_likelier(self, kernel: LayerWeight, stems: Sequence[LayerWeight], width: int) -> bool:
        """Whether the stems are less likely than this kernel: it is a point in front of them and makes what they take; they take
        two or three of its images, or blocks of its pixels; they take more channels, and nothing else speaks for them; they are
        depthwise over what it makes, as far as can be told; or they begin a decoder, with smaller windows."""
        if not stems:
            return False
        if kernel.is_point:
            judged = (k for k in stems if k.at in self.judged.verdicts)  # a stem of blocks is wider than what is judged
            fed = [k for k in judged if self.judged.verdicts[k.at].is_fed]
            near = any(self.places.home(k) == self.places.home(kernel) for k in fed)
            near = near or any(self.network.branch(k) == self.network.branch(kernel) for k in fed)
            return not self.network.ordered and kernel.filters == width and near
        if width in (n * kernel.channels for n in (2, 3, *BLOCKS)):
            return True
        is_named = any(self.places.is_named(k) for k in stems)
        if not self.network.ordered and not is_named and 3 <= kernel.channels < width > MOST_UNNAMED:
            return True
        is_open = width == 1 and not any(self.judged.state(k) is State.FREE for k in stems)
        if is_open and not self.network.ordered and all(k.filters == kernel.filters for k in stems):
            return True
        return not ENDS.search(kernel.key) and all(ENDS.search(k.key) and k.window < kernel.window for k in stems)

    def _filters_image(self, kernel: LayerWeight) -> bool:
        """Whether it begins a network, depthwise over as few channels as an image has, which no other convolution makes."""
        if not 1 == kernel.channels < kernel.filters <= MOST_FILTERED or not kernel.is_wide:
            return False
        if not DEPTHWISE.search(kernel.key) or not (self.places.begins_network(kernel) or self.places.is_named_stem(kernel)):
            return False
        return all(k is kernel or not k.window or ENDS.search(k.key) for k in self.network.makers.get(kernel.filters, ()))

    def _is_pair(self, kernel: LayerWeight, width: int) -> bool:
        """Whether a kernel whose width no other layer of its block makes takes two images or three as stems are called: a pose
        network."""
        if kernel.channels not in (2 * width, 3 * width) or not self.places.is_named_stem(kernel):
            return False
        makers, home = self.network.makers.get(kernel.channels, ()), self.places.home(kernel)
        return not any(k.channels != kernel.channels and self.places.home(k) == home for k in makers)

    def may_be_image(self, kernel: LayerWeight, width: int = 0) -> bool:
        """Whether a kernel of another width than the image's `width` could begin a network too, as a second one in the same file
        does: with two images, or an image beside a latent."""
        begins = self.places.begins_network(kernel)
        if kernel.filters < (FEWEST_FILTERS // 2 if begins else FEWEST_FILTERS) or kernel.is_point:
            return False
        is_alone = kernel.layer.count(".") <= self.network.trunk + 1 and self.places.is_named(kernel)
        if not is_alone and not begins:
            return False
        if kernel.channels == 1:
            return self.places.is_named_stem(kernel) or width > 3
        verdict = self.judged.verdicts[kernel.at]
        if kernel.channels in (2 * width, 3 * width, width + 1) and begins:
            if self.places.is_named_stem(kernel):
                return True
            makers = self.network.makers.get(kernel.channels, ())
            before = self.network.made_before(kernel, kernel.channels) if self.network.ordered else makers
            return not any(k is not kernel and k.is_wide and not ENDS.search(k.key) for k in before)
        return verdict.state is State.FREE and not is_composed(self.network, kernel, is_named=self.places.is_named(kernel))


def _may_be_alias(kernel: LayerWeight, stem: LayerWeight) -> bool:
    """Whether it has a stem's shape and is in a list beside it: the same layer in a list of all, or a depthwise one behind it."""
    words, others = kernel.layer.split("."), stem.layer.split(".")
    is_listed = len(words) == len(others) + 1 and words[:-2] == others[:-1] and words[-1].isdigit() != others[-1].isdigit()
    return is_listed and kernel.tensor.shape == stem.tensor.shape

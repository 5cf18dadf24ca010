"""Whether a kernel of one channel is a first conv over a gray image, or depthwise over the channels of another layer.

A depthwise kernel [F, 1, k, k] has the shape of one over a gray image. It is depthwise where that is shown: a layer before it
makes its F channels, the same layer of other blocks is depthwise, it is one of a series. Against it speak its place and its name:
where other blocks have a full convolution at its place it sees the image, as the shortcut of a first residual block does.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import islice

from chkpt_channels.discovery.law.evidence import NEAREST, State, Verdict, is_full
from chkpt_channels.discovery.law.network import LayerWeight
from chkpt_channels.discovery.law.places import DEPTHWISE, Places

NEAR = 6
"""Layers before a kernel in which the one that makes its channels is looked for."""
FEWEST_OF_SERIES = 3
"""Layers of one name that show what each of them is; two, where the name says so too."""


class For(Enum):
    """Evidence that a kernel is depthwise."""

    FED = "a layer right before it makes one channel"
    FIRST = "the first convolution right before it makes its channels, and a pointwise layer takes them"
    MADE = "a layer before it makes its channels"
    KIN = "the same layer of another block is depthwise"
    SERIES = "is one of a series over widths that other layers make"
    BLOCKS = "is in a repeated block"
    NAME = "is named as depthwise layers are"
    SHARE = "is one of several that share a width that other layers make"


class Against(Enum):
    """Evidence that it sees the image."""

    PLACE = "other blocks have a full convolution in its place"
    PATCH = "its window cuts an image into patches"
    UNMADE = "no other layer makes its channels"
    BEGINS = "begins a part of the network under a stem's name"
    NAME = "is named as stems are"
    POINT = "looks at single pixels"


PROOFS = frozenset({For.KIN, For.SERIES, For.BLOCKS})
"""Evidence that other layers give: it outweighs a name."""
PLACES = frozenset({Against.PLACE, Against.PATCH, Against.BEGINS})
"""Evidence of a kernel's place or window."""


class Depthwise:
    """The verdicts on the kernels of one channel. `first` is the first convolution, where the order is known."""

    def __init__(self, places: Places, first: LayerWeight | None, kernels: Sequence[LayerWeight]) -> None:
        self.places, self.network, self.first = places, places.network, first
        self._made = {k.at for k in kernels if self._is_made(k)}
        self._inside: set[int] = set()
        self._full_homes: dict[str, bool] = {}
        self.verdicts: dict[int, Verdict] = {}
        for kernel in sorted(kernels, key=lambda k: k.is_point):  # those with a window first: branches of them are judged alike
            self.verdicts[kernel.at] = verdict = self._verdict(kernel)
            if verdict.state is State.INSIDE:
                self._inside.add(kernel.at)

    def _verdict(self, kernel: LayerWeight) -> Verdict:
        if self._is_behind_one(kernel):
            return Verdict(State.INSIDE, For.FED.value)
        if beside := self._window_beside(kernel):
            return self.verdicts[beside.at]
        proofs, doubts = self._proofs(kernel), self._doubts(kernel)
        if self._sees_what_the_first_sees(kernel) and not proofs & {For.KIN, For.BLOCKS}:
            return Verdict(State.FREE, "takes the same input as the first convolution", by_place=True)
        doubts -= self._overruled(kernel, proofs, doubts)
        if proofs == {For.MADE} and Against.BEGINS in doubts and kernel.is_wide and not self._is_fed_on(kernel):
            return Verdict(State.FREE, Against.BEGINS.value, by_place=True)
        if kernel is self.first and (doubts or For.MADE not in proofs):
            return Verdict(State.FREE)
        if not proofs and Against.UNMADE in doubts and kernel.is_wide and self.places.is_named_stem(kernel):
            return Verdict(State.FREE, Against.UNMADE.value)
        why = "; ".join(reason.value for reason in (*For, *Against) if reason in (proofs | doubts))
        by_place = bool(doubts & PLACES)
        if proofs and doubts:
            return Verdict(State.OPEN, why, by_place=by_place)
        if proofs:
            is_weak = proofs == {For.MADE}
            return Verdict(State.OPEN if is_weak and self._may_begin(kernel) else State.INSIDE, why, is_weak)
        one_made = self.network.ordered and any(k.filters == 1 and k.window for k in self.network.kernels[: kernel.at])
        if one_made or (doubts <= {Against.UNMADE, Against.POINT} and (doubts or not self.network.ordered)):
            return Verdict(State.OPEN, why, by_place=by_place, is_fed=one_made)
        if self._is_separable_behind_first(kernel):
            return Verdict(State.OPEN if by_place else State.INSIDE, why or For.FIRST.value, by_place=by_place)
        return Verdict(State.FREE, why, by_place=by_place)

    def _is_separable_behind_first(self, kernel: LayerWeight) -> bool:
        """Whether the first convolution right before it makes its channels, and a pointwise layer takes them next."""
        first = self.first
        is_next = first is not None and kernel.at - first.at == 1 and first.filters == kernel.filters
        return self.network.ordered and is_next and self.has_point_behind(kernel)

    def _overruled(self, kernel: LayerWeight, proofs: set[For], doubts: set[Against]) -> set[Against]:
        """The doubts that the proofs outweigh."""
        overruled: set[Against] = set()
        if proofs & PROOFS or For.NAME in proofs:
            overruled |= {Against.UNMADE, Against.BEGINS}
            overruled |= set() if self._may_be_first(kernel) else {Against.NAME}
        if proofs & {For.MADE, For.SHARE}:
            overruled.add(Against.UNMADE)
        is_far = self.first is None or kernel.at - self.first.at > NEAR
        if For.MADE in proofs and is_far and self._is_bottleneck(kernel):
            overruled.add(Against.PLACE)
        return overruled

    def _proofs(self, kernel: LayerWeight) -> set[For]:
        series = [k for k in self.network.series[kernel.pattern] if k.channels == 1]
        like = [k for k in self.places.kin(kernel) if k.channels == 1]
        holds = {
            For.MADE: kernel.at in self._made,
            For.KIN: any(k.at in self._made and not self._stands_like_a_stem(k) for k in like),
            For.SERIES: self._is_series(kernel, series),
            For.BLOCKS: self._is_in_blocks(kernel, like),
            For.NAME: DEPTHWISE.search(kernel.key),
            For.SHARE: self._shares(kernel),
        }
        return {reason for reason, so in holds.items() if so}

    def _is_in_blocks(self, kernel: LayerWeight, like: Sequence[LayerWeight]) -> bool:
        """Whether it is in one of several blocks with a full layer, none of which the first convolution is in."""
        if not self._has_full_beside(kernel) or any(k is self.first and self._has_full_beside(k) for k in (kernel, *like)):
            return False
        others = islice((k for k in like if self._has_full_beside(k)), FEWEST_OF_SERIES - 1)
        return len([*others]) == FEWEST_OF_SERIES - 1

    def _has_full_beside(self, kernel: LayerWeight) -> bool:
        home = self.places.home(kernel)
        if home not in self._full_homes:
            self._full_homes[home] = any(is_full(self.network, k) for k in self.places.inside[home])
        return self._full_homes[home]

    def _doubts(self, kernel: LayerWeight) -> set[Against]:
        makers, is_named = self.network.makers.get(kernel.filters, ()), self.places.is_named_stem(kernel)
        holds = {
            Against.PLACE: self._has_full_place(kernel),
            Against.PATCH: kernel.is_patch,
            Against.UNMADE: not any(k is not kernel and (k.channels != 1 or k.at in self._inside) for k in makers),
            Against.BEGINS: is_named and self.places.begins_network(kernel),
            Against.NAME: is_named and not self.network.ordered and self._is_rare(kernel),
            Against.POINT: kernel.is_point,
        }
        return {reason for reason, so in holds.items() if so}

    def _is_behind_one(self, kernel: LayerWeight) -> bool:
        """Whether the layer right before it in its block makes one channel: a squeeze of one."""
        before = self.network.preceding(kernel, 1)
        home = self.places.home(kernel)
        return bool(before) and before[0].filters == 1 < before[0].channels and self.places.home(before[0]) == home

    def _sees_what_the_first_sees(self, kernel: LayerWeight) -> bool:
        first = self.first
        if first is None or kernel is first or first.channels != 1:
            return False
        if self.places.take_same_input(first, kernel):
            return True
        return self.places.are_analogous(kernel, first) and not self._is_bottleneck(kernel)

    def _is_made(self, kernel: LayerWeight) -> bool:
        """Whether one of the layers before it makes its channels out of several; a gated one twice as many, two that are joined
        together as many, or a series that is joined."""
        filters, dimensions = kernel.filters, len(kernel.window)
        before = [k for k in self.network.preceding(kernel, NEAR) if len(k.window) in (0, dimensions)]
        if not before:
            return False
        if any(k.filters == filters and k.channels != 1 for k in before):
            return True
        if any(k.filters == 2 * filters and k.channels != 1 for k in before[:2]):
            return True
        if 2 * before[0].filters == filters and before[0].channels > before[0].filters:  # two of each channel of an MLP
            return True
        joined = [k for k in before if k.pattern == before[0].pattern]
        sums = (group for group in (before[:2], before[:3], joined) if len(group) > 1 and all(k.channels != 1 for k in group))
        return any(sum(k.filters for k in group) == filters for group in sums)

    def _is_fed_on(self, kernel: LayerWeight) -> bool:
        """Whether a part before it makes its channels last: it may go on there."""
        before = self.network.preceding(kernel, 1)
        return not before or before[0].filters == kernel.filters

    def _is_series(self, kernel: LayerWeight, series: Sequence[LayerWeight]) -> bool:
        fewest = FEWEST_OF_SERIES - bool(DEPTHWISE.search(kernel.key))
        if len(series) < fewest or self.places.begin_towers(series):
            return False
        if self._is_parallel(series) and not DEPTHWISE.search(kernel.key):
            return False
        if all(k.filters in self.network.mixed_widths for k in series):
            return True
        several = len({k.filters for k in series}) > 1 and len({self.places.home(k) for k in series}) > 1
        is_inner = len(series) >= FEWEST_OF_SERIES and several
        return is_inner and not any(k is self.first or self.places.is_named(k) for k in series)

    def _is_parallel(self, series: Sequence[LayerWeight]) -> bool:
        """Whether a series may be the branches of one stem: in one module, with about as many filters, where a network begins."""
        homes, filters = {self.places.home(k) for k in series}, {k.filters for k in series}
        if len(homes) > 1 or len(filters) > 2:  # the last branch has what is left of the width
            return False
        places = self.places
        return any(k is self.first or places.is_named_stem(k) or places.begins_network(k) for k in series)

    def _shares(self, kernel: LayerWeight) -> bool:
        """Whether it is one of the numbered layers of a module that together have a width that is made or taken, or all but one
        of the pieces of such a width."""
        words = kernel.layer.split(".")
        numbered = next((i for i in range(len(words) - 1, -1, -1) if words[i][-1:].isdigit()), None)
        if numbered is None:
            return False
        inside = self.places.inside[".".join(words[:numbered])]
        if len(inside) < 2 or self.first in inside or self.places.is_named_stem(kernel):
            return False
        if any(k.pattern != kernel.pattern or k.channels != 1 for k in inside):
            return False
        total, count, made = sum(k.filters for k in inside), len(inside), self.network.mixed_widths
        if total in made or any(k.channels == total for k in self.network.following(inside[-1], NEAREST)):
            return True
        same = len({k.filters for k in inside}) == 1
        return same and any(0 <= (count + 1) * kernel.filters - width <= count for width in made)  # torch.chunk rounds up

    def _has_full_place(self, kernel: LayerWeight) -> bool:
        kin = self.places.kin(kernel)
        return bool(kin) and all(is_full(self.network, k) for k in kin)

    def _stands_like_a_stem(self, kernel: LayerWeight) -> bool:
        if self._has_full_place(kernel) or (self.places.part(kernel) and self.places.begins_tower(kernel)):
            return True
        if not self.places.is_named_stem(kernel) or DEPTHWISE.search(kernel.key):
            return False
        return bool(self.places.part(kernel)) or (not self.network.ordered and self._is_rare(kernel))

    def _is_rare(self, kernel: LayerWeight) -> bool:
        return sum(k.channels == 1 for k in self.network.series[kernel.pattern]) < FEWEST_OF_SERIES

    def _may_be_first(self, kernel: LayerWeight) -> bool:
        """Whether it could be the stem in a file without order: named so, and nothing of another block is known before it."""
        if self.network.ordered or not self.places.is_named_stem(kernel) or DEPTHWISE.search(kernel.key):
            return False
        home = self.places.home(kernel)
        return all(self.places.home(k) == home for k in self.network.preceding(kernel, NEAREST + 1))

    def _may_begin(self, kernel: LayerWeight) -> bool:
        """Whether it begins a module of its own, and is one of its kind or of the first convolution's, and no pointwise layer
        follows: a second stem looks so."""
        series = [k for k in self.network.series[kernel.pattern] if k.channels == 1]
        is_alone = kernel.layer.count(".") <= self.network.trunk
        if self.places.begins_tower(kernel) and (self.first in series or is_alone or self.places.begins_network(kernel)):
            return self.first in series or not self.has_point_behind(kernel)
        if self.first and self.places.is_named_stem(kernel) and self.places.begin_series(kernel, self.first):
            return True
        if any(k.is_wide and k.channels == kernel.filters for k in self.network.following(kernel, 1)):
            return True  # a pointwise layer mixes what a depthwise one filters
        home = self.places.home(kernel)
        is_only = all(self.places.home(k) == home for k in series)
        behind = [k for k in self.network.following(kernel, NEAREST) if k in self.places.inside[home]]
        is_followed = any(k.channels == kernel.filters and k.is_point for k in behind)
        return is_only and self.places.begins_named_module(kernel) and not is_followed

    def has_point_behind(self, kernel: LayerWeight) -> bool:
        """Whether the next layer that takes its channels mixes them pixel by pixel."""
        takes = (k for k in self.network.following(kernel, NEAREST) if k.channels == kernel.filters)
        return (taker := next(takes, None)) is not None and taker.is_point

    def _is_bottleneck(self, kernel: LayerWeight) -> bool:
        """Whether a pointwise layer makes its channels and another one takes them."""
        before = self.network.preceding(kernel, 2)
        is_made = any(k.filters == kernel.filters and k.channels > 1 and k.is_point for k in before)
        return is_made and self.has_point_behind(kernel)

    def _window_beside(self, kernel: LayerWeight) -> LayerWeight | None:
        """Of a kernel that looks at single pixels, the branch of its block that has a window and as many filters."""
        home = self.places.home(kernel)
        inside = self.places.inside[home] if kernel.is_point and home else ()
        like = (k for k in inside if k.is_wide and k.channels == 1 and self.places.are_beside(k, kernel))
        return next((k for k in like if abs(k.at - kernel.at) <= NEAR and k.at in self.verdicts), None)

    def is_beside_full(self, kernel: LayerWeight) -> bool:
        """Whether a full layer of its block makes or takes its channels, and numbers say that other blocks come before it: the
        evidence that a file without order has."""
        places, trunk = self.places, self.network.trunk
        words = kernel.layer.split(".")
        for i in range(len(words) - 1, max(trunk, len(words) - 4), -1):
            others = [k for k in places.inside[".".join(words[:i])] if k is not kernel]
            if others:
                beside = any(is_full(self.network, k) and kernel.filters in (k.filters, k.channels) for k in others)
                like = (kernel, *places.kin(kernel))
                return beside and any(k.follows(o) for k in like for o in self.network.kernels)
        return False

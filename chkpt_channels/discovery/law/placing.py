"""Which kernels stand where first convs stand: what is open is settled by its place, and what is free must have one."""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.core.records import pattern
from chkpt_channels.discovery.law import patch_embeddings
from chkpt_channels.discovery.law.evidence import NEAREST, State, looks_grouped
from chkpt_channels.discovery.law.judged import Judged
from chkpt_channels.discovery.law.network import LayerWeight
from chkpt_channels.discovery.law.places import ENDS
from chkpt_channels.discovery.law.rivals import MOST_OF_SECOND, MOST_UNNAMED

NEAR_BRANCHES = 8
"""Layers on either side of a kernel in which its parallel branches are looked for: MobileOne has five in a block."""
_LAST = pattern(r"(^|[._])(heads?|final|out|neck|tail)([._\d]|_conv)")
"""Names of what stands at the end of networks."""


class Placing:
    """The places of the narrow kernels of a network."""

    def __init__(self, judged: Judged) -> None:
        self.judged, self.places, self.network = judged, judged.places, judged.network

    def settled(self, stems: list[LayerWeight], unsure: list[LayerWeight]) -> tuple[list[LayerWeight], list[LayerWeight]]:
        """The stems, with those of the unsure ones whose place says so, and what stays unsure."""
        behind = [k for k in stems if k.channels == 1 and k is not self.judged.first and not self.judged.verdicts[k.at].by_place]
        stems = [k for k in stems if k not in behind or not self._is_right_behind(k, stems)]  # nothing else makes what it takes
        if not stems:
            stems = self._likeliest(unsure)
            unsure = [k for k in unsure if k not in stems]
        before = -1
        while before != len(unsure):
            before = len(unsure)
            for kernel in unsure:
                if self._has_stems_place(kernel, stems):
                    stems = [*stems, kernel]
            unsure = [k for k in unsure if k not in stems and not self._has_inner_place(k, stems)]
        weak = (k for k in self.judged.of(State.INSIDE) if self.judged.verdicts[k.at].is_weak)
        stems += [k for k in weak if any(k.channels == s.channels and self.places.take_same_input(s, k) for s in stems)]
        return sorted(stems, key=lambda k: k.at), unsure

    def _likeliest(self, unsure: Sequence[LayerWeight]) -> list[LayerWeight]:
        """The first conv where none is certain: of a file without order one that is called so, or the only one, with branches of
        single pixels; else the only one that begins a part, behind another part that makes its width."""
        wide = [k for k in unsure if k.is_wide]
        is_sole = len(wide) == 1 and all(wide[0] in self._windows_beside(k) for k in unsure if not k.is_wide)
        if self.network.ordered:
            return wide if is_sole and self.judged.verdicts[wide[0].at].is_fed and self.places.begins_network(wide[0]) else []
        named = [k for k in wide if self.places.is_named_stem(k)]
        weak = [k for k in self.judged.narrow if self.judged.verdicts[k.at].is_weak]
        is_sole = is_sole and (all(k.follows(wide[0]) for k in weak) or wide[0].layer.count(".") <= self.network.trunk)
        return named[:1] or (wide if is_sole else [])

    def _has_stems_place(self, kernel: LayerWeight, stems: Sequence[LayerWeight]) -> bool:
        """Whether it stands where a stem stands: with one's input, at one's place in a like module, or as a branch of one that
        looks at single pixels."""
        places = self.places
        if any(places.take_same_input(s, kernel) for s in stems):
            return True
        if self.judged.verdicts[kernel.at].is_fed:  # two networks with the same layers may stand in a row
            return False
        if any(places.are_analogous(kernel, s) for s in stems):
            return True
        if any(
            kernel.pattern == s.pattern and kernel.filters == s.filters and places.part(kernel) and places.part(s) for s in stems
        ):
            return True
        return kernel.is_point and any(s in stems for s in self._windows_beside(kernel))

    def _has_inner_place(self, kernel: LayerWeight, stems: Sequence[LayerWeight]) -> bool:
        """Whether it stands behind a stem, or where inner layers do."""
        if kernel.is_point and any(self.judged.verdicts[k.at].state is State.INSIDE for k in self._windows_beside(kernel)):
            return True
        if kernel.channels != 1:  # what a layer behind the last one takes, it makes again
            verdict = self.judged.verdicts[kernel.at]
            if not verdict.is_fed and any(self.judged.state(k) is State.INSIDE for k in self.places.kin(kernel)):
                return True  # grouped, as far as can be told, where other blocks have inner layers
            return verdict.is_fed and kernel.filters == kernel.channels
        if self.judged.verdicts[kernel.at].by_place:
            return False
        if self._is_right_behind(kernel, stems):
            return True
        if self.network.ordered or self.places.is_named(kernel) or not (stems or self.judged.patches):
            return False
        if _LAST.search(kernel.key):
            return True
        if any(self._is_of_twin(kernel, stem) for stem in stems):
            return False
        begins = self.places.part(kernel) and self.places.begins_tower(kernel)
        return not begins and self.judged.depthwise.is_beside_full(kernel)

    def _is_of_twin(self, kernel: LayerWeight, stem: LayerWeight) -> bool:
        """Whether it is a layer of a part's own, and the part one of a series with a stem's: `encoder2.conv` by `encoder1`."""
        branch, other = self.network.branch(kernel), self.network.branch(stem)
        is_series = branch != other and branch.rstrip("0123456789") == other.rstrip("0123456789")
        return is_series and kernel.is_wide and kernel.layer.count(".") == self.network.trunk + 1

    def _windows_beside(self, kernel: LayerWeight) -> list[LayerWeight]:
        """The branches with a window beside one that looks at single pixels."""
        inside = self.places.inside[self.places.home(kernel)]
        like = [k for k in inside if k.is_wide and (k.filters, k.channels) == (kernel.filters, kernel.channels)]
        near = [k for k in like if not self.network.ordered or abs(k.at - kernel.at) <= NEAR_BRANCHES]
        return [k for k in near if k.at in self.judged.verdicts]

    def _is_right_behind(self, kernel: LayerWeight, stems: Sequence[LayerWeight]) -> bool:
        """Whether it is depthwise over a stem's channels: behind it, no branch of it, and a pointwise layer takes them next."""
        places, home = self.places, self.places.home(kernel)
        near = self.network.preceding(kernel, NEAR_BRANCHES)
        has_point = self.judged.depthwise.has_point_behind(kernel)
        if self._is_joined(kernel):
            return False
        for stem in (s for s in stems if s.filters == kernel.filters and s in near):
            is_next = self.network.ordered and kernel.at - stem.at == 1 and kernel.follows(stem)
            is_behind = places.home(stem) != home or _is_later(kernel, stem)
            if (has_point or is_next) and is_behind and not places.take_same_input(stem, kernel):
                return True
        return False

    def _is_joined(self, kernel: LayerWeight) -> bool:
        """Whether a layer behind its block takes as many channels as all that take one there make, and none between makes so
        many: branches, joined. The 32 and 32 of MobileNet's first two layers are no branches: the third makes 64 of 32."""
        inside = [k for k in self.places.inside[self.places.home(kernel)] if k.channels == 1]
        total, behind = sum(k.filters for k in inside), [*self.network.following(inside[-1], NEAREST)] if inside else []
        taker = next((at for at, k in enumerate(behind) if k.channels == total), None)
        return len(inside) > 1 and taker is not None and all(k.filters != total or k.channels == 1 for k in behind[:taker])

    def why_misplaced(self, stems: Sequence[LayerWeight], patches: Sequence[tuple[LayerWeight, str]]) -> str:
        """Why these cannot all be first convs, or not these alone; "" where they can."""
        if len({k.channels for k, _ in patches}) > 1:
            return "several patch embeddings of different sizes"
        if other := next(patch_embeddings.others(self.network, [k for k, _ in patches]), None):
            return f"{other.key} may take patches of the image too"
        named = [k for k in stems if self.places.is_named_stem(k)]
        root = self.judged.first if self.judged.first in stems else next(iter(named or stems), None)
        # beside a stem that stands alone at the top another one that begins a part may see another input: ControlNet's latent
        in_parts = root is None or self.places.part(root)
        placed = [k for k in stems if k is root or (in_parts and k.is_wide and self._begins(k, stems))]
        if mirrored := next((k for k in stems if self._may_be_transposed(k, stems)), None):
            return f"{mirrored.key} may be transposed: then it makes {mirrored.channels} channels and takes {mirrored.filters}"
        if why := self._why_unlikely(stems):
            return why
        if likelier := self._likelier(stems):
            return f"{likelier.key} is where first convs are, and {stems[0].key} is not"
        left, count = [k for k in stems if all(k is not one for one in placed)], -1
        while count != len(left):  # a branch of a placed one is placed too
            count = len(left)
            beside = {k.at for k in left if any(self._is_beside(k, stem) for stem in placed)}
            placed += [k for k in left if k.at in beside]
            left = [k for k in left if k.at not in beside]
        if misplaced := next(iter(left), None):
            return f"{misplaced.key} takes as many channels as an image has, and does not stand where first convs do"
        parts = {self.network.branch(k) for k in stems}
        width = stems[0].channels if len(parts) > 1 else 0
        passed = (width, width - 3) if width > 3 else (width,)  # a refinement takes the image and the alpha that comes before it
        for maker in (k for made in passed for k in self.network.makers.get(made, ())):
            if maker.is_wide and maker.channels > maker.filters and self.network.branch(maker) in parts:
                return f"{maker.key} makes what one of several networks may take"
        if fed := next((k for k in stems if k is not root and self._may_take_scores(k)), None):
            return f"{fed.key} could take what the network ends in"
        if pair := self._in_a_row(stems):
            return f"{pair[0].key} and {pair[1].key} may be a convolution and a depthwise one behind it"
        for kernel in stems:
            for other in self.judged.narrow:
                if other not in stems and other.channels == kernel.channels and self.places.take_same_input(kernel, other):
                    return f"{other.key} stands where it takes the same input as {kernel.key}, and seems to be inside"
        return ""

    def _why_unlikely(self, stems: Sequence[LayerWeight]) -> str:
        """Why one of these is none as far as can be told: its width is that of a group, or it stands at the network's end."""
        for kernel in (k for k in stems if k.is_wide and not self.places.is_named(k) and not self.places.begins_network(k)):
            if self.judged.state(kernel) is State.OPEN and looks_grouped(self.network, kernel):
                return f"{kernel.key} may be a grouped convolution over {kernel.filters} channels"
        are_ends = bool(stems) and stems[0].channels > MOST_UNNAMED and all(ENDS.search(k.key) for k in stems)
        if are_ends and not (self.network.ordered and 2 * stems[0].at < len(self.network.kernels)):
            return f"{stems[0].key} is called as the ends of networks are"
        for kernel in (k for k in stems if k is not self.judged.first):
            verdict = self.judged.verdicts[kernel.at]
            is_sure = self.places.is_named(kernel) or (self.places.begins_network(kernel) and not verdict.is_fed)
            if kernel.channels > MOST_OF_SECOND and not is_sure:
                return verdict.why or f"only its width speaks for {kernel.key}"
        return ""

    def _likelier(self, stems: Sequence[LayerWeight]) -> LayerWeight | None:
        """In a file without order another kernel that is called as stems are, or filters one channel, where only their width
        speaks for these."""
        if self.network.ordered or not stems or 1 < stems[0].channels <= MOST_UNNAMED:
            return None
        is_gray = stems[0].channels == 1
        if any(self.places.is_named_stem(k) or (self.places.begins_network(k) and not is_gray) for k in stems):
            return None
        if is_gray:
            likely = (k for k in self.judged.narrow if k.is_wide and k.filters == k.channels == stems[0].filters)
            return next((k for k in likely if self.places.is_named_stem(k) and self.places.begins_network(k)), None)
        others = (k for k in self.network.kernels if k.is_wide and k not in stems)
        return next((k for k in others if k.filters == k.channels == 1 or self.places.is_named_stem(k)), None)

    def _begins(self, kernel: LayerWeight, stems: Sequence[LayerWeight]) -> bool:
        """Whether it begins a network; also behind one of its series that begins with a stem too: `encoder1`, `encoder2`."""
        if self.places.begins_network(kernel):
            return True
        return kernel.channels > 1 and any(self.places.begin_series(kernel, k) for k in stems if k is not kernel)

    def _may_take_scores(self, kernel: LayerWeight) -> bool:
        """Whether it mixes what the end of a network makes, in a file without order: hourglasses that take their own heatmaps."""
        if self.network.ordered or not kernel.is_point or self.places.is_named(kernel):
            return False
        if any(self.places.are_beside(kernel, k) for k in self._windows_beside(kernel)):
            return False
        makers = self.network.makers.get(kernel.channels, ())
        return any(k.channels > k.filters and k.window for k in makers)

    def _in_a_row(self, stems: Sequence[LayerWeight]) -> tuple[LayerWeight, LayerWeight] | None:
        """In a file without order two kernels of one channel in one block, whose filters a pointwise layer of it takes, or of
        another one where the two are in a list, with a norm between."""
        ones = [k for k in stems if k.channels == 1 and k.is_wide] if not self.network.ordered else []
        for i, kernel in enumerate(ones):
            home = self.places.home(kernel)
            like = [k for k in ones[i + 1 :] if self.places.home(k) == home and k.filters == kernel.filters]
            if not home or not like:
                continue
            in_list = like[0].layer.rpartition(".")[2].isdigit() and _is_later(like[0], kernel)
            points = self.network.kernels if in_list else self.places.inside[home]
            if any(k.is_point and k.channels == kernel.filters for k in points):
                return kernel, like[0]
        return None

    def _may_be_transposed(self, kernel: LayerWeight, stems: Sequence[LayerWeight]) -> bool:
        """Whether it could be the last layer of a generator or a decoder: layers before it have as many channels as its filters,
        and none behind it takes these. DCGAN ends in a transposed main.12.weight [64, 3, 4, 4] without a bias."""
        network, width = self.network, kernel.filters
        if kernel.is_point or kernel is self.judged.first or any(self.places.take_same_input(s, kernel) for s in stems):
            return False
        chosen = {k.at for k in stems}
        others = [k for k in network.kernels if width in (k.filters, k.channels) and k.at not in chosen]
        before = {k.at for k in others if network.is_before(k, kernel)}
        if not before:
            return False
        branch = network.branch(kernel)
        behind = (k for k in others if k.channels == width and k.at not in before)
        return not any(network.ordered or network.branch(k) == branch or k.follows(kernel) for k in behind)

    def _is_beside(self, kernel: LayerWeight, stem: LayerWeight) -> bool:
        return self._has_stems_place(kernel, [stem]) or self.places.are_beside(kernel, stem)


def _is_later(kernel: LayerWeight, other: LayerWeight) -> bool:
    """Whether a kernel of one block is known to come after another, and not beside it: with another name, in a later module, or
    in a list with a number that leaves room for a norm between."""
    if kernel.pattern != other.pattern:
        return kernel.is_wide and other.is_wide
    words = [(a, b) for a, b in zip(kernel.layer.split("."), other.layer.split("."), strict=True) if a != b]
    in_list = len(words) == 1 and kernel.layer.endswith(f".{words[0][0]}")
    numbers = zip(kernel.pieces, other.pieces, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a > b + in_list for a, b in numbers)

"""Which tensors see the image, from names and shapes alone: for files that carry no graph.

The law is that channels come from somewhere (evidence.py, depthwise.py): each kernel as narrow as an image is a first conv, or
explained by the layers that make its channels. What is neither is a first conv too, or the file is refused and all of them are
named. Taking the first 4-D tensor in module order is right for 1,280 of 1,371 timm architectures, taking all with three channels
for 1,348: the rest have parallel stems, position embeddings, grouped convolutions or decoders.

The steps: a verdict on each narrow kernel; the width of the image among those that only it explains; what is open is settled by
its place beside a stem or behind one; then each first conv must stand where stems stand, and nothing may take the image besides
(beyond.py). What is not certain after that is refused: a wrong kernel is the worst outcome.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from chkpt_channels.core.errors import Candidate
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery import beyond, patch_embeddings
from chkpt_channels.discovery.aliases import Aliases
from chkpt_channels.discovery.depthwise import Depthwise
from chkpt_channels.discovery.evidence import MOST_BANDS, Evidence, State, Verdict, is_composed
from chkpt_channels.discovery.network import OIHW, LayerWeight, Layouts, Network, is_weight, orientation
from chkpt_channels.discovery.places import ENDS, OTHER_SENSES, Places
from chkpt_channels.discovery.replicas import Replicas

__all__ = ["MOST_BANDS", "Finding", "find", "layout_of", "layouts_of"]

MOST_CANDIDATES = 40
"""In a report; messages show ten."""
FEWEST_FILTERS = 8
"""Of a network's first convolution; gates and attention maps have fewer."""


NEAR_BRANCHES = 8
"""Layers on either side of a kernel in which its parallel branches are looked for: MobileOne has five in a block."""
_LAST = re.compile(r"(^|[._])(heads?|final|out|neck|tail)([._\d]|_conv)")
"""Names of what stands at the end of networks."""


class Finding(NamedTuple):
    """The first convs, or none; `candidates` are the others in question, with the evidence against each. `input_vectors` are
    those that the image meets before the first convs: means, scales, a shift of the colors. `why_not` says why no choice of
    kernels would be right, where that is so."""

    first_convs: tuple[FirstConv, ...]
    candidates: tuple[Candidate, ...] = ()
    input_vectors: tuple[Tensor, ...] = ()
    why_not: str = ""


def find(tensors: Iterable[Tensor], *, ordered: bool, torch: bool = False, channels: int | None = None) -> Finding:
    """The first convs of every model in the file. `ordered` says that the tensors are in module order, `torch` that PyTorch wrote
    them, which an order implies; `channels` is their number of input channels, where that is known."""
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.group].append(tensor)
    answers = [_in_group(group, ordered, torch or ordered, channels) for group in groups.values()]
    convs = tuple(conv for answer in answers for conv in answer.first_convs)
    if convs and not any(answer.is_ambiguous for answer in answers):  # to convert one of two models would leave a broken file
        rejected = tuple(c for answer in answers for c in answer.candidates)
        return Finding(convs, rejected[:MOST_CANDIDATES], tuple(t for answer in answers for t in answer.input_vectors))
    candidates = [c for answer in answers for c in answer.candidates]
    candidates += [Candidate(c.tensor.name, c.tensor.shape, "another model in the file is ambiguous") for c in convs]
    why_not = next((answer.why_not for answer in answers if answer.why_not), "")
    return Finding((), tuple(candidates[:MOST_CANDIDATES]), why_not=why_not)


def input_vectors(tensors: Iterable[Tensor], conv: FirstConv, *, torch: bool) -> tuple[Tensor, ...]:
    """The vectors that the image meets before a first conv that the user names."""
    group = [t for t in tensors if t.group == conv.tensor.group]
    network = Network([t for t in group if is_weight(t)], ordered=torch, torch=torch)
    return tuple(patch_embeddings.input_vectors(network, conv.in_channels, group))


def layouts_of(tensors: Iterable[Tensor], *, torch: bool) -> Layouts:
    """The layouts of this file's kernels by their rank; none where these are ambiguous."""
    layouts, is_ambiguous = orientation([t for t in tensors if is_weight(t)], torch=torch)
    return {} if is_ambiguous else layouts


def layout_of(tensor: Tensor, layouts: Layouts = OIHW) -> Layout | None:
    """The layout of a kernel of this rank, None where it is ambiguous."""
    return tensor.layout or (layouts.get(len(tensor.shape)) if len(tensor.shape) > 2 else None)


class _Answer(NamedTuple):
    """The result for one state dict; `is_ambiguous` where several of its kernels could be the first."""

    first_convs: tuple[FirstConv, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    input_vectors: tuple[Tensor, ...] = ()
    is_ambiguous: bool = False
    why_not: str = ""


def _in_group(tensors: Sequence[Tensor], ordered: bool, torch: bool, channels: int | None) -> _Answer:
    replicas = Replicas(tensors)
    aliases = Aliases(replicas.kept)
    answer = _Search(Network(aliases.kept, ordered=ordered, torch=torch), tensors, channels).answer()
    every = {t: [r for alias in aliases.of(t) for r in replicas.of(alias)] for t in _tensors_of(answer)}
    convs = tuple(conv._replace(tensor=t) for conv in answer.first_convs for t in every[conv.tensor])
    return answer._replace(first_convs=convs, input_vectors=tuple(t for v in answer.input_vectors for t in every[v]))


def _tensors_of(answer: _Answer) -> list[Tensor]:
    return [*(conv.tensor for conv in answer.first_convs), *answer.input_vectors]


class _Search:
    """The search in one model."""

    def __init__(self, network: Network, tensors: Sequence[Tensor], channels: int | None) -> None:
        self.network, self.tensors, self.channels = network, tensors, channels
        self.places = Places(network)
        self.patches = patch_embeddings.patches(self.places, tensors)
        convs = _image_convs(self.places)
        is_first = network.ordered and convs and not any(k.at < convs[0].at for k, _ in self.patches)
        self.first = convs[0] if is_first else None
        self.narrow = [k for k in convs if k.channels <= MOST_BANDS]
        self.depthwise = Depthwise(self.places, self.first, [k for k in self.narrow if k.channels == 1])
        evidence = Evidence(self.places, self.first)
        several = {k.at: evidence.verdict(k) for k in self.narrow if k.channels > 1}
        self.verdicts: dict[int, Verdict] = self.depthwise.verdicts | several

    def answer(self) -> _Answer:
        """The first convs, or the candidates."""
        free, unsure = self._of(State.FREE), self._of(State.OPEN)
        if block := self._block(free):
            rejected = self._rejected([block.tensor], "the network has a space-to-depth stem")
            return self._found([block], rejected)
        width = self._width(free, unsure)
        patches = self._patches(free, width)
        if not width:
            return self._refused([*free, *unsure], "kernels of several widths could be the first")
        stems, unsure = self._settled([k for k in free if k.channels == width], [k for k in unsure if k.channels == width])
        if unsure or not (stems or patches):
            return self._refused([*stems, *unsure], "several convs could see the image")
        if others := [k for k in (*free, *self._of(State.OPEN)) if k.channels != width and self._may_be_image(k, width)]:
            return self._refused([*stems, *others], "kernels with other channel counts could be the first too")
        if why := self._why_misplaced(stems, patches):
            return self._refused(stems, why)
        if why := self._why_latent(stems, width):
            return self._refused(stems, why)
        if why := beyond.why_past(self.places, stems, width):
            return self._refused(stems, f"the image goes past the first convs: {why}", why)
        if stems and self.network.is_ambiguous:
            return self._refused(stems, "its axis order is ambiguous: give --layout")
        convs = [*(patch_embeddings.patch_conv(k, width, by) for k, by in patches), *(self._conv(k) for k in stems)]
        return self._found(convs, self._rejected([c.tensor for c in convs], "another kernel is more likely"))

    def _of(self, state: State) -> list[LayerWeight]:
        """The narrow kernels in a state, of the width that the user gives, where one is given."""
        return [k for k in self.narrow if self.verdicts[k.at].state is state and self.channels in (None, k.channels)]

    def _block(self, free: Sequence[LayerWeight]) -> FirstConv | None:
        """A space-to-depth stem, where there is one and nothing else could see the image. `channels` are the image's."""
        block = patch_embeddings.space_to_depth(self.places)
        if block is None or any(k is not block and k.channels == 3 for k in free) or self.channels == block.channels:
            return None
        return patch_embeddings.block_conv(block, self.channels) if block.channels % (self.channels or 1) == 0 else None

    def _width(self, free: Sequence[LayerWeight], unsure: Sequence[LayerWeight]) -> int:
        """The width of the image: that of the first convolution if it is one or three, else three, one, that of the first, the
        fewest; 0 where it cannot be told."""
        if self.patches and not any(k.channels > 1 for k in free):
            return patch_embeddings.colors(self.patches[0][0].channels, least_side=2)
        first = self.first
        is_free = first is not None and self.verdicts.get(first.at, Verdict(State.INSIDE)).state is not State.INSIDE
        if first and is_free and first.channels in (1, 3) and self.channels in (None, first.channels):
            return first.channels
        likely = [k for k in free if k.channels in (1, 3) or k is first or self._may_be_image(k)] or [*unsure] or [*free]
        if not self.network.ordered:
            usual = [k for k in (*free, *unsure) if k.channels in (1, 3) and not ENDS.search(k.key)]
            if any(k.is_wide for k in usual) and not any(k in usual for k in likely):
                return 0
            likely = [k for k in likely if not ENDS.search(k.key)] or likely
            if not any(k.channels in (1, 3) for k in likely):
                likely = [k for k in likely if self.places.is_named_stem(k)] or likely
                if len({k.channels for k in likely}) > 1:
                    return 0
        widths = {k.channels for k in likely}
        preferred = (3, 1, first.channels if first else 0)
        return next((w for w in preferred if w in widths), min(widths, default=0))

    def _patches(self, free: Sequence[LayerWeight], width: int) -> list[tuple[LayerWeight, str]]:
        """The patch embeddings of images of this width: beside convolutions only those that are called so."""
        return [
            (kernel, by)
            for kernel, by in self.patches
            if width and kernel.channels % width == 0 and patch_embeddings.is_square(kernel.channels // width)
            if by == "names" or not free
        ]

    def _settled(self, stems: list[LayerWeight], unsure: list[LayerWeight]) -> tuple[list[LayerWeight], list[LayerWeight]]:
        """The stems, with those of the unsure ones whose place says so, and what stays unsure."""
        behind = [k for k in stems if k.channels == 1 and k is not self.first and not self.verdicts[k.at].by_place]
        stems = [k for k in stems if k not in behind or not self._is_right_behind(k, stems)]  # nothing else makes what it takes
        if not stems and not self.network.ordered:
            named = [k for k in unsure if self.places.is_named_stem(k) and k.is_wide]
            weak = [k for k in self.narrow if self.verdicts[k.at].is_weak]
            is_sole = len(unsure) == 1 and unsure[0].is_wide and all(k.follows(unsure[0]) for k in weak)
            stems = named[:1] or (unsure[:1] if is_sole else [])
            unsure = [k for k in unsure if k not in stems]
        before = -1
        while before != len(unsure):
            before = len(unsure)
            for kernel in unsure:
                if self._has_stems_place(kernel, stems):
                    stems = [*stems, kernel]
            unsure = [k for k in unsure if k not in stems and not self._has_inner_place(k, stems)]
        weak = [k for k in self.narrow if self.verdicts[k.at].is_weak and self.verdicts[k.at].state is State.INSIDE]
        stems += [k for k in weak if any(k.channels == s.channels and self.places.take_same_input(s, k) for s in stems)]
        return sorted(stems, key=lambda k: k.at), unsure

    def _has_stems_place(self, kernel: LayerWeight, stems: Sequence[LayerWeight]) -> bool:
        """Whether it stands where a stem stands: with one's input, at one's place in a like module, or as a branch of one that
        looks at single pixels."""
        places = self.places
        if any(places.take_same_input(s, kernel) for s in stems):
            return True
        if self.verdicts[kernel.at].is_fed:  # two networks with the same layers may stand in a row
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
        if kernel.is_point and any(self.verdicts[k.at].state is State.INSIDE for k in self._windows_beside(kernel)):
            return True
        if kernel.channels != 1:
            return False
        if self._is_right_behind(kernel, stems):
            return True
        unnamed = not self.network.ordered and not self.places.is_named(kernel)
        return (
            bool(stems or self.patches) and unnamed and (self.depthwise.is_beside_full(kernel) or bool(_LAST.search(kernel.key)))
        )

    def _windows_beside(self, kernel: LayerWeight) -> list[LayerWeight]:
        """The branches with a window beside one that looks at single pixels."""
        inside = self.places.inside[self.places.home(kernel)]
        like = [k for k in inside if k.is_wide and (k.filters, k.channels) == (kernel.filters, kernel.channels)]
        return [k for k in like if abs(k.at - kernel.at) <= NEAR_BRANCHES and k.at in self.verdicts]

    def _is_right_behind(self, kernel: LayerWeight, stems: Sequence[LayerWeight]) -> bool:
        """Whether it is depthwise over a stem's channels: behind it, not a branch of it, and a pointwise layer takes them next."""
        if not self.depthwise.has_point_behind(kernel):
            return False
        places, home = self.places, self.places.home(kernel)
        near = self.network.preceding(kernel, NEAR_BRANCHES)
        before = [s for s in stems if s.filters == kernel.filters and s in near]
        return any((places.home(s) != home or kernel.follows(s)) and not places.take_same_input(s, kernel) for s in before)

    def _may_be_image(self, kernel: LayerWeight, width: int = 0) -> bool:
        """Whether a kernel of another width than the image's `width` could begin a network too, as a second one in the same file
        does: with two images, or an image beside a latent."""
        if kernel.filters < FEWEST_FILTERS or kernel.is_point:
            return False
        is_alone = kernel.layer.count(".") <= self.network.trunk + 1 and self.places.is_named(kernel)
        if not is_alone and not self.places.begins_network(kernel):
            return False
        if kernel.channels == 1:
            return self.places.is_named_stem(kernel) or width > 3
        verdict = self.verdicts[kernel.at]
        if kernel.channels in (2 * width, 3 * width, width + 1) and self.places.begins_network(kernel):
            return verdict.state is not State.INSIDE
        return verdict.state is State.FREE and not is_composed(self.network, kernel, is_named=self.places.is_named(kernel))

    def _why_misplaced(self, stems: Sequence[LayerWeight], patches: Sequence[tuple[LayerWeight, str]]) -> str:
        """Why these cannot all be first convs, or not these alone; "" where they can."""
        if len({k.channels for k, _ in patches}) > 1:
            return "several patch embeddings of different sizes"
        if other := next(patch_embeddings.others(self.network, [k for k, _ in patches]), None):
            return f"{other.key} may take patches of the image too"
        named = [k for k in stems if self.places.is_named_stem(k)]
        root = self.first if self.first in stems else next(iter(named or stems), None)
        # beside a stem that stands alone at the top another one that begins a part may see another input: ControlNet's latent
        in_parts = root is None or self.places.part(root)
        placed = [k for k in stems if k is root or (in_parts and k.is_wide and self.places.begins_network(k))]
        count = 0
        while count != len(placed):  # a branch of a placed one is placed too
            count = len(placed)
            placed += [k for k in stems if k not in placed and any(self._is_beside(k, stem) for stem in placed)]
        if misplaced := next((k for k in stems if k not in placed), None):
            return f"{misplaced.key} takes as many channels as an image has, and does not stand where first convs do"
        parts = {self.network.branch(k) for k in stems}
        for maker in self.network.makers.get(stems[0].channels if len(parts) > 1 else 0, ()):
            if maker.is_wide and maker.channels > maker.filters and self.network.branch(maker) in parts:
                return f"{maker.key} makes as many channels as an image has: one of several networks may take these"
        for kernel in stems:
            for other in self.narrow:
                if other not in stems and other.channels == kernel.channels and self.places.take_same_input(kernel, other):
                    return f"{other.key} stands where it takes the same input as {kernel.key}, and seems to be inside"
        return ""

    def _is_beside(self, kernel: LayerWeight, stem: LayerWeight) -> bool:
        return self._has_stems_place(kernel, [stem]) or self.places.are_beside(kernel, stem)

    def _why_latent(self, stems: Sequence[LayerWeight], width: int) -> str:
        """Why a network could take a latent or a state, not an image alone: it takes neither one nor three channels, and ends in an
        image or in as few channels as it takes (a diffusion U-Net takes 4, a VAE decoder outputs 3), or makes the gates of as many
        channels as it takes beside an image (ConvLSTM)."""
        if width <= 3:
            return ""
        ends = [k for w in (3, 4, 8, 16) if width >= w for k in self.network.makers.get(w, ())]
        if any(k.is_wide and k.channels >= 4 * k.filters for k in ends):
            return "the network outputs an image or a latent: this input could be a latent too"
        states = {width - image for image in range(1, 5)}
        if any(k.filters == gates * state for k in stems for gates in (2, 3, 4) for state in states if state > 4):
            return "it could take an image and a state of the network together"
        return ""

    def _conv(self, kernel: LayerWeight) -> FirstConv:
        if self.channels is None and kernel.channels in patch_embeddings.SPACE_TO_DEPTH:
            return patch_embeddings.block_conv(kernel)
        layout = layout_of(kernel.tensor, self.network.layouts)
        if kernel.transposed and layout:
            layout = Layout(layout.replace("OI", "IO"))
        why = self.verdicts[kernel.at].why or "only the image explains its channels"
        return FirstConv(kernel.tensor, layout, kernel.channels, "shapes" if self.network.ordered else "names", why)

    def _found(self, convs: Sequence[FirstConv], rejected: tuple[Candidate, ...]) -> _Answer:
        channels = convs[0].in_channels
        vectors = patch_embeddings.input_vectors(self.network, channels, self.tensors)
        return _Answer(tuple(convs), rejected, tuple(vectors))

    def _rejected(self, chosen: Sequence[Tensor], why: str) -> tuple[Candidate, ...]:
        """The narrow kernels that were not chosen, and the evidence against each."""
        others = [k for k in self.narrow if not any(k.tensor is tensor for tensor in chosen)]
        others.sort(key=self._likeness)
        return tuple(Candidate(k.tensor.name, k.tensor.shape, self.verdicts[k.at].why or why) for k in others[:MOST_CANDIDATES])

    def _refused(self, likely: Sequence[LayerWeight], why: str, why_not: str = "") -> _Answer:
        """No answer: the kernels in question, all others that are narrow, and patch embeddings that may be meant."""
        reasons = [(k, why) for k in sorted(likely, key=self._likeness)]
        reasons += [(k, f"{why}: a patch embedding") for k, _ in self.patches if k not in likely]
        others = [k for k in self.narrow if k not in likely and all(k is not patch for patch, _ in self.patches)]
        reasons += [(k, self.verdicts[k.at].why or why) for k in sorted(others, key=self._likeness)]
        candidates = tuple(Candidate(k.tensor.name, k.tensor.shape, reason) for k, reason in reasons[:MOST_CANDIDATES])
        return _Answer((), candidates, is_ambiguous=bool(likely or self.patches), why_not=why_not)

    def _likeness(self, kernel: LayerWeight) -> tuple[bool, bool, int]:
        """Sort key: likely stems first, for people who have to choose."""
        return (not self.places.is_named(kernel), kernel.channels != 3, kernel.at)


def _image_convs(places: Places) -> list[LayerWeight]:
    """The convolutions that can see an image: of the network's number of dimensions, and not named for another input, where
    there are such."""
    convs = places.network.convs
    for is_meant in (lambda k: len(k.window) > 1, lambda k: k.channels > MOST_BANDS or not OTHER_SENSES.search(k.key)):
        if any(is_meant(k) and k.channels <= MOST_BANDS for k in convs):
            convs = [k for k in convs if is_meant(k)]
    ranks = Counter(len(k.window) for k in convs if k.is_wide)
    usual = max(ranks, key=lambda rank: ranks[rank], default=0)
    if not any(k.channels <= MOST_BANDS and len(k.window) == usual for k in convs):
        return convs
    return [k for k in convs if len(k.window) == usual or k.channels != 1 or places.part(k)]

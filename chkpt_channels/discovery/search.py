"""Which tensors see the image, from names and shapes alone: for files that carry no graph.

A network's first kernel is the one whose input width no other layer produces (evidence.py). Every further kernel that sees the
image is parallel to it, begins a network of its own, or is its replica (EMA, teacher). What stays ambiguous is refused: a wrong
kernel is the worst outcome. Taking the first 4-D tensor in module order is right for 1,280 of 1,371 timm architectures, taking
all with three channels for 1,348: the rest have parallel stems, position embeddings, grouped convolutions or decoders.

The steps: drop the kernels with evidence against them; a folded stem, if there is one, wins; of the widths that are left choose
the image's; of its kernels the one stem, or those that see one image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from chkpt_channels.core.errors import Candidate
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery import patch_embeddings
from chkpt_channels.discovery.evidence import ENDS, ENTRY, FED, MOST_BANDS, OTHER_SENSES, STEM, Evidence
from chkpt_channels.discovery.network import OIHW, LayerWeight, Layouts, Network, is_weight, orientation
from chkpt_channels.discovery.replicas import Replicas

__all__ = ["MOST_BANDS", "Finding", "find", "layout_of", "layouts_of"]

MOST_CANDIDATES = 40
"""In a report; messages show ten."""
MOST_PARALLEL = 12
"""More kernels alike are a series of inner layers, not parallel stems: MTCNN has three, RepVGG and MobileOne two to five."""
FEWEST_FILTERS = 8
"""Of a network's first convolution; gates and attention maps have fewer."""
FEWEST_BRANCH_LAYERS = 3
"""Of a branch that is a network of its own."""


class Finding(NamedTuple):
    """The first convs, or none; `candidates` are the others in question, with the evidence against each. `input_vectors` are
    those that the image meets before the first convs: means, scales, a shift of the colors."""

    first_convs: tuple[FirstConv, ...]
    candidates: tuple[Candidate, ...] = ()
    input_vectors: tuple[Tensor, ...] = ()


def find(tensors: Iterable[Tensor], *, ordered: bool, torch: bool = False, channels: int | None = None) -> Finding:
    """The first convs of every model in the file. `ordered` says that the tensors are in module order, `torch` that PyTorch wrote
    them, which an order implies; `channels` is their number of input channels, where that is known."""
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.group].append(tensor)
    answers = [_in_group(Replicas(group), group, ordered, torch or ordered, channels) for group in groups.values()]
    convs = tuple(conv for answer in answers for conv in answer.first_convs)
    if convs and not any(answer.is_ambiguous for answer in answers):  # to convert one of two models would leave a broken file
        rejected = tuple(c for answer in answers for c in answer.candidates)
        return Finding(convs, rejected[:MOST_CANDIDATES], tuple(t for answer in answers for t in answer.input_vectors))
    candidates = [c for answer in answers for c in answer.candidates]
    candidates += [Candidate(c.tensor.name, c.tensor.shape, "another model in the file is ambiguous") for c in convs]
    return Finding((), tuple(candidates[:MOST_CANDIDATES]))


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


def _in_group(replicas: Replicas, tensors: Sequence[Tensor], ordered: bool, torch: bool, channels: int | None) -> _Answer:
    answer = _Search(Network(replicas.kept, ordered=ordered, torch=torch), tensors, channels).answer()
    convs = [conv._replace(tensor=t) for conv in answer.first_convs for t in replicas.of(conv.tensor)]
    vectors = tuple(replica for vector in answer.input_vectors for replica in replicas.of(vector))
    return answer._replace(first_convs=tuple(convs), input_vectors=vectors)


class _Search:
    """The search in one model."""

    def __init__(self, network: Network, tensors: Sequence[Tensor], channels: int | None) -> None:
        self.network, self.tensors, self.channels = network, tensors, channels
        self.evidence = Evidence(network)

    def answer(self) -> _Answer:
        """The first convs, or the candidates."""
        verdicts = self.evidence.verdicts
        free = [k for k in self.evidence.narrow if not verdicts[k.at] and self.channels in (None, k.channels)]
        free = [k for k in free if not self.evidence.is_lone_point(k)]
        if any(len(k.window) > 1 for k in free):  # 1-D kernels beside 2-D ones see audio, or attend over channels
            free = [k for k in free if len(k.window) > 1]
        if stem := patch_embeddings.stem(self.evidence, free, self.tensors, self.channels):
            rejected = self._rejected([stem.tensor], "the network has a space-to-depth stem or a patch embedding")
            return _Answer((stem,), rejected, tuple(patch_embeddings.input_vectors(self.network, stem.in_channels, self.tensors)))
        pool, why_ambiguous = self._pool(free)
        if why_ambiguous or not pool:
            return self._candidates(free, why_ambiguous)
        if self.network.is_ambiguous:
            return self._candidates(pool, "its axis order is ambiguous: give --layout")
        stems, found_by, why = self._stems(pool)
        if stems and self._may_be_inner(stems, free):
            stems, why = [], "another kernel could see the image"
        if not stems:
            return self._candidates(free, why)
        if self.channels is None and stems[0].channels in patch_embeddings.SPACE_TO_DEPTH:
            convs = tuple(patch_embeddings.block_stem(k) for k in stems)
        else:
            convs = tuple(FirstConv(k.tensor, self._layout(k), k.channels, found_by, why) for k in stems)
        rejected = self._rejected([k.tensor for k in stems], "another kernel is more likely")
        return _Answer(convs, rejected, tuple(patch_embeddings.input_vectors(self.network, convs[0].in_channels, self.tensors)))

    def _rejected(self, chosen: Sequence[Tensor], why: str) -> tuple[Candidate, ...]:
        """The narrow kernels that were not chosen, and the evidence against each."""
        others = [k for k in self.evidence.narrow if not any(k.tensor is tensor for tensor in chosen)]
        others.sort(key=_likeness)
        return tuple(
            Candidate(k.tensor.name, k.tensor.shape, self.evidence.verdicts[k.at] or why) for k in others[:MOST_CANDIDATES]
        )

    def _layout(self, kernel: LayerWeight) -> Layout | None:
        return layout_of(kernel.tensor, self.network.layouts)

    def _candidates(self, free: Sequence[LayerWeight], why: str) -> _Answer:
        verdicts = self.evidence.verdicts
        open_ = {k.at for k in free}
        likely = sorted(self.evidence.narrow, key=lambda k: (k.at not in open_, *_likeness(k)))[:MOST_CANDIDATES]
        reasons = [(k.tensor, why if k.at in open_ else verdicts[k.at] or "another kernel is more likely") for k in likely]
        patches = patch_embeddings.linear_patches(self.network, self.tensors)
        reasons = [(k.tensor, "a Linear layer, and convolutions could see the image") for k, _ in patches[:10]] + reasons
        return _Answer((), tuple(Candidate(t.name, t.shape, reason) for t, reason in reasons), is_ambiguous=bool(free))

    def _pool(self, free: list[LayerWeight]) -> tuple[list[LayerWeight], str]:
        """Those of the kernels that have the width of the image; the reason where several widths could be the image's. Three
        channels win, then those of the first convolution, then one, then the fewest."""
        first = self.evidence.first
        present = {k.channels for k in free}
        second = first.channels if first and any(k is first for k in free) else 1
        width = next((w for w in (3, second) if w in present), min(present, default=0))
        pool = [k for k in free if k.channels == width]
        if any(k.channels != width and self._may_be_first(k, pool[0]) for k in free) or (
            width in (1, 3) and self._has_second_stage()
        ):
            return pool, "kernels with other channel counts could be the first too"
        return pool, self._why_latent(pool[0]) if width > 3 else ""

    def _may_be_first(self, kernel: LayerWeight, chosen: LayerWeight) -> bool:
        """Whether a kernel of another width could be the network's first: it precedes the chosen one, or is named so."""
        if kernel.filters < FEWEST_FILTERS or set(kernel.window) == {1} or (kernel.channels == 1 and chosen.channels == 3):
            return False
        if self.network.ordered:
            return kernel.at < chosen.at
        return kernel.channels != 2 and bool(ENTRY.search(kernel.key)) and not ENDS.search(kernel.key)

    def _has_second_stage(self) -> bool:
        """Whether one network in the file takes the three channels that another one outputs, as a generator and its discriminator
        do: which of them is to change, the user has to say."""
        fed = [k for k in self.evidence.narrow if k.channels == 3 and FED in self.evidence.verdicts[k.at]]
        branches = {self.network.branch(k) for k in self.evidence.makers.get(3, ())}
        return any(self.network.branch(k) not in branches for k in fed)

    def _why_latent(self, kernel: LayerWeight) -> str:
        """Why a network could take a latent, not an image: it takes neither one nor three channels and ends in an image or in as
        few channels as it takes. A diffusion U-Net takes 4 (Stable Diffusion) or 16 (SD 3), a VAE decoder outputs 3."""
        ends = [k for width in (3, 4, 8, 16) if width <= kernel.channels for k in self.evidence.makers.get(width, ())]
        is_generative = any(set(k.window) != {1} and k.channels >= 4 * k.filters for k in ends)
        return "the network outputs an image or a latent: this input could be a latent too" if is_generative else ""

    def _stems(self, pool: list[LayerWeight]) -> tuple[list[LayerWeight], str, str]:
        """The stems among the kernels of the image's width, with found_by and why; none, and why, where it is ambiguous."""
        if len(pool) == 1:
            return pool, "shapes", "the only conv whose input no layer produces"
        if self._are_parallel(pool):
            return pool, "shapes", "parallel convs whose input no layer produces"
        named = [k for k in pool if STEM.search(k.key) and not ENDS.search(k.key)]
        first = self.evidence.first
        if first and any(k is first for k in pool) and not self._rivals(first, [*named, *pool]):
            stems = [k for k in pool if self._see_one_image(k, first)]
            return stems, "shapes", "the first conv in module order"
        if named and all(self._see_one_image(k, named[0]) for k in named):
            stems = [k for k in pool if self._see_one_image(k, named[0])]
            if not any(self._is_full(k) for k in pool if not any(k is stem for stem in stems)):
                return stems, "names", "named like a stem"
        return [], "", "several convs could see the image"

    def _rivals(self, first: LayerWeight, others: Sequence[LayerWeight]) -> list[LayerWeight]:
        """Those that could be stems in its place: not parallel to it, and named like a stem or like it, or ungrouped."""
        if ENDS.search(first.key):
            return [k for k in others if not self._see_one_image(k, first)]
        branch = self.network.branch(first)  # a second input within the same branch is not explained by another network
        alike = [k for k in others if STEM.search(k.key) or k.pattern == first.pattern or k.channels > 1]
        alike += [k for k in others if self.network.branch(k) == branch or self._is_full(k)]
        return [k for k in alike if not self._see_one_image(k, first)]

    def _is_full(self, kernel: LayerWeight) -> bool:
        """Whether it is ungrouped, and not named for another input than images: then only an image explains it."""
        return self.evidence.begins_full(kernel) and not OTHER_SENSES.search(kernel.key)

    def _may_be_inner(self, stems: Sequence[LayerWeight], free: Sequence[LayerWeight]) -> bool:
        """Whether these may be inner layers and another kernel the stem. Without the order, one channel proves too little, and a
        decoder may end in a transposed kernel [64, 3, 4, 4] that looks as if it took three."""
        if self.network.ordered or any(STEM.search(k.key) for k in stems):
            return False
        if all(ENDS.search(k.key) and (k.channels == 1 or k.window[-1] % 2 == 0) for k in stems):
            return True
        if stems[0].channels == 3:
            return any(k.channels == 1 and set(k.window) != {1} for k in free)
        others = [k for k in self.evidence.narrow if k.channels == 1 and set(k.window) != {1}]
        return any(STEM.search(k.key) and not ENDS.search(k.key) for k in others)

    def _are_parallel(self, pool: list[LayerWeight]) -> bool:
        return len(pool) <= MOST_PARALLEL and all(self._see_one_image(k, pool[0]) for k in pool[1:])

    def _see_one_image(self, a: LayerWeight, b: LayerWeight) -> bool:
        """Whether two kernels see the same image: as branches of one module, as a series, or each first in a network."""
        if a is b:
            return True
        if len(a.window) != len(b.window):
            return False
        by_order = self.evidence.are_branches(a, b) or self._are_adjacent(a, b)
        return by_order or self._are_series(a, b) or self._begin_networks(a, b)

    def _are_adjacent(self, a: LayerWeight, b: LayerWeight) -> bool:
        """Whether only kernels of as many channels and filters are between them: parallel convolutions over one input."""
        between = self.network.kernels[min(a.at, b.at) : max(a.at, b.at) + 1]
        alike = all(k.channels == a.channels and k.filters == a.filters and k.window for k in between)
        return self.network.ordered and a.channels > 1 and alike

    def _are_series(self, a: LayerWeight, b: LayerWeight) -> bool:
        """Whether their names differ in numbers only, as CrossViT's `patch_embed.0` and `patch_embed.1`; the verdicts have
        dropped depthwise series."""
        return a.pattern == b.pattern and (a.channels > 1 or (a.is_patch and b.is_patch) or self.evidence.is_analogue(a, b))

    def _begin_networks(self, a: LayerWeight, b: LayerWeight) -> bool:
        """Whether each begins a network of its own and no layer outputs their channels: the two encoders of RAFT or depth_pro."""
        x, y = self.network.branch(a), self.network.branch(b)
        sizes = self.network.branch_sizes
        if x == y or min(sizes[x], sizes[y]) < FEWEST_BRANCH_LAYERS or self.evidence.makers.get(a.channels):
            return False
        return a.channels > 1 or (a.tensor.shape == b.tensor.shape and a.key.split(x)[-1] == b.key.split(y)[-1])


def _likeness(kernel: LayerWeight) -> tuple[bool, bool, int]:
    """Sort key: likely stems first, for people who have to choose."""
    return (not STEM.search(kernel.key), kernel.channels != 3, kernel.at)

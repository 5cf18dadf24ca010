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

from collections.abc import Iterable, Iterator, Sequence
from math import prod

from chkpt_channels.core.errors import Candidate
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import Finding, FirstConv, Tensor
from chkpt_channels.discovery.law import beyond, patch_embeddings
from chkpt_channels.discovery.law.copies import Copies, by_group
from chkpt_channels.discovery.law.evidence import MOST_BANDS, State
from chkpt_channels.discovery.law.judged import Judged
from chkpt_channels.discovery.law.network import OIHW, LayerWeight, Layouts, Network, is_weight, orientation
from chkpt_channels.discovery.law.places import ENDS
from chkpt_channels.discovery.law.placing import Placing
from chkpt_channels.discovery.law.rivals import MOST_OF_SECOND, Rivals

__all__ = ["MOST_BANDS", "find", "layout_of", "layouts_of"]

MOST_CANDIDATES = 40
"""In a report; messages show ten."""
MOST_BESIDE = 9
"""Channels of an image with something beside it: a latent, the image's latent and a mask, as inpainting takes."""
LEAST_OF_IMAGES = 7
"""The side of a window that only images have: latents are small already."""

_PATCHES_OUT = pattern(r"proj_?out|final|unpatch|to_pixels|decod")
"""Names of what makes patches again."""


def find(tensors: Iterable[Tensor], *, ordered: bool, torch: bool = False, channels: int | None = None) -> Finding:
    """The first convs of every model in the file. `ordered` says that the tensors are in module order, `torch` that PyTorch wrote
    them, which an order implies; `channels` is their number of input channels, where that is known."""
    answers = [_in_group(group, ordered, torch or ordered, channels) for group in by_group(tensors)]
    convs = tuple(conv for answer, _ in answers for conv in answer.first_convs)
    candidates = tuple(c for answer, _ in answers for c in answer.candidates)
    if convs and not any(is_ambiguous for _, is_ambiguous in answers):  # one of two models converted would leave a broken file
        return Finding(convs, candidates[:MOST_CANDIDATES], tuple(t for answer, _ in answers for t in answer.input_vectors))
    candidates += tuple(Candidate(c.tensor.name, c.tensor.shape, "another model in the file is ambiguous") for c in convs)
    why_not = next((answer.why_not for answer, _ in answers if answer.why_not), "")
    return Finding((), candidates[:MOST_CANDIDATES], why_not=why_not)


def input_vectors(tensors: Sequence[Tensor], convs: Iterable[FirstConv], *, torch: bool) -> Iterator[Tensor]:
    """The vectors that the image meets before first convs that the user names."""
    for name, channels in dict.fromkeys((conv.tensor.group, conv.in_channels) for conv in convs):
        group = [t for t in tensors if t.group == name]
        network = Network([t for t in group if is_weight(t)], ordered=torch, torch=torch)
        yield from patch_embeddings.input_vectors(network, channels, group)


def layouts_of(tensors: Iterable[Tensor], *, torch: bool) -> Layouts:
    """The layouts of this file's kernels by their rank; none where these are ambiguous."""
    layouts, is_ambiguous = orientation([t for t in tensors if is_weight(t)], torch=torch)
    return {} if is_ambiguous else layouts


def layout_of(tensor: Tensor, layouts: Layouts = OIHW) -> Layout | None:
    """The layout of a kernel of this rank, None where it is ambiguous."""
    return tensor.layout or (layouts.get(len(tensor.shape)) if len(tensor.shape) > 2 else None)


_Answer = tuple[Finding, bool]
"""The result for one state dict, and whether several of its kernels could be the first."""


def _in_group(tensors: Sequence[Tensor], ordered: bool, torch: bool, channels: int | None) -> _Answer:
    copies = Copies(tensors)
    search = _Search(Network(copies.kept, ordered=ordered, torch=torch), tensors, channels)
    answer, is_ambiguous = search.answer()
    if copies.may_be_in_a_row and answer.first_convs:
        answer, is_ambiguous = search.unless_in_a_row(answer)
    convs = tuple(conv._replace(tensor=t) for conv in answer.first_convs for t in copies.of(conv.tensor))
    vectors = tuple(t for vector in answer.input_vectors for t in copies.of(vector))
    return answer._replace(first_convs=convs, input_vectors=vectors), is_ambiguous


class _Search:
    """The search in one model."""

    def __init__(self, network: Network, tensors: Sequence[Tensor], channels: int | None) -> None:
        self.network, self.tensors, self.channels = network, tensors, channels
        self.judged = Judged(network, tensors)
        self.places, self.placing = self.judged.places, Placing(self.judged)
        self.rivals = Rivals(self.judged, channels)

    def answer(self) -> _Answer:
        """The first convs, or the candidates."""
        free, unsure = (self.judged.of(state, self.channels) for state in (State.FREE, State.OPEN))
        if self.judged.is_crowded or len(free) + len(unsure) > LIMITS.likely_kernels:
            return Finding((), self._rejected([], "more kernels could see the image than are compared")), True
        if block := self._block([*free, *(k for k in unsure if self.places.is_named(k))]):
            if others := self.rivals.of([block], block.channels // 4):
                return self._refused([block, *others], "kernels with other channel counts could be the first too")
            if why := self._why_no_block(block):
                return self._refused([block], why)
            conv = patch_embeddings.block_conv(block, self.channels)
            return self._found([conv], self._rejected([block.tensor], "the network has a space-to-depth stem"))
        width = self._width(free, unsure)
        patches = self._patches(free, width)
        if not width:
            return self._refused([*free, *unsure], "kernels of several widths could be the first")
        stems, unsure = self.placing.settled([k for k in free if k.channels == width], [k for k in unsure if k.channels == width])
        if unsure or not (stems or patches):
            return self._refused([*stems, *unsure], "several convs could see the image")
        if others := self.rivals.of(stems, width):
            return self._refused([*stems, *others], "kernels with other channel counts could be the first too")
        why = beyond.why_unnamed(self.places, stems, width, self.tensors) or self.placing.why_misplaced(stems, patches)
        if why := why or self._why_latent(stems, width):
            return self._refused(stems, why)
        if why := beyond.why_past(self.places, stems, width):
            return self._refused(stems, f"the image goes past the first convs: {why}", why)
        if stems and self.network.is_ambiguous:
            return self._refused(stems, "its axis order is ambiguous")
        convs = [*(patch_embeddings.patch_conv(k, width, by) for k, by in patches), *(self._conv(k) for k in stems)]
        return self._found(convs, self._rejected([c.tensor for c in convs], "another kernel is more likely"))

    def unless_in_a_row(self, answer: Finding) -> _Answer:
        """An answer that several equal networks share; or a refusal, where one makes what another may take."""
        tensors = [conv.tensor for conv in answer.first_convs]
        stems = [k for k in self.network.kernels if any(k.tensor is tensor for tensor in tensors)]
        makers = (k for stem in stems for k in self.network.makers.get(stem.channels, ()))
        if maker := next((k for k in makers if k.is_wide and k.channels > k.filters), None):
            return self._refused(stems, f"{maker.key} makes what one of several equal networks may take")
        return answer, False

    def _block(self, others: Sequence[LayerWeight]) -> LayerWeight | None:
        """A space-to-depth stem, where there is one and none of the others could see the image."""
        block = patch_embeddings.space_to_depth(self.places)
        if block is None or block.channels % (self.channels or 1) or self.channels == block.channels:
            return None
        for kernel in others:
            is_larger = kernel.window > block.window and kernel.filters >= kernel.channels != 1
            if kernel is not block and (kernel.channels in (3, block.channels // 4, block.channels // 16) or is_larger):
                return None
        return block

    def _why_no_block(self, block: LayerWeight) -> str:
        """Why a space-to-depth stem could see something beside the pixels, or others see the image beside it."""
        return self._why_beside_blocks(block.channels) or beyond.why_past(self.places, [block], 1 if block.channels % 3 else 3)

    def _width(self, free: Sequence[LayerWeight], unsure: Sequence[LayerWeight]) -> int:
        """The width of the image: that of the first convolution if it is one or three, else three, one, that of the first, the
        fewest; 0 where it cannot be told."""
        if self.judged.patches and not any(k.channels > 1 for k in free):
            return patch_embeddings.colors(self.judged.patches[0][0].channels, least_side=2)
        first = self.judged.first
        is_free = first is not None and self.judged.state(first) is not State.INSIDE
        if first and is_free and first.channels in (1, 3) and self.channels in (None, first.channels):
            return first.channels
        likely = [k for k in free if k.channels in (1, 3) or k is first or self.rivals.may_be_image(k)]
        likely = likely or self._begun(free, unsure) or [*free] or [*unsure]
        if not self.network.ordered:
            usual = [k for k in (*free, *unsure) if k.channels in (1, 3) and not ENDS.search(k.key)]
            is_usual = any(k.is_wide for k in usual) or (usual and min(k.channels for k in likely) > MOST_OF_SECOND)
            if is_usual and not any(k in usual for k in likely):
                return 0
            likely = [k for k in likely if not ENDS.search(k.key)] or likely
            likely = [k for k in likely if not self._is_fed_by(k, usual)] or likely
            if not any(k.channels in (1, 3) for k in likely):
                likely = [k for k in likely if self.places.is_named_stem(k)] or likely
                if len({k.channels for k in likely}) > 1:
                    return 0
        widths = {k.channels for k in likely}
        preferred = (3, 1, first.channels if first else 0)
        return next((w for w in preferred if w in widths), min(widths, default=0))

    def _begun(self, free: Sequence[LayerWeight], unsure: Sequence[LayerWeight]) -> list[LayerWeight]:
        """The unsure kernels of one channel or three; where others are free, or they are of both widths, those alone that stand
        where first convs do."""
        usual = [k for k in unsure if k.channels in (1, 3)]
        if len({k.channels for k in usual}) > 1:
            usual = [k for k in usual if not k.is_wide or self.places.begins_network(k)] or usual
        return [k for k in usual if not free or self.judged.may_begin(k) or free[0].channels > MOST_OF_SECOND]

    def _is_fed_by(self, kernel: LayerWeight, others: Sequence[LayerWeight]) -> bool:
        """Whether one of the others makes its width: the image comes to that one first."""
        makers = (k for k in others if k is not kernel and k.filters == kernel.channels and k.channels != kernel.channels)
        return self.judged.verdicts[kernel.at].is_fed and next(makers, None) is not None

    def _patches(self, free: Sequence[LayerWeight], width: int) -> list[tuple[LayerWeight, str]]:
        """The patch embeddings of images of this width: beside convolutions only those that are called so."""
        likely = [(k, by) for k, by in self.judged.patches if width and k.channels % width == 0 and (by == "names" or not free)]
        return [(k, by) for k, by in likely if patch_embeddings.is_square(k.channels // width)]

    def _why_latent(self, stems: Sequence[LayerWeight], width: int) -> str:
        """Why a network could take a latent or a state, not an image alone: it takes neither one nor three channels, and ends in
        an image or in as few channels as it takes (a diffusion U-Net takes 4, a VAE decoder outputs 3), or makes the gates of as
        many channels as it takes beside an image (ConvLSTM)."""
        is_lone = bool(stems) and not any(k.is_wide or self.places.is_named_stem(k) for k in stems)
        if is_lone and not self.network.ordered:
            return "it looks at single pixels, and the order of layers is not known"
        if width <= 3:
            return ""
        if stems and not any(k.is_wide for k in stems):
            return "it takes single pixels of features, as far as can be told"
        ends = [k for w in (3, 4, 8, 16) if width >= w for k in self.network.makers.get(w, ()) if k not in stems]
        is_latent = any(min(k.window[-2:], default=0) < LEAST_OF_IMAGES for k in stems)
        is_latent = is_latent and (width <= MOST_BESIDE or width % 4 == 0)
        if is_latent and any(k.is_wide and k.channels >= 4 * k.filters for k in ends):
            return "the network outputs an image or a latent: this input could be a latent too"
        if any(_takes_its_own_patches(self.network, k) for k in stems):
            return "the network outputs patches as it takes them: this input could be a latent too"
        if why := self._why_beside_blocks(width):
            return why
        states = {width - image for image in range(1, 5)}
        taken = {k.channels for k in self.network.kernels}  # gates are cut into pieces before any layer takes them
        gates = {number * state for number in (2, 3, 4) for state in states if state > 4} - taken
        gates |= {4 * state for state in range(5, width) if len(stems) == 1 and state in taken} - taken  # LSTMs' beside any bands
        if any(k.filters in gates for k in stems):
            return "it could take an image and a state of the network together"
        return ""

    def _why_beside_blocks(self, width: int) -> str:
        """Why a kernel could take blocks of pixels and something beside them: FFDNet takes 12 and the noise, and makes 12."""
        beside = {*range(1, 5), *([width // 5] if width % 5 == 0 else ())}
        blocks = {width - image for image in beside} & {*patch_embeddings.SPACE_TO_DEPTH}
        makers = [k for block in blocks for k in self.network.makers.get(block, ())]
        is_made = any(k.is_wide and not self._is_taken(k) for k in makers)
        return "it could take blocks of pixels and something beside them" if is_made else ""

    def _is_taken(self, maker: LayerWeight) -> bool:
        """Whether another layer takes what this one makes."""
        return any(k.channels == maker.filters for k in self.network.kernels if k is not maker)

    def _conv(self, kernel: LayerWeight) -> FirstConv:
        if self.channels is None and kernel.channels in patch_embeddings.SPACE_TO_DEPTH:
            return patch_embeddings.block_conv(kernel)
        layout = layout_of(kernel.tensor, self.network.layouts)
        if kernel.transposed and layout:
            layout = Layout(layout.replace("OI", "IO"))
        why = self.judged.verdicts[kernel.at].why or "only the image explains its channels"
        by = "shapes" if self.network.ordered else "names"
        is_open = self.channels is None and beyond.may_be_depthwise(self.network, kernel)
        return FirstConv(kernel.tensor, layout, kernel.channels, by, why, may_be_depthwise=is_open)

    def _found(self, convs: Sequence[FirstConv], rejected: tuple[Candidate, ...]) -> _Answer:
        channels = convs[0].in_channels
        vectors = patch_embeddings.input_vectors(self.network, channels, self.tensors)
        return Finding(tuple(convs), rejected, tuple(vectors)), False

    def _rejected(self, chosen: Sequence[Tensor], why: str) -> tuple[Candidate, ...]:
        """The narrow kernels that were not chosen, and the evidence against each."""
        others = [k for k in self.judged.narrow if not any(k.tensor is tensor for tensor in chosen)]
        others.sort(key=self._likeness)
        return tuple(Candidate(k.tensor.name, k.tensor.shape, self.judged.why(k) or why) for k in others[:MOST_CANDIDATES])

    def _refused(self, likely: Sequence[LayerWeight], why: str, why_not: str = "") -> _Answer:
        """No answer: the kernels in question, all others that are narrow, and patch embeddings that may be meant."""
        reasons = [(k, why) for k in sorted(likely, key=self._likeness)]
        reasons += [(k, f"{why}: a patch embedding") for k, _ in self.judged.patches if k not in likely]
        others = [k for k in self.judged.narrow if k not in likely and all(k is not patch for patch, _ in self.judged.patches)]
        reasons += [(k, self.judged.why(k) or why) for k in sorted(others, key=self._likeness)]
        named = {k.at for k, _ in reasons}
        reasons += [(k, why) for k, why in patch_embeddings.unlikely(self.network) if k.at not in named]
        candidates = tuple(Candidate(k.tensor.name, k.tensor.shape, reason) for k, reason in reasons[:MOST_CANDIDATES])
        return Finding((), candidates, why_not=why_not), bool(likely or self.judged.patches)

    def _likeness(self, kernel: LayerWeight) -> tuple[bool, bool, int]:
        """Sort key: likely stems first, for people who have to choose."""
        return (not self.places.is_named(kernel), kernel.channels != 3, kernel.at)


def _takes_its_own_patches(network: Network, stem: LayerWeight) -> bool:
    """Whether a Linear layer makes the patches that a stem takes out of as many channels as the stem makes, once or with their
    variance: DiT's proj_out_2 makes 2 · 4 · 2 · 2 = 32."""
    patch = stem.channels * prod(stem.window)
    ends = (k for size in (patch, 2 * patch) for k in network.makers.get(size, ()))
    return stem.is_wide and any(not k.window and k.channels == stem.filters and _PATCHES_OUT.search(k.key) for k in ends)

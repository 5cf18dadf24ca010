"""Stems whose channel axis holds pixels too: space-to-depth stems and Linear patch embeddings; and the vectors that the image
meets before any stem.

The order of channels and pixels in such an axis is in the model's code, not in the shape: YOLOv5's Focus and TResNet have the
colors vary fastest, networks with pixel_unshuffle the pixels; of Linear layers NaFlexViT and SigLIP 2 the colors, Llama 4 the
pixels. The wrong order is 24 to 110 % off, so the layout stays ambiguous until the user gives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import isqrt, prod

from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.evidence import STEM, Evidence, is_color_shift, is_no_kernel
from chkpt_channels.discovery.network import LayerWeight, Network

SPACE_TO_DEPTH = {12: 3, 27: 3, 48: 3, 16: 1}
"""Input widths of space-to-depth stems, and the channels of their images: 2 × 2 (YOLOv5 Focus), 3 × 3 and 4 × 4 pixels (TResNet)
of three colors, 4 × 4 of gray. 4 is not here: it is the width of RGBA and of latents."""

LEAST_EMBEDDING = 32
"""A Linear layer of fewer filters is a head or a gate."""
LEAST_PATCH_SIDE = 8
"""Smaller patches would make embeddings of many inner widths (12, 27, 48, 75); SigLIP has 14 (588 = 3 · 14²), ViT 16 (768)."""

_PATCHES = re.compile(r"patch_?(embed|proj|ify)|(^|[._])(vision|visual|image|img|pixel)\w*embed")
_POSITIONS = re.compile(r"pos_?embed|position")
_BEFORE_STEM = re.compile(r"mean|std|scal|shift|norm|bn|offset")
_AFTER_STEM = re.compile(r"add_|out|post|denorm|un_?norm|rescale|running|num_batches|target|label|latent|action|pred")
_BLOCK = (
    "the order of colors and pixels is ambiguous: --layout O(GI)HW if colors vary fastest, O(IG)HW if pixels do, OIHW for bands"
)
_PATCH = "the order of colors and pixels is ambiguous: --layout O(HWI) if colors vary fastest, O(IHW) if pixels do"


def stem(evidence: Evidence, free: Sequence[LayerWeight], tensors: Sequence[Tensor], channels: int | None) -> FirstConv | None:
    """A stem with a folded channel axis, where there is one and no other conv could see the image. `channels` are those of
    the image, where they are known."""
    blocks = _space_to_depth(evidence, free)
    if blocks and channels != blocks.channels and blocks.channels % (channels or 1) == 0:
        return block_stem(blocks, channels)
    patches = [] if free else linear_patches(evidence.network, tensors)
    if len(patches) != 1:
        return None
    kernel, found_by = patches[0]
    known = channels if channels and kernel.channels % channels == 0 else _colors(kernel.channels)
    return FirstConv(kernel.tensor, None, known, found_by, _PATCH)


def block_stem(kernel: LayerWeight, channels: int | None = None) -> FirstConv:
    """A stem that takes blocks of pixels, or as many bands: a 12-band convolution has the same shape as Focus."""
    return FirstConv(kernel.tensor, None, channels or SPACE_TO_DEPTH[kernel.channels], "shapes", _BLOCK)


def spellings(shape: tuple[int, ...]) -> str:
    """The layouts that a kernel of this shape may have, as a hint."""
    if len(shape) == 2:
        return "--layout O(HWI)   or   --layout O(IHW)"
    return "--layout O(GI)HW   or   --layout O(IG)HW   or   --layout OIHW" if len(shape) == 4 else "--layout LAYOUT"


def linear_patches(network: Network, tensors: Sequence[Tensor]) -> list[tuple[LayerWeight, str]]:
    """The Linear layers that take patches of an image, each with the evidence: "names" or "shapes"."""
    likely = [k for k in network.kernels if not k.window and k.filters >= LEAST_EMBEDDING and _colors(k.channels)]
    named = [k for k in likely if _PATCHES.search(k.key) and not any(isinstance(piece, int) for piece in k.pieces[:-1])]
    if named:
        return [(k, "names") for k in named]
    # without a telling name: the table of positions in the same module, or in the one around it, has the embedding's width
    tables = {(t.key.rpartition(".")[0], t.shape[-1]) for t in tensors if t.shape and _POSITIONS.search(t.key)}
    tables |= {(module.rpartition(".")[0], width) for module, width in tables}
    return [(k, "shapes") for k in likely if (_module(k), k.filters) in tables and _is_alone(network, k)]


def _space_to_depth(evidence: Evidence, free: Sequence[LayerWeight]) -> LayerWeight | None:
    """The first convolution where it takes a block of pixels and nothing else could see the image."""
    network = evidence.network
    convs = [k for k in network.convs if not is_no_kernel(k)]
    likely = convs[:1] if network.ordered else [k for k in convs if STEM.search(k.key)]
    wide = [k for k in likely if k.channels in SPACE_TO_DEPTH and set(k.window) != {1}]
    if len(wide) != 1 or any(k is not wide[0] for k in free):
        return None
    return None if any(k is not wide[0] for k in evidence.makers.get(wide[0].channels, ())) else wide[0]


def _module(kernel: LayerWeight) -> str:
    """The module that holds the layer; "-", which no module is called, for a layer at the root."""
    return kernel.key.rsplit(".", 2)[0] if kernel.key.count(".") > 1 else "-"


def _is_alone(network: Network, kernel: LayerWeight) -> bool:
    """Whether the layer's module holds no other layer."""
    near = network.kernels[max(0, kernel.at - 1) : kernel.at + 2]
    return not any(k is not kernel and k.key.startswith(_module(kernel) + ".") for k in near)


def _colors(width: int) -> int:
    """How many channels the patches of this width have: a square of pixels, of one frame or two; 0 for no patch."""
    for colors in (3, 1):
        pixels, rest = divmod(width, colors)
        if not rest and any(pixels % frames == 0 and _side(pixels // frames) >= LEAST_PATCH_SIDE for frames in (1, 2)):
            return colors
    return 0


def _side(pixels: int) -> int:
    """The side of a square of so many pixels; 0 where they are none."""
    side = isqrt(pixels)
    return side if side * side == pixels else 0


def input_vectors(network: Network, channels: int, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """The vectors of one value per channel that precede stems of so many channels: means, scales, shifts of the colors."""
    if channels == 1:  # every scalar of the file would be one
        return
    modules = {k.key.rpartition(".")[0] for k in network.kernels}
    shifts = {k.key.rpartition(".")[0] for k in network.kernels if is_color_shift(k) and not _AFTER_STEM.search(k.key)}
    for tensor in tensors:
        module = tensor.key.rpartition(".")[0]
        if module in shifts:
            yield tensor
        elif max(tensor.shape, default=0) == channels == prod(tensor.shape) and module not in modules:
            names = tensor.key.replace("running", "")
            if _BEFORE_STEM.search(names) and not _AFTER_STEM.search(names):
                yield tensor

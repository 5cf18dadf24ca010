"""Stems whose channel axis holds pixels too: space-to-depth stems and Linear patch embeddings; and the vectors that the image
meets before any stem.

The order of channels and pixels in such an axis is in the model's code, not in the shape: YOLOv5's Focus and TResNet have the
colors vary fastest, networks with pixel_unshuffle the pixels; of Linear layers NaFlexViT and SigLIP 2 the colors, Llama 4 the
pixels. The wrong order is 24 to 110 % off, so the layout stays ambiguous until the user gives it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import isqrt, prod

from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.law.network import LayerWeight, Network, is_color_shift
from chkpt_channels.discovery.law.places import ENDS, OTHER_SENSES, Places

SPACE_TO_DEPTH = {12: 3, 24: 6, 27: 3, 48: 3, 192: 3, 768: 3, 16: 1, 64: 1, 256: 1}
"""Input widths of space-to-depth stems, and the channels of their images: 2 × 2 (YOLOv5 Focus, of six bands too), 3 × 3, 4 × 4
(TResNet), 8 × 8 (T2I-Adapter) and 16 × 16 pixels of three colors, 4 × 4 and more of gray. 4 is that of RGBA and of latents."""
LARGEST_BLOCK = 48
"""Of the widths that a stem's name need not confirm: larger ones are usual inside networks."""
LEAST_EMBEDDING = 32
"""A Linear layer of fewer filters is a head or a gate."""
FEWEST_OF_CHAIN = 2
"""Linear layers that make a network of their own: MNIST's."""
LEAST_PATCH_SIDE = 8
"""Smaller patches would make embeddings of many inner widths (12, 27, 48, 75); SigLIP has 14 (588 = 3 · 14²), ViT 16 (768). Where
the name says that it is one, it may be smaller."""

_PATCHES = pattern(r"patch_?(embed|proj|ify|token|to_emb)|to_patch|region_enc|embeds[._]proj")
_IMAGES = pattern(r"(^|[._])(vision|visual|image|img|pixel)\w*embed(?!\w*_table)")
_POSITIONS = pattern(r"pos_?embed|position")
_BEFORE_STEM = pattern(r"mean|std|scal|shift|norm|bn|offset")
_AFTER_STEM = pattern(r"add_|out|post|denorm|un_?norm|rescale|running|num_batches|target|label|latent|action|pred")
_BLOCK = (
    "the order of colors and pixels is ambiguous: --layout O(GI)HW if colors vary fastest, O(IG)HW if pixels do, OIHW for bands"
)
_PATCH = "the order of colors and pixels is ambiguous: --layout O(HWI) if colors vary fastest, O(IHW) if pixels do"


def patch_conv(kernel: LayerWeight, channels: int | None, found_by: str = "names") -> FirstConv:
    """The first conv that takes flattened patches. `channels` are those of the image, where they are known."""
    known = channels if channels and kernel.channels % channels == 0 else colors(kernel.channels)
    return FirstConv(kernel.tensor, None, known, found_by, _PATCH)


def block_conv(kernel: LayerWeight, channels: int | None = None) -> FirstConv:
    """A stem that takes blocks of pixels, or as many bands: a 12-band convolution has the same shape as Focus."""
    return FirstConv(kernel.tensor, None, channels or SPACE_TO_DEPTH[kernel.channels], "shapes", _BLOCK)


def spellings(shape: tuple[int, ...]) -> str:
    """The layouts that a kernel of this shape may have, as a hint."""
    if len(shape) == 2:
        return "--layout O(HWI)   or   --layout O(IHW)"
    return "--layout O(GI)HW   or   --layout O(IG)HW   or   --layout OIHW" if len(shape) == 4 else "--layout LAYOUT"


def patches(places: Places, tensors: Sequence[Tensor]) -> list[tuple[LayerWeight, str]]:
    """The Linear layers, and 1×1 convolutions, that take patches of an image, each with the evidence: "names" or "shapes"."""
    network = places.network
    named = [k for k in network.kernels if k.is_point and k.filters >= LEAST_EMBEDDING and _is_named(k)]
    named = [k for k in named if colors(k.channels, least_side=2) and not _is_made(network, k)]
    if named := [k for k in named if _PATCHES.search(k.key)] or named:
        return [(k, "names" if _PATCHES.search(k.key) else "shapes") for k in named]
    if mlp := _unfolded(network):
        return [(mlp, "shapes")]
    # without a telling name: the table of positions in the same module, or in the one around it, has the embedding's width
    tables = {(t.key.rpartition(".")[0], t.shape[-1]) for t in tensors if t.shape and _POSITIONS.search(t.name)}
    tables |= {(module.rpartition(".")[0], width) for module, width in tables}
    likely = [k for k in network.kernels if not k.window and k.filters >= LEAST_EMBEDDING and colors(k.channels)]
    return [(k, "shapes") for k in likely if (_module(k), k.filters) in tables and _is_alone(network, k)]


def others(network: Network, found: Sequence[LayerWeight]) -> Iterator[LayerWeight]:
    """The layers that may take patches too, beside those that were found: a 1×1 convolution of that name in no order, whose width
    is made somewhere; and Linear layers of as many filters over a multiple of the width, which no layer makes."""
    widths, filters = {k.channels for k in found}, {k.filters for k in found}
    for kernel in network.kernels:
        if kernel in found or not kernel.is_point or kernel.filters < LEAST_EMBEDDING:
            continue
        if kernel.window:
            is_likely = not network.ordered and _is_named(kernel) and kernel.channels not in widths
            if is_likely and colors(kernel.channels, least_side=2) and _is_alone(network, kernel):
                yield kernel
        elif kernel.filters in filters and not _is_numbered(kernel) and any(_is_part(kernel.channels, width) for width in widths):
            makers = network.made_before(kernel, kernel.channels) if network.ordered else network.makers.get(kernel.channels)
            if not makers:
                yield kernel


def unlikely(network: Network) -> Iterator[tuple[LayerWeight, str]]:
    """What a refusal names too, with the reason: layers that are called patch embeddings, though their width is none of known
    patches (several shifted images), and convolutions over as many channels as blocks have, which no layer makes."""
    for kernel in network.kernels:
        if kernel.is_point and kernel.filters >= LEAST_EMBEDDING and _PATCHES.search(kernel.key):
            yield kernel, "is called a patch embedding"
        elif kernel.is_wide and kernel.channels in SPACE_TO_DEPTH and not network.makers.get(kernel.channels):
            yield kernel, f"no layer makes its {kernel.channels} channels"


def _is_part(channels: int, width: int) -> bool:
    """Whether one is a multiple of the other: several patches, or half of the frequencies of one."""
    return channels % width == 0 or (channels > 1 and width % channels == 0)


def space_to_depth(places: Places) -> LayerWeight | None:
    """The first convolution, where it takes a block of pixels: the first in the order, or the only one of its name."""
    network = places.network
    likely = network.convs[:1] if network.ordered else [k for k in network.convs if places.is_named_stem(k)]
    if not network.ordered and not any(k.channels in SPACE_TO_DEPTH and k.is_wide for k in likely):
        likely += [k for k in network.convs if places.may_be_named(k) and k not in likely]
    wide = [k for k in likely if k.channels in SPACE_TO_DEPTH and k.is_wide]
    if len(wide) != 1 or (not network.ordered and any(k.channels in (1, 3) and k.is_wide for k in likely)):
        return None
    block = wide[0]
    if block.channels > LARGEST_BLOCK and not (network.ordered and places.is_named_stem(block)):
        return None
    makers = [k for k in network.makers.get(block.channels, ()) if k is not block and not ENDS.search(k.key)]
    return None if [k for k in makers if not network.ordered or network.is_before(k, block)] else block


def _unfolded(network: Network) -> LayerWeight | None:
    """The first of Linear layers that each take what the one before makes, where it takes images and there is nothing else."""
    layers = network.kernels
    if len(layers) < FEWEST_OF_CHAIN or any(k.window or OTHER_SENSES.search(k.key) for k in layers):
        return None
    if not colors(layers[0].channels):
        return None
    return layers[0] if all(a.filters == b.channels for a, b in pairwise(layers)) else None


def _is_named(kernel: LayerWeight) -> bool:
    """Whether it is called a patch embedding, not in a numbered block, and not one of text."""
    match = _PATCHES.search(kernel.key) or (None if kernel.window else _IMAGES.search(kernel.key))
    if not match or OTHER_SENSES.search(kernel.key) or any(c.isdigit() for c in kernel.key[: match.start()]):
        return False
    return not kernel.window or kernel.layer[match.end() :].count(".") <= 1  # deeper there is a network of its own


def _is_numbered(kernel: LayerWeight) -> bool:
    """Whether it stands in a numbered module, as the layers of a transformer do."""
    return any(word[-1:].isdigit() for word in kernel.layer.split(".")[:-1]) or bool(ENDS.search(kernel.key))


def _is_made(network: Network, kernel: LayerWeight) -> bool:
    """Whether a layer of its part makes its width; of a 1×1 convolution in no order, whether any does."""
    if kernel.window and not network.ordered:
        return any(k is not kernel and k.channels != k.filters for k in network.makers.get(kernel.channels, ()))
    before = network.made_before(kernel, kernel.channels)
    return any(kernel.window or network.branch(k) == network.branch(kernel) for k in before)


def _module(kernel: LayerWeight) -> str:
    """The module that holds the layer; "-", which no module is called, for a layer at the root."""
    return kernel.key.rsplit(".", 2)[0] if kernel.key.count(".") > 1 else "-"


def _is_alone(network: Network, kernel: LayerWeight) -> bool:
    """Whether the layer's module holds no other layer."""
    near = network.kernels[max(0, kernel.at - 1) : kernel.at + 2]
    return not any(k is not kernel and k.key.startswith(_module(kernel) + ".") for k in near)


def colors(width: int, *, least_side: int = LEAST_PATCH_SIDE) -> int:
    """How many channels the patches of this width have: a square or a cube of pixels, of one frame or two; 0 for no patch."""
    return next((n for n in (3, 1) if width % n == 0 and is_square(width // n, least_side=least_side)), 0)


def is_square(pixels: int, *, least_side: int = 2) -> bool:
    """Whether so many pixels are a square or a cube, of one frame or of two."""
    return any(pixels % frames == 0 and _side(pixels // frames) >= least_side for frames in (1, 2))


def _side(pixels: int) -> int:
    """The side of a square or a cube of so many pixels; 0 where they are none."""
    side, edge = isqrt(pixels), round(pixels ** (1 / 3))
    return side if side * side == pixels else edge if edge**3 == pixels else 0


def input_vectors(network: Network, channels: int, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """The vectors of one value per channel that precede stems of so many channels: means, scales, shifts of the colors."""
    if channels == 1:  # every scalar of the file would be one
        return
    around = {t.key.rpartition(".")[0] for t in tensors if _is_vector(t, channels)}
    modules = {module for k in network.kernels if (module := k.key.rpartition(".")[0]) in around}
    shifts = {k.key.rpartition(".")[0] for k in network.kernels if is_color_shift(k) and not _AFTER_STEM.search(k.key)}
    for tensor in tensors:
        is_vector = _is_vector(tensor, channels)
        module = tensor.key.rpartition(".")[0] if is_vector or shifts else ""
        if module in shifts:
            yield tensor
        elif is_vector and module not in modules:
            names = tensor.key.replace("running", "")
            if _BEFORE_STEM.search(names) and not _AFTER_STEM.search(names):
                yield tensor


def _is_vector(tensor: Tensor, size: int) -> bool:
    """Whether it holds so many values along one axis."""
    return max(tensor.shape, default=0) == size == prod(tensor.shape)

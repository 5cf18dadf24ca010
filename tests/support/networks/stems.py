"""What reads the image first: from its channels to w, perhaps at half or a quarter of the size.

A stem that makes the image part of a wider kernel, or that a state dict cannot tell from another, says so to the draw.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from tests.support.networks.blocks import basic, bottleneck, rep
from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import BATCH, LayerNormFirst, StandardizedConv, act, conv, norm, twice_named, unit
from tests.support.networks.traps import Trap


def single(d: Draw, w: int, i: int | None = None) -> Net:
    names = d.pick(
        ("conv1", "bn1"),
        ("conv1", "bn1"),
        ("conv", "bn"),
        ("conv_stem", "bn1"),
        ("0", "1"),
        ("conv", "norm"),
        ("embedder.convolution", "embedder.normalization"),
    )
    window = d.weighted({3: 6, 7: 4, 5: 1, 4: 1, 1: 0.3, 11: 0.5, (3, 13): 0.3, (5, 7): 0.3, (3, 5): 0.3})
    if isinstance(window, tuple):
        d.reach(Trap.NOT_SQUARE)
        window = (*[1] * (d.dims - 2), *window)
    steps = [conv(d, d.channels if i is None else i, w, window, d.pick(1, 2, 2)), norm(d, w)]
    relu = act(d)
    if d.style.aliased:
        return twice_named(steps[0], steps[1], relu)
    return Net(lambda x: relu(steps[1](steps[0](x))), {**dict(zip(names, steps, strict=True)), "act1": relu})


def deep(d: Draw, w: int) -> Net:
    """Three kernels in a row: ResNet-C, MobileViT, SegNeXt."""
    half = max(w // 2, 4)
    steps = [unit(d, d.channels, half, 3, 2), unit(d, half, half), unit(d, half, w)]
    return row(steps, d.pick(None, ("conv1", "conv2", "conv3"), ("stem1", "stem2a", "stem2b")))


def parallel(d: Draw, w: int) -> Net:
    """Windows of several sizes over the image, side by side."""
    d.reach(Trap.PARALLEL_STEM)
    count = d.pick(2, 3, 4)
    each = max(w // count, 1)
    widths = [each] * (count - 1) + [w - each * (count - 1)]
    paths = [unit(d, d.channels, width, 2 * n + 1 if d.dims < 3 else 3) for n, width in enumerate(widths)]
    names = d.pick("branch", "conv", "scale", "path")
    return Net(lambda x: torch.cat([path(x) for path in paths], 1), {f"{names}{n + 1}": path for n, path in enumerate(paths)})


def reparameterized(d: Draw, w: int) -> Net:
    d.reach(Trap.PARALLEL_STEM)
    return rep(d, d.channels, w, 2)


def patchify(d: Draw, w: int) -> Net:
    """ConvNeXt's, Swin's and SegFormer's."""
    names = d.pick(("0", "1"), ("proj", "norm"), ("patch_embeddings", "layernorm"), ("projection", "norm"))
    patches, ln = conv(d, d.channels, w, *d.pick((4, 4), (2, 2), (7, 4), (7, 2)), bias=True), LayerNormFirst(w)
    return row([patches, ln], names)


def focus(d: Draw, w: int) -> Net:
    """Four slices, or the four subbands of a Haar wavelet, in front of an ordinary kernel: the color is the fastest."""
    d.reach(Trap.FOCUS)
    body, wavelet = unit(d, 4 * d.channels, w), d.often(0.3)

    def run(x: Tensor) -> Tensor:
        a, b, c, e = x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]
        parts = [a + b + c + e, a + b - c - e, a - b + c - e, a - b - c + e] if wavelet else [a, b, c, e]
        return body(torch.cat(parts, 1))

    d.layouts.append((next(m for m in body.modules() if isinstance(m, nn.Conv2d)), "O(GI)HW"))
    return Net(run, {d.pick("conv", "conv", "proj"): body})


def unshuffled(d: Draw, w: int) -> Net:
    """Color slowest."""
    d.reach(Trap.UNSHUFFLE)
    factor = d.pick(2, 2, 4)
    body = unit(d, factor**2 * d.channels, w, d.pick(3, 3, 1))
    d.layouts.append((next(m for m in body.modules() if isinstance(m, nn.Conv2d)), "O(IG)HW"))
    return Net(lambda x: body(F.pixel_unshuffle(x, factor)), {d.pick("1", "conv", "down_conv"): body})


def normalized(d: Draw, w: int) -> Net:
    """A norm over the colors in front of the first kernel."""
    d.reach(Trap.NORM_IN_FRONT)
    front, stem = BATCH[d.dims](d.channels), single(d, w)
    return Net(
        lambda x: stem(front(x)), {d.pick("bn_data", "bn0", "input_norm", "norm_in"): front, **dict(stem.named_children())}
    )


def with_constants(d: Draw, w: int) -> Net:
    """Mean and std of the image as buffers."""
    d.reach(Trap.CONSTANTS_IN_FRONT)
    ones = [1] * d.dims
    shape = d.pick((1, d.channels, *ones), (d.channels, *ones))
    mean, std, stem = torch.zeros(shape), torch.ones(shape), single(d, w)
    names = d.pick(
        ("mean", "std"),
        ("pixel_mean", "pixel_std"),
        ("scaling_layer.shift", "scaling_layer.scale"),
        ("_resnet_mean", "_resnet_std"),
    )
    return Net(lambda x: stem((x - mean) / std), {**dict(zip(names, (mean, std), strict=True)), **dict(stem.named_children())})


def mean_shifted(d: Draw, w: int) -> Net:
    """A frozen 1×1 kernel. It keeps making the channels of the image that the network was trained on."""
    d.reach(Trap.MEAN_SHIFT)
    shift, head = conv(d, d.channels, d.produced, 1, bias=True), conv(d, d.produced, w, bias=True)
    return row([shift, head], d.pick(("sub_mean", "head_conv"), ("sub_mean", "conv_first"), ("normalize", "body.0")))


def residual(d: Draw, w: int) -> Net:
    """No stem: the first residual block takes the image, and its shortcut projects it."""
    d.reach(Trap.RESIDUAL_PROJECTS)
    return d.pick(basic, basic, bottleneck)(d, d.channels, w, d.pick(1, 2))


def standardized(d: Draw, w: int) -> Net:
    d.reach(Trap.STANDARDIZED)
    kernel = StandardizedConv(d.channels, w, d.pick(3, 7), 2, d.often(0.5))
    return row([kernel, norm(d, w)], ("conv", "norm"))


def weight_normed(d: Draw, w: int) -> Net:
    d.reach(Trap.WEIGHT_NORM)
    stem = single(d, w)
    kernel = next(m for m in stem.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    if d.often(0.5):
        nn.utils.parametrizations.weight_norm(kernel)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(kernel)
    return stem


def spectral_normed(d: Draw, w: int) -> Net:
    """Right is the kernel, or a refusal: the norm of a mixed kernel is another."""
    d.reach(Trap.SPECTRAL_NORM)
    d.refusable = True
    stem = single(d, w)
    kernel = next(m for m in stem.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    nn.utils.parametrizations.spectral_norm(kernel) if d.often(0.5) else nn.utils.spectral_norm(kernel)
    return stem


def colored(d: Draw, w: int) -> Net:
    """Some bands are made the three colors that a pretrained backbone takes. Whether three colors that see their neighbours take
    the image's place or are added to it, no shape tells."""
    window = d.pick(1, 3)
    d.refusable |= window == d.channels == 3
    d.reach(Trap.INNER_THREE, Trap.COLOR_TRANSFORM if window == 1 else Trap.SQUARE_STEM)
    front, stem = conv(d, d.channels, 3, window, bias=True), single(d, w, 3)
    name = d.pick("adapter", "input_adapter", "conv_in", "inconv", "color_transform", "preprocess.0")
    return Net(lambda x: stem(front(x)), {name: front, **dict(stem.named_children())})


def depthwise_first(d: Draw, w: int) -> Net:
    """Nothing else is right than the depthwise kernel itself, or a refusal."""
    d.reach(Trap.DEPTHWISE_FIRST)
    c = d.channels
    kernel, point = conv(d, c, c, 3, d.pick(1, 2), c), conv(d, c, w, 1)
    d.behind.append(point)
    names = d.pick(("depthwise", "pointwise"), ("dw", "pw"), ("conv_dw", "conv_pw"))
    return row([kernel, norm(d, c), point, norm(d, w)], (names[0], "bn1", names[1], "bn2"))


STEMS = {
    single: 30, deep: 6, parallel: 3, reparameterized: 4, patchify: 6, normalized: 2, with_constants: 2, mean_shifted: 2,
    residual: 4, weight_normed: 2, spectral_normed: 1.5, colored: 3, depthwise_first: 1.5,
}  # fmt: skip
FLAT_STEMS = {focus: 3, unshuffled: 3, standardized: 2}
"""Of images with two axes alone."""


SHORTCUTS = {residual, reparameterized}
AS_WIDE = {6, 8, 12}
"""Widths that an image may have, or two: there a shortcut has no kernel, and the networks of two counts other names."""


def stem(d: Draw, w: int) -> Net:
    kinds = {**STEMS, **(FLAT_STEMS if d.dims == 2 else {})}
    return d.weighted({kind: weight for kind, weight in kinds.items() if w not in AS_WIDE or kind not in SHORTCUTS})(d, w)

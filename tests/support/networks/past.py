"""The image goes past the first kernel: concatenated further on, beside something else, or read again by another kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.layers import BATCH, conv, norm, pooled, resized, unit
from tests.support.networks.tasks import classes
from tests.support.networks.traps import Trap
from tests.support.networks.trunks import named, trunk


def beside_pool(d: Draw) -> Net:
    """ENet: the strided kernel makes 13 channels, the pooled image is the rest of 16."""
    d.reach(Trap.IMAGE_CONCATENATED)
    made = d.pick(13, 13, 29, 16, 32, 61)
    first, bn = conv(d, d.channels, made, 3, 2), BATCH[d.dims](made + d.channels)
    next_one, body = unit(d, made + d.channels, 32, d.pick(1, 3), 2), row([unit(d, 32, 32), unit(d, 32, 64, 3, 2)])
    last = conv(d, 64, classes(d), 1, bias=True)
    early = d.often(0.5)

    def run(x: Tensor) -> Tensor:
        y = first(x)
        y = torch.cat([y, resized(x, y)], 1)
        return last(body(next_one(bn(y) if early else y)))

    names = d.pick(
        ("initial_block.main_branch", "initial_block.batch_norm", "downsample1_0"),
        ("initial.conv", "initial.bn", "layer1"),
        ("stem.conv", "stem.bn", "stage1"),
    )
    parts = dict(zip(names, (first, bn if early else None, next_one), strict=True))
    return Net(run, {**parts, "regular.0": body, "classifier": last})


def at_the_end(d: Draw) -> Net:
    """Features at the size of the image, and the image itself, for the last kernels: matting, inpainting, depth."""
    d.reach(Trap.IMAGE_CONCATENATED)
    body = trunk(d, 2)
    w, mid = body.widths[0], d.pick(16, 32, 64)
    join, last = unit(d, w + d.channels, mid), conv(d, mid, classes(d), d.pick(1, 3), bias=True)

    def run(x: Tensor) -> Tensor:
        return last(join(torch.cat([resized(body(x)[0], x), x], 1)))

    return Net(
        run,
        {**named(d, body, "encoder", "", "backbone"), d.pick("decoder.conv", "refine.0", "conv_up", "up4"): join, "out": last},
    )


def pooled_copies(d: Draw) -> Net:
    """DABNet, CGNet: smaller copies of the image are concatenated at each stage."""
    d.reach(Trap.IMAGE_CONCATENATED)
    w = d.pick(16, 32)
    c = d.channels
    first = row([unit(d, c, w, 3, 2), unit(d, w, w)])
    widths = [w + c, 2 * w + c]
    norms = [norm(d, width) for width in widths]
    stages = [unit(d, widths[0], 2 * w, 3, 2), unit(d, widths[1], 4 * w, 3, 2)]
    last = conv(d, 4 * w, classes(d), 1, bias=True)

    def run(x: Tensor) -> Tensor:
        y = first(x)
        for bn, step in zip(norms, stages, strict=True):
            y = step(bn(torch.cat([y, resized(x, y)], 1)))
        return last(y)

    names = d.pick(("init_conv", "bn_prelu_{}", "downsample_{}"), ("level0", "b{}", "level{}"), ("stem", "norm{}", "stage{}"))
    parts = {name.format(n + 1): part for n in range(2) for name, part in ((names[1], norms[n]), (names[2], stages[n]))}
    return Net(run, {names[0]: first, **parts, "classifier.0": last})


def again(d: Draw) -> Net:
    """The image is read again further on, by a kernel of its own: BiSeNet, a pyramid, the last skip of a U-Net."""
    d.reach(Trap.LATER_STEM)
    body = trunk(d, 2)
    w, wide = body.widths[-1], d.pick(16, 32, 64)
    other = row([unit(d, d.channels, wide, d.pick(3, 3, 1)), unit(d, wide, wide)])
    fine = d.often(0.5)
    join, last = unit(d, w + wide, wide), conv(d, wide, classes(d), 1, bias=True)

    def run(x: Tensor) -> Tensor:
        y = body(x)[-1]
        z = other(x if fine else F.avg_pool2d(x, 2) if x.dim() == 4 else x[:, :, ::2])
        return last(join(torch.cat([resized(y, z), z], 1)))

    name = d.pick("conv_original_size", "detail_branch", "image_pyramid.0", "shallow_feat2.0", "level2_reinf", "skip0")
    side, trunks = {name: other}, named(d, body, "", "backbone", "encoder")
    return Net(
        run,
        {
            **(side | trunks if d.often(0.3) else trunks | side),
            d.pick("fusion", "up", "decoder"): join,
            d.pick("head", "conv_last"): last,
        },
    )


def recurrent_cells(d: Draw) -> Net:
    """A ConvLSTM: its kernel takes the image and the state at once."""
    d.reach(Trap.IMAGE_CONCATENATED)
    hidden = d.pick(16, 32, 64)
    cells = [conv(d, d.channels + hidden, 4 * hidden, bias=True), conv(d, 2 * hidden, 4 * hidden, bias=True)]
    last = conv(d, hidden, classes(d), 1, bias=True)

    def run(x: Tensor) -> Tensor:
        for cell in cells:
            state = x[:, :1].expand(-1, hidden, *[-1] * d.dims)
            a, b, _, e = cell(torch.cat([x, state], 1)).chunk(4, 1)
            x = a * b * e
        return last(x)

    name = d.pick("convlstm.cell_list.{}.conv", "cells.{}.Gates", "encoder.rnn{}.conv")
    return Net(run, {**{name.format(n): cell for n, cell in enumerate(cells)}, "out": last})


def with_noise(d: Draw) -> Net:
    """FFDNet: a map of the noise beside the unshuffled colors. Or a map of ones, coordinates, a mask: there nothing in a state
    dict says that the first kernel is not that of an image with more channels, and to name it is right too."""
    d.reach(Trap.NOISE_BESIDE)
    folded, w = d.dims == 2 and d.often(0.5), d.pick(32, 64, 96)
    more = d.pick(d.channels, 4) if folded else d.pick(1, 2)
    first = conv(d, (4 * d.channels if folded else d.channels) + more, w, bias=True)
    middle, last = [unit(d, w, w) for _ in range(d.number(1, 4))], conv(d, w, 4 * d.produced if folded else classes(d), bias=True)
    if folded:
        d.refuse = True
    else:
        d.beside.append(first)

    def run(x: Tensor) -> Tensor:
        y = F.pixel_unshuffle(x, 2) if folded else x
        y = first(torch.cat([y, y[:, :1].expand(-1, more, *[-1] * d.dims)], 1))
        for step in middle:
            y = step(F.relu(y))
        return F.pixel_shuffle(last(y), 2) if folded else pooled(last(y))

    steps: list[nn.Module] = [first, *middle, last]
    return Net(
        run,
        {f"{d.pick('model', 'intermediate_dncnn.itermediate_dncnn', 'layers')}.{2 * n}": step for n, step in enumerate(steps)},
    )

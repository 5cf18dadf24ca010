"""Trunks: a stem and stages, whose forward gives the features of each stage, from the finest to the coarsest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from tests.support.networks.blocks import BLOCKS
from tests.support.networks.draw import Draw, Net, row
from tests.support.networks.stems import stem as drawn_stem
from tests.support.networks.traps import Trap

PLANS = {
    ("", "layer{}"): 6,
    ("stem", "stages.{}"): 3,
    ("features.0", "features.{}"): 3,
    ("stem", "layer{}"): 2,
    ("patch_embed", "layers.{}"): 1,
    ("", "blocks.{}"): 2,
    ("embedder", "encoder.stages.{}.layers"): 1,
    ("downsample_layers.0", "stages.{}"): 1,
    ("encoder.0", "encoder.{}"): 1,
    ("layer0", "layer{}"): 1,
    ("stage0", "stage{}"): 1,
    ("", "dense.denseblock{}"): 0.5,
    ("inc", "down{}"): 1,
    ("Conv2d_1a_3x3", "Mixed_{}"): 0.5,
    ("patch_embed1", "block{}"): 0.5,
    ("enc0", "enc{}"): 0.5,
    ("conv0", "res{}"): 0.5,
    ("backbone.conv_first", "backbone.body.{}"): 0.5,
}
"""Where the stem is (at the root where empty), and each stage."""
FROM_ZERO = ("stages.{}", "layers.{}", "blocks.{}", "encoder.stages.{}.layers", "backbone.body.{}")


class Trunk(Net):
    """Gives a list of features; `widths` are theirs."""

    widths: tuple[int, ...]


def stage(d: Draw, block: Callable[..., nn.Module], i: int, o: int, s: int, repeats: int) -> nn.Module:
    return row([block(d, i if n == 0 else o, o, s if n == 0 else 1) for n in range(repeats)])


def children_of(module: nn.Module) -> dict[str, nn.Module | Tensor]:
    """What is registered in a module itself, to be registered elsewhere."""
    held = [module.named_children(), module.named_parameters(recurse=False), module.named_buffers(recurse=False)]
    return {name: child for group in held for name, child in group}


def drawn_widths(d: Draw, w: int, count: int) -> list[int]:
    """Doubled, grown by half, as in MobileNets, or by some channels a stage, as in PyramidNets."""
    kind = d.weighted({"double": 6, "half": 2, "mobile": 1.5, "some": 1})
    if kind == "some":
        d.reach(Trap.GROWN)
        step = d.pick(1, 3, 4, 8, 12, 21)
        return [w + step * n for n in range(count + 1)]
    if kind == "mobile":
        return [w, *d.pick((16, 24, 40, 80), (16, 24, 32, 64), (24, 48, 96, 192), (24, 40, 64, 128))[:count]]
    return [w] + [max(int(w * (2 if kind == "double" else 1.5) ** n) // 8 * 8, 8) for n in range(count)]


def softened(d: Draw, w: int, step: nn.Module) -> Net:
    """Behind a blur with a fixed kernel."""
    d.reach(Trap.BLUR)
    kernel = torch.ones(w, 1, *[3] * d.dims)
    blur = {2: F.conv2d, 3: F.conv3d}[d.dims]
    names = d.pick(("blur.filt", "conv"), ("0.filt", "1"), ("pool.kernel", "blocks"))
    return Net(lambda x: step(blur(x, kernel, padding=1, groups=w)), dict(zip(names, (kernel, step), strict=True)))


def trunk(d: Draw, stages: int | None = None, make: Callable[[Draw, int], Net] = drawn_stem) -> Trunk:
    """One kind of block in all stages, or two; the width doubles, or grows as in MobileNets."""
    w = d.style.wide
    plan, first = d.weighted(PLANS), make(d, w)
    blocks = [d.weighted(BLOCKS)] * 2 if d.often(0.7) else [d.weighted(BLOCKS), d.weighted(BLOCKS)]
    count = stages or d.pick(1, 2, 3, 3, 4)
    widths = drawn_widths(d, w, count)
    steps, blurred = [], d.often(0.06)
    for n in range(count):
        stride = 1 if n == 0 and d.often(0.5) else 2 if n < 3 else 1
        steps.append(stage(d, blocks[n >= count // 2], widths[n], widths[n + 1], stride, d.pick(1, 1, 2, 2, 3)))
    if blurred:
        steps[-1] = softened(d, widths[-2], steps[-1])

    def run(x: Tensor) -> list[Tensor]:
        x = first(x)
        features = [x]
        for step in steps:
            x = step(x)
            features.append(x)
        return features

    place, pattern = plan
    children = {place: first} if place else children_of(first)
    start = 0 if pattern in FROM_ZERO else 1
    net = Trunk(run, {**children, **{pattern.format(n + start): step for n, step in enumerate(steps)}})
    net.widths = tuple(widths)
    return net


def named(d: Draw, net: nn.Module, *names: str) -> dict[str, nn.Module | Tensor]:
    """Under one of the names, or at the root where the chosen one is empty."""
    name = d.pick(*names)
    return {name: net} if name else children_of(net)

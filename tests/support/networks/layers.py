"""Convolutions, norms and activations in the style of a draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from tests.support.networks.draw import Draw, Net
from tests.support.networks.traps import Trap

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
POOL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
ACTS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "leaky": nn.LeakyReLU, "prelu": nn.PReLU}

Window = int | tuple[int, ...]


def conv(d: Draw, i: int, o: int, k: Window = 3, s: Window = 1, g: int = 1, bias: bool | None = None, p: Window | None = None):
    """Padded to keep the size. Without a bias where a norm follows, but for authors who always have one."""
    around = p if p is not None else tuple(n // 2 for n in k) if isinstance(k, tuple) else k // 2
    with_bias = d.style.bias or d.style.norm == "none" if bias is None else bias
    return CONV[d.dims](i, o, k, s, around, groups=g, bias=with_bias)


def up(d: Draw, i: int, o: int, k: int = 2) -> nn.Module:
    """Twice the size, by a transposed convolution."""
    return TRANSPOSED[d.dims](i, o, k, 2, (k - 2) // 2)


def norm(d: Draw, c: int) -> nn.Module:
    kind = d.style.norm
    if kind == "group":
        return nn.GroupNorm(max(n for n in (1, 2, 4, 8, 16, 32) if c % n == 0), c)
    if kind == "instance":
        return INSTANCE[d.dims](c, affine=True)
    return nn.Identity() if kind == "none" else BATCH[d.dims](c)


def act(d: Draw) -> nn.Module:
    return ACTS[d.style.act]()


def unit(d: Draw, i: int, o: int, k: Window = 3, s: Window = 1, g: int = 1) -> Net:
    """Convolution, norm, activation."""
    steps = [conv(d, i, o, k, s, g), norm(d, o), act(d)]
    if d.style.aliased:
        d.reach(Trap.ALIASES)
        return twice_named(*steps)
    return Net(lambda x: steps[2](steps[1](steps[0](x))), dict(zip(d.style.unit or ("0", "1", "2"), steps, strict=True)))


def twice_named(kernel: nn.Module, after: nn.Module, nonlin: nn.Module) -> Net:
    """A unit whose parts are attributes, and in a list of all."""
    names = ("conv", "norm", "nonlin", "all_modules.0", "all_modules.1", "all_modules.2")
    return Net(lambda x: nonlin(after(kernel(x))), dict(zip(names, [kernel, after, nonlin] * 2, strict=True)))


class LayerNormFirst(nn.Module):
    """A LayerNorm over the channels of [N, C, ...]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), (len(self.weight),), self.weight, self.bias).movedim(-1, 1)


class StandardizedConv(nn.Conv2d):
    """A kernel that is standardized when it is used, with a gain a filter: NFNet."""

    def __init__(self, i: int, o: int, k: int, s: int, gain: bool) -> None:
        super().__init__(i, o, k, s, k // 2)
        self.gain = nn.Parameter(torch.ones(o, 1, 1, 1)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.weight.mean((1, 2, 3), keepdim=True), self.weight.var((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (var + 1e-5).sqrt() * (1 if self.gain is None else self.gain)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def pooled(x: Tensor) -> Tensor:
    """[N, C] of [N, C, ...]."""
    return x.flatten(2).mean(-1)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """To the size of another."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()]
    return F.interpolate(x, like.shape[2:], mode=mode)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))

"""From a seed to a network: which family, of how many axes, and what is around it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it
from torch.overrides import TorchFunctionMode

from tests.support.networks import beside, images, maps, past, patches, several, tasks
from tests.support.networks.around import wrapped
from tests.support.networks.draw import Draw, Net
from tests.support.networks.traps import Trap

ANY = {
    tasks.classifier: 16, tasks.tutorial: 4, tasks.u_net: 10, tasks.segmenter: 4, tasks.detector: 3, tasks.recurrent: 1,
    images.autoencoder: 3, images.plain_autoencoder: 2, images.denoiser: 2, images.gan: 2, images.conditional_gan: 1,
    images.translator: 2, images.in_a_row: 2, images.diffusion: 2, images.style_vector: 1,
    several.two_encoders: 4, several.localized: 1, several.apart: 2, several.other_image: 1.5, several.with_sound: 1.5,
    several.poses: 1, several.momentum: 2,
    past.beside_pool: 2, past.at_the_end: 1.5, past.again: 2, past.pooled_copies: 1.5, past.with_noise: 1.5,
    past.recurrent_cells: 1, beside.with_table: 1.5, beside.with_points: 1, beside.with_flow: 1, beside.prompted: 1,
    maps.side_outputs: 1.5, maps.heatmaps: 1.5, maps.disparity: 1.5, maps.gated: 1, maps.nested: 1,
}  # fmt: skip
"""Families of images with two axes or three."""
FLAT = {
    images.super_resolution: 4, images.control: 1.5, patches.vision_transformer: 6, patches.linear_patches: 4,
    patches.two_scales: 1.5, patches.two_towers: 2, patches.masked: 2, patches.mixer: 1, patches.unfolded: 1.5, patches.detr: 1.5,
}  # fmt: skip
ACTIVATIONS = {F.relu, torch.relu, F.silu, F.gelu, F.leaky_relu, F.prelu, torch.sigmoid, torch.Tensor.sigmoid}
PAIRED = {torch.Tensor.add, torch.Tensor.mul, torch.Tensor.sub}
NORMS = {F.batch_norm, F.instance_norm, F.group_norm}
DEEP = {several.pathways: 5, patches.unetr: 5, patches.video_transformer: 3}
"""Of images with two axes alone, and with three."""


def build(seed: int, channels: int, produced: int | None = None) -> tuple[Net, Draw]:
    """The network of a seed for images of so many channels, on the meta device and in evaluation mode, and what its draw noted.
    An image that it makes has `produced` channels, as many where None."""
    d = Draw(seed, channels, channels if produced is None else produced)
    d.dims = d.weighted({2: 8.5, 3: 1.5})
    family = d.weighted({**ANY, **(FLAT if d.dims == 2 else DEEP)})
    if d.dims == 3:
        d.reach(Trap.CONV3D)
        d.style = d.style._replace(wide=min(d.style.wide, 32))
    with torch.device("meta"):
        net = wrapped(d, family)
    net.inputs = net.inputs or (d.image(),)
    return net.eval(), d


class ShapesOnly(TorchFunctionMode):
    """Norms, activations and resizing by their shapes alone: on the meta device they are most of the time of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[int] = set()

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        self.used |= {id(value) for value in (*arguments, *keywords.values()) if isinstance(value, nn.Parameter)}
        x = arguments[0] if arguments else None
        if function in ACTIVATIONS or (function in PAIRED and x.shape == getattr(arguments[1], "shape", None)):
            return x
        if function in NORMS:
            vectors = [v for v in (*arguments[1:], *keywords.values()) if isinstance(v, torch.Tensor)]
            assert all(len(vector) == x.shape[1] for vector in vectors)
            return x
        if function is F.layer_norm:
            assert x.shape[-1] == arguments[1][-1]
            return x
        if function is F.interpolate:
            return x.new_empty(*x.shape[:2], *keywords["size"])
        return function(*arguments, **keywords)


@torch.no_grad()
def run(net: Net) -> None:
    """Its forward, on the meta device. Raises what torch raises where shapes do not fit; a parameter that is used is registered,
    and a kernel that is registered is used."""
    with (mode := ShapesOnly()):
        net(*[torch.empty(shape, device="meta") for shape in net.inputs])
    registered = {id(parameter): name for name, parameter in net.named_parameters()}
    assert mode.used <= registered.keys(), "a parameter has no name"
    kernels = {id(weight) for module in owners(net).values() for weight in module.parameters() if weight.dim() > 1}
    assert kernels <= mode.used, [registered[kernel] for kernel in kernels - mode.used]


def owners(net: nn.Module) -> dict[str, nn.Module]:
    """The convolution or Linear of each kernel, under every name that it has."""
    kinds = nn.Linear | nn.modules.conv._ConvNd
    return {name: module for name, module in net.named_modules(remove_duplicate=False) if isinstance(module, kinds)}

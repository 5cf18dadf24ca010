"""Networks of medical imaging, as MONAI, nnU-Net and segmentation-models build them, where these are installed.

Their first blocks add a projection of the image to a branch of it, patch embeddings stand beside convolutions, and a decoder
knows its encoder by a second name. A conversion loads into the network of the wanted channels and answers as the old one does;
or it is refused with every kernel that would change, and does so with --like.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from chkpt_channels import AmbiguousError, convert, inspect, verify
from tests.frameworks.oracle import matrix, relative_error

TOLERANCE = 1e-4
"""Of the largest output: what instance normalization of a few pixels makes of one rounding."""


class Case(NamedTuple):
    """How a network of `channels` and `classes` is built, and the size of its image."""

    build: Callable[[int, int], nn.Module]
    size: tuple[int, ...]


def _monai(name: str, **arguments: object) -> Callable[[int, int], nn.Module]:
    def build(channels: int, classes: int) -> nn.Module:
        nets = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
        return getattr(nets, name)(in_channels=channels, out_channels=classes, **arguments)

    return build


def _nnunet(name: str, **blocks: object) -> Callable[[int, int], nn.Module]:
    def build(channels: int, classes: int) -> nn.Module:
        name_of_module = "dynamic_network_architectures.architectures.unet"
        unet = pytest.importorskip(name_of_module, reason="nnU-Net's networks are not installed")
        layers = {"conv_op": nn.Conv3d, "conv_bias": True, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
        layers |= {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True}}
        sizes = {"n_stages": 3, "features_per_stage": (16, 32, 64), "kernel_sizes": 3, "strides": (1, 2, 2)}
        return getattr(unet, name)(channels, num_classes=classes, n_conv_per_stage_decoder=(1, 1), **layers, **sizes, **blocks)

    return build


def _smp_unet(channels: int, classes: int) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models is not installed")
    return smp.Unet("resnet18", encoder_weights=None, in_channels=channels, classes=classes)


_UNET = {"channels": (16, 32, 64), "strides": (2, 2), "num_res_units": 2}
_DYNUNET = {"spatial_dims": 3, "kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2)}
_DYNUNET |= {"filters": (16, 32, 64)}
_UNETR = {"img_size": (32, 16, 16), "feature_size": 16, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
CASES: Mapping[str, Case] = {
    "SwinUNETR": Case(_monai("SwinUNETR", feature_size=12, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2)), (64, 32, 32)),
    "UNETR": Case(_monai("UNETR", **_UNETR), (32, 16, 16)),
    "UNet of residual units": Case(_monai("UNet", spatial_dims=3, norm="BATCH", **_UNET), (16, 16, 16)),
    "UNet of residual units in 2D": Case(_monai("UNet", spatial_dims=2, **_UNET), (32, 32)),
    "DynUNet": Case(_monai("DynUNet", **_DYNUNET), (16, 16, 16)),
    "DynUNet of residual blocks": Case(_monai("DynUNet", res_block=True, **_DYNUNET), (16, 16, 16)),
    "SegResNet": Case(_monai("SegResNet", init_filters=16, blocks_down=(1, 1, 1), blocks_up=(1, 1)), (16, 16, 16)),
    "PlainConvUNet": Case(_nnunet("PlainConvUNet", n_conv_per_stage=(2, 2, 2)), (16, 16, 16)),
    "ResidualEncoderUNet": Case(_nnunet("ResidualEncoderUNet", n_blocks_per_stage=(1, 1, 1)), (16, 16, 16)),
    "Unet of segmentation-models": Case(_smp_unet, (64, 64)),
}


class Direction(NamedTuple):
    """From `old` to `new` channels by `method`."""

    old: int
    new: int
    method: str = "auto"

    def __str__(self) -> str:
        return f"{self.old} to {self.new}, {self.method}"

    def as_old(self, image: Tensor) -> Tensor:
        """What the old network must see to answer as the new one does to `image`."""
        kept = torch.eye(self.old, self.new) if self.method == "zero" else torch.tensor(matrix(self.old, self.new))
        return torch.einsum("ij,nj...->ni...", kept, image)


DIRECTIONS = (Direction(3, 1), Direction(1, 3), Direction(4, 1), Direction(3, 4, "zero"), Direction(3, 4, "repeat"))


class Pair(NamedTuple):
    """A network, one of the wanted channels with other weights, and the kernels that differ between them."""

    old: nn.Module
    new: nn.Module
    stems: frozenset[str]


@functools.lru_cache(maxsize=1)
def pair(name: str, direction: Direction, classes: int) -> Pair:
    torch.manual_seed(0)
    old, new = (lived_in(CASES[name].build(channels, classes)) for channels in (direction.old, direction.new))
    before, after = old.state_dict(), new.state_dict()
    assert list(before) == list(after)
    return Pair(old, new, frozenset(key for key, tensor in before.items() if tensor.shape != after[key].shape))


def lived_in(net: nn.Module) -> nn.Module:
    """Vectors and statistics that are no longer those of the start."""
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor), alpha=0.2)
    return net.eval()


class Form(NamedTuple):
    """A container: how a network is saved, and how what is saved becomes a network again, that of the wanted channels."""

    suffix: str
    save: Callable[[nn.Module, Path], None]
    load: Callable[[nn.Module, Path], nn.Module]


def _load_state_dict(net: nn.Module, path: Path) -> nn.Module:
    net.load_state_dict(torch.load(path))
    return net


def _load_safetensors(net: nn.Module, path: Path) -> nn.Module:
    assert load_model(net, path) == (set(), [])
    return net


STATE_DICT = Form("pth", lambda net, path: torch.save(net.state_dict(), path), _load_state_dict)
FORMS: Mapping[str, Form] = {
    "safetensors": Form("safetensors", lambda net, path: save_model(net, str(path)), _load_safetensors),
    "module": Form("pt", torch.save, lambda net, path: torch.load(path, weights_only=False)),
}


def converted(source: Path, pair: Pair, direction: Direction) -> tuple[Path, bool]:
    """The new file, and whether it took --like, after a refusal that names every kernel."""
    target, to = source.with_stem("new"), direction.new
    refusal = None
    try:
        report = convert(source, target, to, method=direction.method)
    except AmbiguousError as error:
        refusal = error
    if refusal is None:
        assert verify(source, target, to, method=direction.method).ok
        assert not {w.code for w in report.warnings} - {"foreign_globals", "hyper_parameters"}
        return target, False
    assert not target.exists()
    present = {tensor.name for tensor in inspect(source).tensors}  # safetensors keeps one of the names of a tensor
    assert pair.stems & present <= {candidate.key for candidate in refusal.candidates}
    assert "--like LIKE.pth" in refusal.hint
    like = source.with_name("LIKE.pth")
    torch.save(pair.new.state_dict(), like)
    convert(source, target, like=like, method=direction.method)
    return target, True


@torch.no_grad()
def check(name: str, form: Form, direction: Direction, classes: int, folder: Path) -> bool:
    """Whether it was right without --like; with it, or without, it is right."""
    networks, source = pair(name, direction, classes), folder / f"old.{form.suffix}"
    form.save(networks.old, source)
    target, by_like = converted(source, networks, direction)
    new = form.load(networks.new, target).eval()
    image = torch.rand(1, direction.new, *CASES[name].size)
    assert relative_error(new(image), networks.old(direction.as_old(image))) < TOLERANCE
    return not by_like


REFUSED = {
    *(("DynUNet", 3), ("DynUNet", 4), ("DynUNet of residual blocks", 3), ("DynUNet of residual blocks", 4)),
    *(("UNet of residual units", 4), ("UNet of residual units in 2D", 4), ("Unet of segmentation-models", 4)),
}
"""The networks of as many classes as channels, and their number, that may be refused without --like."""


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_as_many_classes_as_channels(name: str, direction: Direction, tmp_path: Path):
    """The last layer then has the width of the image too."""
    assert check(name, STATE_DICT, direction, direction.old, tmp_path) or (name, direction.old) in REFUSED


UNPICKLED = ("ResidualEncoderUNet", "module")
"""Its blocks hold lambdas, which torch.save refuses."""


@pytest.mark.parametrize("direction", [Direction(3, 1), Direction(1, 3)], ids=str)
@pytest.mark.parametrize(("name", "form"), [both for both in product(CASES, FORMS) if both != UNPICKLED])
def test_other_containers(name: str, form: str, direction: Direction, tmp_path: Path):
    check(name, FORMS[form], direction, 2, tmp_path)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_every_kernel_counts(name: str):
    """The comparison above would show each of them that keeps a wrong value."""
    networks = pair(name, DIRECTIONS[0], 3)
    image = torch.rand(1, 3, *CASES[name].size)
    expected = networks.old(image)
    weights = networks.old.state_dict()
    for key in networks.stems:
        kept = weights[key].clone()
        weights[key][:, 0].mul_(0.5)
        assert relative_error(networks.old(image), expected) > 10 * TOLERANCE, key
        weights[key].copy_(kept)

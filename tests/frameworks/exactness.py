"""How far a gray network is from the RGB one that it was made of, on images that went through each one's own pipeline.

The RGB network sees the gray image stacked and normalized by three means and stds; the gray one sees it normalized by what
the conversion says. Networks are transformers' own, with random weights of a trained network's scale, and batch statistics
that were collected on images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from chkpt_channels import Report, convert
from chkpt_channels.transform.mixing.normalization import NORMS

MEAN, STD = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in NORMS["imagenet"][:2])
SIDE = 224


class Built(NamedTuple):
    """A network for so many channels, and where its stem stands; `halo` is the width of what zero padding reaches, `side` that of
    the smallest images that show what larger ones do."""

    make: Callable[[int], nn.Module]
    stem: str
    halo: int
    side: int


def resnet50(channels: int) -> nn.Module:
    return ResNetForImageClassification(ResNetConfig(num_channels=channels, num_labels=1000))


def vit(channels: int) -> nn.Module:
    sizes = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    return ViTForImageClassification(ViTConfig(num_channels=channels, image_size=SIDE, num_labels=1000, **sizes))


NETWORKS = {
    "ResNet-50": Built(resnet50, "resnet.embedder.embedder", 2, 128),
    "ViT": Built(vit, "vit.embeddings.patch_embeddings.projection", 0, SIDE),
}


def images(count: int, channels: int = 1, side: int = SIDE) -> Tensor:
    """Smooth images in 0..1, as photographs are."""
    coarse = torch.rand(count, channels, 8, 8, dtype=torch.float64)
    return nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)


def trained(built: Built) -> nn.Module:
    """An RGB network: kernels of He's scale, scales around one, and around 0.3 where a residual branch ends, as in trained
    networks; statistics of normalized images."""
    torch.manual_seed(0)
    model = built.make(3)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            ends = name.endswith("layer.2.normalization")
            nn.init.uniform_(module.weight, 0.1 if ends else 0.5, 0.5 if ends else 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None
        elif isinstance(module, nn.Linear) and built.halo == 0:
            nn.init.normal_(module.weight, std=0.05)
    if built.halo:
        model.train()
        with torch.no_grad():
            model(((images(8, 3, 128) - MEAN) / STD).float())
    return model.double().eval()


class Outputs(NamedTuple):
    stem: Tensor
    logits: Tensor


@torch.no_grad()
def answers(model: nn.Module, built: Built, image: Tensor) -> Outputs:
    kept: list[Tensor] = []
    hook = model.get_submodule(built.stem).register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(image).logits
    hook.remove()
    return Outputs(kept[0], logits)


class Errors(NamedTuple):
    """The largest differences, as shares of the largest values: of the stem inside and at the border, and of the logits."""

    interior: float
    border: float
    logits: float

    @classmethod
    def of(cls, found: Outputs, expected: Outputs, halo: int) -> "Errors":
        difference, largest = (found.stem - expected.stem).abs().double(), expected.stem.abs().max().item()
        inside = torch.zeros_like(difference, dtype=torch.bool)
        inside[..., halo : difference.shape[-2] - halo, halo : difference.shape[-1] - halo] = True
        border = difference[~inside].max().item() / largest if halo else 0.0
        logits = (found.logits - expected.logits).abs().max().item() / expected.logits.abs().max().item()
        return cls(difference[inside].max().item() / largest, border, logits)


def converted(built: Built, model: nn.Module, folder: Path, dtype: torch.dtype, **words) -> tuple[nn.Module, Report]:
    """The network that a conversion of this one's file makes, loaded strictly."""
    before, after = folder / "before.safetensors", folder / "after.safetensors"
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}, before, {"format": "pt"})
    report = convert(before, after, force=True, **words)
    new = built.make(report.in_channels[1]).to(dtype).eval()
    new.load_state_dict(load_file(after), strict=True)
    return new, report


def expected_of(built: Built, model: nn.Module, raw: Tensor, dtype: torch.dtype) -> Outputs:
    return answers(model.to(dtype), built, ((raw.expand(-1, 3, -1, -1) - MEAN) / STD).to(dtype))


def fed(raw: Tensor, report: Report) -> Tensor:
    """Raw images in 0..1 as the report says that they are to be fed."""
    mean, std, top = report.pipeline
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (mean, std))
    return top * (raw - mean) / std

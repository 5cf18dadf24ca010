"""Weight-standardized stems: NFNet's gain is recomputed exactly, BiT's shrink is told of; on timm's own where that is there."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chkpt_channels import UnsupportedError, convert, verify


class ScaledStdConv(nn.Conv2d):
    """A convolution by gain · γ · (W - μ) / √(σ² + eps) / √n."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__(channels, filters, 3, 2, 1)
        self.gain = nn.Parameter(torch.rand(filters, 1, 1, 1) + 0.5)

    def forward(self, image: Tensor) -> Tensor:
        axes = (1, 2, 3)
        variance, mean = torch.var_mean(self.weight, dim=axes, keepdim=True, correction=0)
        scale = 1.7881293 / self.weight[0].numel() ** 0.5
        return self._conv_forward(image, self.gain * scale * (self.weight - mean) / (variance + 1e-5).sqrt(), self.bias)


def nfnet(channels: int) -> nn.Module:
    layers = {"conv1": ScaledStdConv(channels, 16), "act": nn.SiLU(), "conv2": ScaledStdConv(16, 32)}
    model = nn.ModuleDict({"stem": nn.Sequential()})
    for name, layer in layers.items():
        model["stem"].add_module(name, layer)
    return model


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("scale", [1.0, 0.01], ids=["", "small weights, where eps counts"])
@torch.no_grad()
def test_sum_is_exact(scale: float, tmp_path: Path):
    old, new = nfnet(3), nfnet(1)
    old["stem"].conv1.weight *= scale
    before, after = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(old.state_dict(), before, {"format": "pt"})
    report = convert(before, after)
    assert set(report.changed) == {"stem.conv1.weight", "stem.conv1.gain"}
    assert verify(before, after).ok
    new.load_state_dict(load_file(after))
    image = torch.randn(2, 1, 32, 32)
    assert error(new["stem"](image), old["stem"](image.expand(-1, 3, -1, -1))) < 1e-5


@pytest.mark.parametrize(
    ("to", "words"), [(1, {"method": "luma"}), (4, {}), (2, {"select": "R,G"}), (1, {"norm": "imagenet"})], ids=str
)
def test_what_is_not_exact_is_refused(to: int, words: dict, tmp_path: Path):
    save_file(nfnet(3).state_dict(), tmp_path / "a.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedError, match="weight-standardized"):
        convert(tmp_path / "a.safetensors", to=to, **words)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@torch.no_grad()
def test_a_real_nfnet(timm, tmp_path: Path):
    torch.manual_seed(0)
    old, new = (timm.create_model("dm_nfnet_f0", in_chans=n, num_classes=10).eval() for n in (3, 1))
    before, after = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(old.state_dict(), before)
    convert(before, after)
    new.load_state_dict(torch.load(after))
    image = torch.randn(1, 1, 96, 96)
    expected = old(image.expand(-1, 3, -1, -1))
    assert error(new(image), expected) < 1e-4
    assert error(new.stem(image), old.stem(image.expand(-1, 3, -1, -1))) < 1e-5
    adapted = timm.models.adapt_input_conv(1, old.state_dict()["stem.conv1.weight"])
    new.load_state_dict({**old.state_dict(), "stem.conv1.weight": adapted})
    assert error(new.stem(image), old.stem(image.expand(-1, 3, -1, -1))) > 0.1


@torch.no_grad()
def test_the_shrink_of_bit_is_told_of(timm, tmp_path: Path):
    torch.manual_seed(0)
    old, new = (timm.create_model("resnetv2_50x1_bit", in_chans=n, num_classes=10).eval() for n in (3, 1))
    torch.save(old.state_dict(), tmp_path / "a.pth")
    report = convert(tmp_path / "a.pth", tmp_path / "b.pth")
    (told,) = [n.message for n in report.warnings if n.code == "weight_standardised"]
    least, most = map(float, re.search(r"becomes (\S+) to (\S+) times", told).groups())
    new.load_state_dict(torch.load(tmp_path / "b.pth"))
    image = torch.randn(1, 1, 64, 64)
    seen = ((old, image.expand(-1, 3, -1, -1)), (new, image))
    before, after = (net.stem.conv(x).square().mean(dim=(0, 2, 3)).sqrt() for net, x in seen)
    factors = after / before
    assert factors.min() == pytest.approx(least, abs=0.01)
    assert factors.max() == pytest.approx(most, abs=0.01)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
@torch.no_grad()
def test_the_defaults_are_those_of_timm(timm, channels: int, tmp_path: Path):
    torch.manual_seed(0)
    old = timm.create_model("resnet18", in_chans=3, num_classes=10).state_dict()
    torch.save(old, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.pth", to=channels)
    found = torch.load(tmp_path / "b.pth")["conv1.weight"]
    expected = timm.models.adapt_input_conv(channels, old["conv1.weight"].double()).float()
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)  # it sums in float32

"""Networks of torch that normalize the image themselves: after a conversion they load strictly and answer alike."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chkpt_channels import UnsupportedError, convert, verify
from tests.frameworks.oracle import as_old

MEAN, STD = torch.tensor([0.48, 0.45, 0.4]).double(), torch.tensor([0.22, 0.23, 0.25]).double()


class Conditioner(nn.Module):
    """RADIO's input_conditioner, behind the model in module order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("norm_mean", MEAN[:channels].reshape(-1, 1, 1))
        self.register_buffer("norm_std", STD[:channels].reshape(-1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.norm_mean) / self.norm_std


class Scaling(nn.Module):
    """LPIPS' scaling_layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("shift", MEAN[:channels].reshape(1, -1, 1, 1))
        self.register_buffer("scale", STD[:channels].reshape(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.shift) / self.scale


def mean_shift(channels: int, sign: int) -> nn.Conv2d:
    """EDSR's."""
    layer = nn.Conv2d(channels, channels, 1)
    layer.weight.data = torch.eye(channels).reshape(channels, channels, 1, 1) / STD[:channels].reshape(-1, 1, 1, 1)
    layer.bias.data = sign * MEAN[:channels] / STD[:channels]
    return layer


class Net(nn.Module):
    """Parts by name, called in the order `calls`, registered in the order they are given."""

    def __init__(self, calls: str, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.calls = calls.split()

    def forward(self, image: Tensor) -> Tensor:
        for name in self.calls:
            image = self.get_submodule(name)(image)
        return image


def bn_data(n: int, padding: int) -> nn.Module:
    conv = nn.Conv2d(n, 8, 7, 2, padding, bias=False)
    parts = {
        "bn_data": nn.BatchNorm2d(n),
        "conv0": conv,
        "bn0": nn.BatchNorm2d(8),
        "relu": nn.ReLU(),
        "conv1": nn.Conv2d(8, 8, 3),
    }
    return Net(" ".join(parts), **parts)


def radio(n: int, padding: int) -> nn.Module:
    body = nn.Sequential()
    body.add_module("patch_embed", nn.Conv2d(n, 16, 8, 8))
    body.add_module("blocks", nn.Conv2d(16, 16, 1))
    return Net("input_conditioner model", model=body, input_conditioner=Conditioner(n))


def lpips(n: int, padding: int) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(n, 8, 11, 4, padding), nn.ReLU(), nn.Conv2d(8, 16, 3))
    return Net("scaling_layer net", scaling_layer=Scaling(n), net=net)


def edsr(n: int, padding: int) -> nn.Module:
    head, tail = nn.Sequential(nn.Conv2d(n, 8, 3, padding=padding)), nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 3))
    parts = {"sub_mean": mean_shift(n, -1), "add_mean": mean_shift(3, 1), "head": head, "tail": tail}
    return Net("sub_mean head tail add_mean", **parts)


class Cellpose(nn.Module):
    """The first stage of a network that normalizes the image before each of two stems."""

    def __init__(self, n: int, padding: int, *, relu: bool = False) -> None:
        super().__init__()
        act = [nn.ReLU()] if relu else []
        self.proj = nn.Sequential(nn.BatchNorm2d(n), nn.Conv2d(n, 8, 1))
        self.conv = nn.Sequential(nn.BatchNorm2d(n), *act, nn.Conv2d(n, 8, 3, padding=1))
        self.rest = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))

    def forward(self, image: Tensor) -> Tensor:
        return self.rest(self.proj(image) + self.conv(image))


NETS = {"bn_data": bn_data, "RADIO": radio, "LPIPS": lpips, "EDSR": edsr, "cellpose": Cellpose}


def built(make, channels: int, padding: int = 0) -> nn.Module:
    torch.manual_seed(channels)
    model = make(channels, padding).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in {module.weight: 0.5, module.bias: -1, module.running_mean: -1, module.running_var: 0.5}.items():
                nn.init.uniform_(tensor, low, 2)
    return model


def layers(name: str) -> dict:
    return {"layers": ["proj.1", "conv.1"]} if name == "cellpose" else {}


@pytest.mark.parametrize("safe", [False, True], ids=["pth", "safetensors"])
@pytest.mark.parametrize("to", [1, 2])
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_it_answers_alike(name: str, to: int, safe: bool, tmp_path: Path):
    old, new = built(NETS[name], 3), built(NETS[name], to)
    before, after = (tmp_path / f"{stem}.{'safetensors' if safe else 'pth'}" for stem in "ab")
    if safe:
        save_file(old.state_dict(), before, {"format": "pt"})
    else:
        torch.save(old.state_dict(), before)
    convert(before, after, to=to, **layers(name))
    assert verify(before, after, to=to, **layers(name)).ok
    if safe:
        from safetensors.torch import load_file

        new.load_state_dict(load_file(after))
    else:
        new.load_state_dict(torch.load(after))
    image = torch.rand(2, to, 32, 32, dtype=torch.float64)
    expected = old(as_old(image, 3))
    difference = (new(image) - expected).abs()
    inside = difference[..., 4:-4, 4:-4] if name == "cellpose" else difference
    assert inside.max() < 1e-12 * expected.abs().max()


@torch.no_grad()
def test_a_padded_stem_differs_at_the_border_alone(tmp_path: Path):
    old, new = built(bn_data, 3, 3), built(bn_data, 1, 3)
    torch.save(old.state_dict(), tmp_path / "a.pth")
    report = convert(tmp_path / "a.pth", tmp_path / "b.pth")
    new.load_state_dict(torch.load(tmp_path / "b.pth"))
    image = torch.rand(2, 1, 40, 40, dtype=torch.float64)
    off = (new(image) - old(image.expand(-1, 3, -1, -1))).abs()
    assert off[..., 2:-2, 2:-2].max() < 1e-12
    assert off.max() > 1e-3
    assert "border_error" in {n.code for n in report.warnings}


def test_what_a_relu_stands_behind_is_refused(tmp_path: Path):
    torch.save(Cellpose(3, 0, relu=True).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UnsupportedError, match="the operation between them is unknown"):
        convert(tmp_path / "a.pth", layers=["proj.1", "conv.2"])

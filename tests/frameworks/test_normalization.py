"""Pipelines folded into real networks: exact inside, and no further off at a padded border than is said."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from chkpt_channels import convert, verify
from tests.frameworks.exactness import MEAN, NETWORKS, STD, Errors, answers, converted, expected_of, fed, images, trained


@pytest.fixture(scope="module")
def networks():
    return {name: trained(built) for name, built in NETWORKS.items()}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
@pytest.mark.parametrize("words", [{"norm": "imagenet"}, {"norm": "imagenet", "input_range": 255}], ids=["folded", "bytes"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_answers_alike(name: str, words: dict, dtype: torch.dtype, most: float, networks: dict, tmp_path: Path):
    built, model = NETWORKS[name], networks[name]
    raw = images(1, side=built.side)
    expected = expected_of(built, model, raw, dtype)
    plain, _ = converted(built, model, tmp_path, dtype)
    new, report = converted(built, model, tmp_path, dtype, **words)
    found = Errors.of(answers(new, built, fed(raw, report).to(dtype)), expected, built.halo)
    # one mean and std for all three, which is the best that the sum of the kernels alone can be fed
    unfolded = Errors.of(answers(plain, built, ((raw - MEAN.mean()) / STD.mean()).to(dtype)), expected, built.halo)
    assert found.interior < (most if built.halo else max(most, 2e-6))  # a ViT's patch has five times as many terms
    assert unfolded.interior > 1e-3
    if built.halo == 0:
        assert found.logits < 1e-5
    elif "input_range" not in words:
        assert found.logits < unfolded.logits / 2


def test_the_new_mean_moves_the_border(networks: dict, tmp_path: Path):
    """Black padding is what raw bytes have: it is further from the old padding than gray is."""
    built, model = NETWORKS["ResNet-50"], networks["ResNet-50"]
    raw = images(1, side=built.side)
    expected = expected_of(built, model, raw, torch.float64)
    errors = []
    told = []
    for words in ({}, {"input_range": 255}, {"input_range": 255, "new_mean": "0.449"}):
        new, report = converted(built, model, tmp_path, torch.float64, norm="imagenet", **words)
        errors.append(Errors.of(answers(new, built, fed(raw, report)), expected, 2).border)
        told.append("black_padding" in {n.code for n in report.warnings})
    assert errors[0] < errors[1] / 5
    assert errors[2] == pytest.approx(errors[0])
    assert told == [False, True, False]


def test_a_second_channel_of_ones_is_exact_everywhere(networks: dict, tmp_path: Path):
    """It says where the image is, so that the constants of three means end where the image does."""
    built, model = NETWORKS["ResNet-50"], networks["ResNet-50"].double()
    raw, (mean, std) = images(1, side=built.side), (0.449, 0.226)
    matrix = [[std / s, (mean - m) / s] for m, s in zip(MEAN.flatten().tolist(), STD.flatten().tolist(), strict=True)]
    new, _ = converted(built, model, tmp_path, torch.float64, matrix=matrix)
    expected = expected_of(built, model, raw, torch.float64)
    errors = Errors.of(answers(new, built, torch.cat([(raw - mean) / std, torch.ones_like(raw)], 1)), expected, built.halo)
    assert max(errors) < 1e-12


class Small(nn.Sequential):
    """A stem without a bias, and a BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        nn.init.normal_(self[1].running_mean)

    def shared(self, dtype: torch.dtype) -> dict:
        """Two copies in one file: one of views into a flat buffer, and the same tensors once more."""
        state = self.to(dtype).state_dict()
        flat = torch.cat([v.reshape(-1) for v in state.values() if v.is_floating_point()])
        parts = iter(flat.split([v.numel() for v in state.values() if v.is_floating_point()]))
        views = {k: next(parts).view(v.shape) if v.is_floating_point() else v for k, v in state.items()}
        other = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
        return {"state_dict": views, "tied": dict(views), "ema": other}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
@torch.no_grad()
def test_copies_ties_and_half_precision(dtype: torch.dtype, most: float, tmp_path: Path):
    before, after = Small(3).shared(dtype), tmp_path / "b.pth"
    torch.save(before, tmp_path / "a.pth")
    report = convert(tmp_path / "a.pth", after, norm="imagenet")
    assert verify(tmp_path / "a.pth", after, norm="imagenet").ok
    found, raw = torch.load(after), torch.rand(1, 1, 16, 16, dtype=torch.float64)
    for copy in before:
        old, new = Small(3).double().eval(), Small(1).double().eval()
        old.load_state_dict(before[copy])
        new.load_state_dict(found[copy])
        expected = old((raw.expand(-1, 3, -1, -1) - MEAN) / STD)
        assert (new(fed(raw, report)) - expected).abs().max() < most * expected.abs().max()
        assert found[copy]["1.running_mean"].dtype == dtype


@pytest.mark.parametrize("name", NETWORKS)
def test_raw_colors(name: str, networks: dict, tmp_path: Path):
    """An RGB network keeps its three channels and takes the pipeline in."""
    built, model = NETWORKS[name], networks[name]
    raw = (images(1, 3, built.side) * 255).round()
    expected = answers(model.double(), built, (raw / 255 - MEAN) / STD)
    new, report = converted(built, model, tmp_path, torch.float64, to="rgb", norm="imagenet", input_range=255)
    assert report.in_channels == (3, 3)
    found = Errors.of(answers(new, built, raw), expected, built.halo)
    assert found.interior < 1e-9
    assert built.halo or found.logits < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_gray_to_colors(name: str, networks: dict, tmp_path: Path):
    """A gray network, made here of the RGB one, sees the luma of colors that went through ImageNet's pipeline."""
    built, raw = NETWORKS[name], images(1, 3, NETWORKS[name].side)
    gray, report = converted(built, networks[name].double(), tmp_path, torch.float64, norm="imagenet")
    luma = torch.einsum("c,nchw->nhw", torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64), raw)[:, None]
    expected = answers(gray, built, fed(luma, report))
    color, report = converted(built, gray, tmp_path, torch.float64, to="rgb", norm="imagenet")
    assert report.pipeline.mean == tuple(MEAN.flatten().tolist())
    found = Errors.of(answers(color, built, (raw - MEAN) / STD), expected, built.halo)
    assert found.interior < 1e-9
    assert built.halo or found.logits < 1e-9


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 1, 1), (5, 1, 2), (7, 2, 3), (6, 2, 2), (4, 2, 1)])
def test_the_border_is_as_far_off_as_is_said(window: int, stride: int, padding: int, tmp_path: Path):
    """At stride 1 every overlap that was reckoned with occurs; others are no further off."""
    old = nn.Conv2d(3, 8, window, stride, padding).double()
    layers = {"conv1.weight": old.weight, "conv1.bias": old.bias, "conv2.weight": torch.rand(8, 8, 3, 3).double()}
    save_file({k: v.detach() for k, v in layers.items()}, tmp_path / "a.safetensors", {"format": "pt"})
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", norm="imagenet", layers=["conv1"])
    (told,) = [n.message for n in report.warnings if n.code == "border_error"]
    said = float(re.search(r"by up to (\S+),", told)[1])
    new, raw = load_file(tmp_path / "b.safetensors"), torch.rand(1, 1, 21, 20, dtype=torch.float64)
    with torch.no_grad():
        expected = old((raw.expand(-1, 3, -1, -1) - MEAN) / STD)
        found = nn.functional.conv2d(fed(raw, report), new["conv1.weight"], new["conv1.bias"], stride, padding)
    off = (found - expected).abs()
    assert off[..., 3:-3, 3:-3].max() < 1e-12
    assert off.max() <= said * 1.01
    if stride == 1:
        assert off.max() >= said * 0.99


@pytest.mark.parametrize("zipped", [True, False])
def test_a_kernel_that_torch_negates_by_a_bit(zipped: bool, tmp_path: Path):
    """As `z.conj().imag` is saved: what is folded into the running mean has the sign that torch reads."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).double().eval()
    state = {name: torch._neg_view(-tensor) if name == "0.weight" else tensor for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    report = convert(tmp_path / "a.pth", tmp_path / "b.pth", "gray", norm="imagenet")
    assert verify(tmp_path / "a.pth", tmp_path / "b.pth", "gray", norm="imagenet").ok
    new = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)).double().eval()
    loaded = torch.load(tmp_path / "b.pth", weights_only=True)
    assert loaded["0.weight"].is_neg()
    new.load_state_dict(loaded)
    raw = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    assert torch.allclose(new(fed(raw, report)), model((raw - MEAN) / STD), atol=1e-9)
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "gray")
    assert torch.allclose(load_file(tmp_path / "b.safetensors")["0.weight"], state["0.weight"].sum(1, keepdim=True))

"""Quantized state dicts: torch reads the new numbers and scales, and its quantized convolution answers as the old one did."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from chkpt_channels import convert, verify
from tests.frameworks.oracle import as_old


def quantize(weight: Tensor, scheme: str) -> Tensor:
    if scheme == "tensor":
        return torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)
    if scheme == "shifted":
        low, high = float(weight.min()), float(weight.max())
        scale = (high - low) / 255
        return torch.quantize_per_tensor(weight, scale, round(-low / scale), torch.quint8)
    scales = (weight.abs().amax((1, 2, 3)) / 127).to(torch.float64)
    return torch.quantize_per_channel(weight, scales, torch.zeros(len(weight), dtype=torch.int64), 0, torch.qint8)


def steps(weight: Tensor) -> Tensor:
    """One step of each filter's numbers."""
    if weight.qscheme() == torch.per_tensor_affine:
        return torch.full((len(weight),), weight.q_scale(), dtype=torch.float64)
    return weight.q_per_channel_scales()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("scheme", ["tensor", "channel", "shifted"])
@pytest.mark.parametrize("to", [1, 4, 13])
def test_requantised(to: int, scheme: str, legacy: bool, tmp_path: Path):
    torch.manual_seed(to)
    old = quantize(torch.randn(8, 3, 5, 5), scheme)
    state = {"conv1.weight": old, "conv1.bias": torch.randn(8), "conv1.scale": torch.tensor(0.1), "fc.weight": torch.randn(5, 8)}
    before, after = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(state, before, _use_new_zipfile_serialization=not legacy)
    report = convert(before, after, to=to)
    loaded = torch.load(after, weights_only=True)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], state[name]) for name in ("conv1.bias", "conv1.scale", "fc.weight"))
    new = loaded["conv1.weight"]
    image = torch.rand(2, to, 9, 9, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(as_old(image, 3), old.dequantize().double(), padding=2)
    found = torch.nn.functional.conv2d(image, new.dequantize().double(), padding=2)
    half_a_step = (steps(new) / 2 * 25 * to).reshape(1, -1, 1, 1)
    assert ((found - expected).abs() <= half_a_step * 1.001).all()
    assert (steps(new) < steps(old) * 3.001).all()
    assert verify(before, after).ok
    assert [warning.code for warning in report.warnings] == ["requantised"]


@pytest.mark.parametrize("scheme", ["tensor", "channel", "shifted"])
def test_swapped_channels_are_the_same_numbers(scheme: str, tmp_path: Path):
    old = quantize(torch.randn(8, 3, 5, 5), scheme)
    before, after = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"conv1.weight": old, "conv1.bias": torch.randn(8)}, before)
    convert(before, after, to="bgr")
    new = torch.load(after)["conv1.weight"]
    assert torch.equal(new.int_repr(), old.int_repr().flip(1))
    assert torch.equal(steps(new), steps(old))


def test_torchs_own_quantized_convolution(tmp_path: Path):
    """nnq.Conv2d keeps its packed weights as a qint8 tensor in its state dict."""
    from torch.ao.nn import quantized as nnq

    torch.manual_seed(0)
    layer = nnq.Conv2d(3, 8, 3, padding=1)
    layer.set_weight_bias(quantize(torch.randn(8, 3, 3, 3), "channel"), torch.randn(8))
    layer.scale, layer.zero_point = 0.2, 60
    torch.save({f"conv1.{k}": v for k, v in layer.state_dict().items()}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.pth", to="gray")
    gray = nnq.Conv2d(1, 8, 3, padding=1)
    gray.load_state_dict({k.removeprefix("conv1."): v for k, v in torch.load(tmp_path / "b.pth", weights_only=False).items()})
    # seven bits: on processors without VNNI torch adds two products in 16 bits, and eight would overflow there
    image = torch.quantize_per_tensor(torch.rand(1, 1, 16, 16), 1 / 127, 0, torch.quint8)
    stacked = torch.quantize_per_tensor(image.dequantize().repeat(1, 3, 1, 1), 1 / 127, 0, torch.quint8)
    off = (gray(image).int_repr().int() - layer(stacked).int_repr().int()).abs()
    assert off.max() <= 1
    assert off.float().mean() < 0.2

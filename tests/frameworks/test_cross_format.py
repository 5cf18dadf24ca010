"""What goes from one container into the other loads in torch, weights only and mapped, with the same values."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from chkpt_channels import convert

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int64, torch.uint16, torch.bool]


def state(dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    named = {"conv1.weight": torch.randn(8, 3, 7, 7), "bn1.bias": torch.randn(8), "steps": torch.tensor(3)}
    return named | {"other": (torch.randn(5, 8) * 4).to(dtype), "fc.weight": torch.randn(5, 8)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways(dtype: torch.dtype, tmp_path: Path):
    named = state(dtype)
    torch.save(named, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", to="gray")
    convert(tmp_path / "b.safetensors", tmp_path / "c.pth", to="gray")
    safe = safetensors.torch.load_file(tmp_path / "b.safetensors")
    for found in (safe, torch.load(tmp_path / "c.pth", weights_only=True), torch.load(tmp_path / "c.pth", mmap=True)):
        assert found.keys() == named.keys()
        for name, tensor in found.items():
            expected = named[name].sum(1, keepdim=True) if name == "conv1.weight" else named[name]
            assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
            same = tensor.contiguous().reshape(-1).view(torch.uint8), expected.contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(*same) or (name == "conv1.weight" and torch.allclose(tensor, expected, atol=1e-6))

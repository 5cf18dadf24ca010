"""weight_norm, in both spellings of torch: the loaded convolution answers as the old one did."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from chkpt_channels import UnsupportedError, convert, verify
from tests.frameworks.oracle import as_old


def net(channels: int, norm) -> nn.Module:
    torch.manual_seed(0)
    layers = [norm(nn.Conv2d(channels, 8, 3, padding=1)), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), norm(nn.Conv2d(8, 16, 3))]
    return nn.Sequential(*layers).double()


NORMS = {
    "old": weight_norm,
    "old, one length": lambda module: weight_norm(module, dim=None),
    "new": parametrizations.weight_norm,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("to", [1, 4])
def test_it_answers_alike(norm: str, to: int, tmp_path: Path):
    before, after = tmp_path / "a.pth", tmp_path / "b.pth"
    old, new = net(3, NORMS[norm]), net(to, NORMS[norm])
    torch.save(old.state_dict(), before)
    convert(before, after, to=to)
    new.load_state_dict(torch.load(after))
    image = torch.rand(2, to, 16, 16, dtype=torch.float64)
    assert torch.allclose(new(image), old(as_old(image, 3)), rtol=1e-12, atol=1e-12)
    assert verify(before, after).ok


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", [spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_is_refused(norm, tmp_path: Path):
    torch.save(net(3, norm).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UnsupportedError, match="is spectral-normed"):
        convert(tmp_path / "a.pth", to="gray")

"""Pictures: what a tile shows is what the kernel holds, and a picture is the same on every day."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from chkpt_channels import UnsupportedError, UsageError, plot
from chkpt_channels.api.plot import canonical, load_filters, mosaic
from chkpt_channels.cli.app import run
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from tests.support.files import FIXTURES

RGB, GRAY = FIXTURES / "torch_zip" / "state_dict.pth", FIXTURES / "torch_zip" / "state_dict_gray.pth"


@pytest.mark.parametrize("spelling", ["OIHW", "HWIO", "OHWI", "IOHW", "HWOI", "O(HWI)", "O(IHW)", "(HWI)O", "(IHW)O"])
def test_every_layout_is_drawn_alike(spelling: str):
    sizes = {"O": 5, "I": 3, "H": 4, "W": 4}
    plain = np.random.default_rng(0).normal(size=[sizes[x] for x in "OIHW"])
    layout = Layout(spelling)
    letters = "".join(layout.axes)
    stored = plain.transpose(["OIHW".index(x) for x in letters]).reshape(
        [int(np.prod([sizes[x] for x in g])) for g in layout.axes]
    )
    conv = FirstConv(Tensor("w", BY_NAME["F64"], stored.shape), layout, 3, "user")
    assert np.array_equal(canonical(stored, conv), plain)


@pytest.mark.parametrize(
    ("spelling", "shape", "drawn"), [("OIW", (4, 2, 5), (4, 2, 1, 5)), ("OIDHW", (4, 2, 3, 5, 6), (4, 2, 5, 6))]
)
def test_other_ranks(spelling: str, shape: tuple[int, ...], drawn: tuple[int, ...]):
    conv = FirstConv(Tensor("w", BY_NAME["F64"], shape), Layout(spelling), 2, "user")
    assert canonical(np.ones(shape), conv).shape == drawn


def test_tiles():
    weights = np.zeros((3, 1, 2, 2))
    weights[1] = 1
    weights[2, 0, 0, 0] = -2
    sheet = mosaic(weights, 2.0, 2)
    assert sheet.shape == (5, 5, 3)
    assert (sheet[:2, :2] == 0.5).all()
    assert (sheet[:2, 3:] == 0.75).all()
    assert (sheet[3, 0] == 0).all()
    assert (sheet[:, 2] == 1).all()
    colors = mosaic(np.array([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1), 1.0, 1)
    assert colors.tolist() == [[[1.0, 0.5, 0.0]]]


def test_the_filters_of_a_file():
    found = load_filters(RGB)
    assert (found.name, found.weights.shape) == ("state_dict.pth: conv1.weight", (8, 3, 7, 7))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_are_the_same_every_day(suffix: str, tmp_path: Path):
    pytest.importorskip("matplotlib")
    first, second = (plot(RGB, GRAY, tmp_path / f"{name}.{suffix}") for name in "ab")
    assert first.stat().st_size > 5000
    assert first.read_bytes() == second.read_bytes()
    assert plot(RGB, None, tmp_path / f"c.{suffix}").read_bytes() != first.read_bytes()


def test_other_names_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="suffix must be one of"):
        plot(RGB, GRAY, tmp_path / "a.bmp")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match="needs matplotlib"):
        plot(RGB, GRAY, tmp_path / "a.png")
    assert run(["plot", str(RGB), "-o", str(tmp_path / "a.png")]) == 4
    assert "pip install 'chkpt-channels[plot]'" in capsys.readouterr().err

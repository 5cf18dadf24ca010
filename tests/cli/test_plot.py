"""The command `plot`: its options reach the library, and it never replaces what it was not asked to."""

from __future__ import annotations

from pathlib import Path

import pytest

from chkpt_channels.cli.app import run
from tests.support.files import FIXTURES

FOUR = str(FIXTURES / "torch_zip" / "state_dict_4ch.pth")
RGB = str(FIXTURES / "torch_zip" / "state_dict.pth")


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "a.png"
    options = ["--bands", "B,G,R,NIR=R", "--layer", "conv1", "--layout", "OIHW", "--from", "4"]
    assert run(["plot", FOUR, *options, "-o", str(picture)]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    first = picture.read_bytes()
    assert run(["plot", RGB, "-o", str(picture)]) == 5
    assert "error: " in capsys.readouterr().err
    assert picture.read_bytes() == first
    assert run(["plot", RGB, "-o", str(picture), "--force"]) == 0
    assert picture.read_bytes() != first


def test_a_second_layer_is_that_of_the_second_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib")
    picture = str(tmp_path / "a.png")
    assert run(["plot", RGB, FOUR, "--layer", "conv1", "--layer", "layer1.conv9", "-o", picture]) == 2
    assert "no tensor is called 'layer1.conv9'" in capsys.readouterr().err
    assert run(["plot", RGB, FOUR, *["--layer", "conv1"] * 2, "-o", picture]) == 0
    assert run(["plot", RGB, FOUR, *["--layer", "conv1"] * 3, "-o", picture, "--force"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bands", "R,G"], "--bands names 2, and the kernel has 3 channels"),
        (["--layout", "XYZ"], "--layout is one of OIHW, OIW"),
        (["--from", "4"], "its first convolution is ambiguous"),
    ],
)
def test_what_does_not_fit_is_refused(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("matplotlib")
    assert run(["plot", RGB, *options, "-o", str(tmp_path / "a.png")]) in (2, 4)
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())

"""Pictures: what was done is in the title, and a picture is the same on every day, whole, and never in the place of another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import OutputExistsError, UnsupportedError, UsageError, convert, plot
from chkpt_channels.api.display import picture
from chkpt_channels.cli.app import run
from tests.support.files import FIXTURES
from tests.support.memory import NET, kernel

RGB, GRAY = FIXTURES / "torch_zip" / "state_dict.pth", FIXTURES / "torch_zip" / "state_dict_gray.pth"


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_are_the_same_every_day(suffix: str, tmp_path: Path):
    pytest.importorskip("matplotlib")
    first, second = (plot(RGB, GRAY, tmp_path / f"{name}.{suffix}") for name in "ab")
    assert first.stat().st_size > 5000
    assert first.read_bytes() == second.read_bytes()
    assert plot(RGB, None, tmp_path / f"c.{suffix}").read_bytes() != first.read_bytes()


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `draw` is called with."""
    pytest.importorskip("matplotlib")
    seen: list[tuple[Any, ...]] = []
    draw = picture.draw

    def watched(title: str, subtitle: str, blocks: Any, *, related: bool) -> Any:
        seen.append((title, subtitle, blocks, related))
        return draw(title, subtitle, blocks, related=related)

    monkeypatch.setattr(picture, "draw", watched)
    return seen


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({"to": "gray"}, "conv1.weight: the sum of R, G and B"),
        ({"to": "bgr"}, "conv1.weight: its channels 2, 1, 0"),
        ({"to": 4, "method": "zero"}, "conv1.weight: its 3 channels, and 1 more that begins at zero"),
        ({"to": 3}, "conv1.weight: unchanged"),
        ({"to": "gray", "method": "luma", "luma": "bt601"}, "conv1.weight: R, G and B weighted by 0.299, 0.587, 0.114"),
        ({"to": "gray", "norm": "imagenet"}, "conv1.weight: a weighted sum of R, G and B"),
    ],
)
def test_the_title_says_what_was_done(options: dict[str, Any], title: str, titles: list[tuple[Any, ...]], tmp_path: Path):
    convert(RGB, tmp_path / "b.pth", **options)
    plot(RGB, tmp_path / "b.pth", tmp_path / "a.png")
    ((found, subtitle, blocks, related),) = titles
    assert (found, related) == (title, True)
    assert subtitle.startswith("8×3×7×7 float32")
    assert [block.role for block in blocks] == ["before", "after"]


def test_what_was_only_rounded_is_told(titles: list[tuple[Any, ...]], tmp_path: Path):
    for name, factor in (("a", 1.0), ("b", 1.0), ("c", 1.02)):
        dtype = np.float32 if name == "a" else np.float16
        weights = (NET["conv1.weight"] * factor).astype(dtype)
        safetensors.numpy.save_file({**NET, "conv1.weight": weights}, tmp_path / f"{name}.safetensors")
    for name in "bc":
        plot(tmp_path / "a.safetensors", tmp_path / f"{name}.safetensors", tmp_path / f"{name}.png")
    assert titles[0][:2] == ("conv1.weight: unchanged, up to rounding", "8×3×7×7 float32 → 8×3×7×7 float16")
    assert "unchanged" not in titles[1][0]


def test_bands_have_their_names(titles: list[tuple[Any, ...]], tmp_path: Path):
    bands = "B,G,R,NIR=R"
    convert(RGB, tmp_path / "b.pth", bands=bands)
    plot(RGB, tmp_path / "b.pth", tmp_path / "a.png", bands=bands)
    before, after = titles[0][2]
    assert (before.names, after.names) == (["R", "G", "B"], ["B", "G", "R", "NIR"])
    assert list(after.made_of) == ["B", "G", "0.5 R", "0.5 R"]
    assert [len(block.panels) for block in (before, after)] == [3, 4]


def test_two_models_have_their_names(titles: list[tuple[Any, ...]], tmp_path: Path):
    keras = FIXTURES / "keras_h5" / "gray.h5"
    plot(RGB, keras, tmp_path / "a.png")
    other = tmp_path / "other" / RGB.name
    other.parent.mkdir()
    safetensors.numpy.save_file({**NET, "conv1.weight": kernel(8, 3, 5, 5)}, other.with_suffix(".safetensors"))
    (first, second), related = titles[0][2:]
    assert (first.title, second.title, related) == ("state_dict.pth", "gray.h5", False)
    assert first.scale != second.scale
    plot(FIXTURES / "torch_legacy" / "state_dict.pth", GRAY.with_name("state_dict.pth"), tmp_path / "b.png")
    assert {block.title for block in titles[1][2]} == {"torch_legacy/state_dict.pth", "torch_zip/state_dict.pth"}


def test_a_model_folder_is_drawn(titles: list[tuple[Any, ...]], tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.numpy.save_file(NET, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    plot(folder, None, tmp_path / "a.png")
    assert titles[0][0] == "model"


def test_nothing_is_replaced_unless_asked_for(tmp_path: Path):
    pytest.importorskip("matplotlib")
    there = tmp_path / "a.png"
    there.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="exists already"):
        plot(RGB, GRAY, there)
    assert there.read_bytes() == b"mine"
    plot(RGB, GRAY, there, force=True)
    assert there.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    there = tmp_path / "a.png"
    there.write_bytes(b"mine")

    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(picture, "draw", fails)
    with pytest.raises(MemoryError):
        plot(RGB, GRAY, there, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert there.read_bytes() == b"mine"


def test_the_callers_matplotlib_stays_as_it_is(tmp_path: Path):
    mpl = pytest.importorskip("matplotlib")
    before = dict(mpl.rcParams)
    plot(RGB, GRAY, tmp_path / "a.svg")
    assert dict(mpl.rcParams) == before


def test_other_names_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="suffix must be one of"):
        plot(RGB, GRAY, tmp_path / "a.bmp")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.style", raising=False)
    with pytest.raises(UnsupportedError, match="needs matplotlib"):
        plot(RGB, GRAY, tmp_path / "a.png")
    assert run(["plot", str(RGB), "-o", str(tmp_path / "a.png")]) == 4
    assert "pip install matplotlib" in capsys.readouterr().err

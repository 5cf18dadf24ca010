from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from chkpt_channels.cli import guesses
from chkpt_channels.cli.app import run
from chkpt_channels.core.errors import UsageError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("resnet18.pth", "b.pth"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "hint"),
    [
        (["b.pth", "out.pth"], "chkpt-channels convert b.pth -o out.pth"),
        (["b.pth", "resnet18.pth", "out/"], "chkpt-channels convert b.pth --output-dir out/"),
        (["b.pth", "resnet18.pth", "empty"], "chkpt-channels convert b.pth … --output-dir empty"),
    ],
)
def test_the_last_source_is_the_output(sources: list[str], hint: str, here: Path):
    with pytest.raises(UsageError) as refused:
        guesses.check_sources(sources, names_output=False)
    assert refused.value.hint == hint
    guesses.check_sources(sources, names_output=True)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("to", "--to"),
        ("layers", "--layer"),
        ("in-channels", "--to N"),
        ("gray", "--to gray"),
        ("overwrite", "--force"),
        ("x", ""),
    ],
)
def test_an_option_that_is_called_otherwise(word: str, hint: str):
    assert guesses.option(word, ["--to", "-o", "--output", "--layer", "--force", "--verbose", "--channel-order"]) == hint
    assert guesses.option(word, []) == ""


MEANT = (
    ["b.pth"],
    ["missing.pth"],
    ["b.pth", "resnet18.pth"],
    ["gone.pth", "out.pth"],
    ["b.pth", "-"],
    ["b.pth", "resnet18.pth", "gone.pth"],
)


@pytest.mark.parametrize("sources", MEANT)
def test_sources_that_are_meant(sources: list[str], here: Path):
    guesses.check_sources(sources, names_output=False)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("s3://zoo/a.pth", ""),
        ("timm/resnet50.a1_in1k", "hf download timm/resnet50.a1_in1k --local-dir resnet50.a1_in1k   and convert what it fetched"),
        ("hf-hub:timm/vit", "hf download timm/vit --local-dir vit   and convert what it fetched"),
        ("res*.pth", "res*.pth without quotes, for which the shell puts resnet18.pth and its like"),
        ("*.onnx", ""),
        ("resnet50.pth", "resnet18.pth"),
        ("resnet18.pht", "resnet18.pth"),
        ("sent.pth", ""),
        ("notes.pth", ""),
        ("empty/x.pth", ""),
        ("quite_another.onnx", ""),
        ("ftp://a/b", ""),
    ],
)
def test_what_fetches_a_source_that_is_not_here(source: str, hint: str, here: Path):
    assert guesses.fetched(source) == hint


def test_a_word_in_the_place_of_a_command(here: Path):
    assert guesses.command("resnet18.pth").startswith("chkpt-channels convert resnet18.pth --to gray")
    assert guesses.command("empty") != ""
    assert guesses.command("convrt") == ""


def test_an_output_that_is_a_folder(here: Path):
    assert guesses.is_output_folder(["b.pth"], "out/")
    assert not guesses.is_output_folder(["b.pth"], "out")
    assert not guesses.is_output_folder(["empty"], "out/")


def test_a_folder_of_models(tmp_path: Path, capsys):
    for name, channels in (("a.safetensors", 3), ("b.safetensors", 1)):
        shapes = {"conv1.weight": (8, channels, 7, 7), "conv2.weight": (8, 8, 3, 3)}
        save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, tmp_path / name)
    assert run(["convert", str(tmp_path), "--to", "gray", "-o", str(tmp_path.parent / "out")]) == 4
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("try:"))
    assert line.endswith(
        f"or, where each is a model of its own, chkpt-channels convert {tmp_path}/*.safetensors --output-dir DIR"
    )
    (tmp_path / "config.json").write_text("{}")
    assert guesses.each_a_model(str(tmp_path)) == ""

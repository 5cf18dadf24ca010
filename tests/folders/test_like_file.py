"""LIKE, opened from a file, a folder or memory, and the options that follow from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import DamagedError, FileSystemError, UnsupportedError, UsageError, convert, verify
from chkpt_channels.core.errors import Location
from chkpt_channels.folders.like_file import IN_MEMORY, memory_of, open_like, settled, with_like
from chkpt_channels.folders.model_folder import open_model
from chkpt_channels.transform.options import build_options
from tests.support.files import FIXTURES
from tests.support.memory import NET, Memory, kernel

RGB, GRAY = (FIXTURES / "torch_zip" / f"{name}.pth" for name in ("state_dict", "state_dict_gray"))
VAE = {"enter.weight": kernel(8, 3, 3, 3), "middle.weight": kernel(8, 8, 3, 3), "leave.weight": kernel(3, 8, 3, 3)}
ONE_CHANNEL = {**NET, "conv1.weight": kernel(8, 1, 7, 7)}


def names(like: Any) -> set[tuple[str, str, str]]:
    return {(group.part, group.group, tensor.key) for group in like.groups for tensor in group.tensors}


def test_a_file():
    like = open_like(GRAY)
    assert (like.file, like.graph_channels, like.target, like.channels) == (str(GRAY), 0, None, None)
    assert ("", "", "conv1.weight") in names(like)
    assert {t.key: t.shape for group in like.groups for t in group.tensors}["conv1.weight"] == (8, 1, 7, 7)
    assert {group for _, group, _ in names(open_like(FIXTURES / "torch_zip" / "training.ckpt"))} == {"model", "model_ema"}


def test_a_file_with_a_graph_states_its_channels():
    assert open_like(FIXTURES / "onnx" / "gray.onnx").graph_channels == 1
    assert open_like(FIXTURES / "keras_zip" / "functional.keras").graph_channels == 3


def test_a_folder_has_a_part_for_each_file(tmp_path: Path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        safetensors.numpy.save_file(NET, tmp_path / part / "model.safetensors")
    assert {part for part, _, _ in names(open_like(tmp_path))} == {"unet/model.safetensors", "vae/model.safetensors"}


def test_memory():
    tied = {**NET, "head.weight": NET["fc.weight"]}
    like = open_like(tied)
    memory = {tensor.key: tensor.memory for tensor in like.groups[0].tensors}
    assert (like.file, like.groups[0].part, list(memory)) == (IN_MEMORY, "", list(tied))
    assert memory["head.weight"] == memory["fc.weight"] != memory["conv1.weight"]


def test_arrays_without_elements_or_an_address_are_no_aliases():
    class Shaped:
        shape = (3,)

    assert memory_of("a", np.zeros((0, 3))) == "a"
    assert memory_of("b", Shaped()) == "b"
    assert memory_of("c", NET["fc.weight"][:2]) != memory_of("d", NET["fc.weight"])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("-", UsageError, "--like names a file"),
        ("nothing.pth", FileSystemError, "nothing.pth: no such file"),
        ({"state_dict": {}}, UsageError, "'state_dict' is of type dict, not an array"),
        ({"epoch": 3}, UsageError, "'epoch' is of type int, not an array"),
    ],
)
def test_what_is_no_like(given: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        open_like(given)


def test_the_error_of_a_damaged_like_names_it(tmp_path: Path):
    (tmp_path / "like.pth").write_bytes(GRAY.read_bytes()[:1000])
    with pytest.raises(DamagedError, match=r"like\.pth: "):
        convert(RGB, tmp_path / "x.pth", like=tmp_path / "like.pth")
    assert not (tmp_path / "x.pth").exists()


def options(to: Any = None, **words: Any) -> Any:
    return build_options(to, like="like.pth", **words)


def test_the_target_follows_from_the_shapes():
    found = settled(options(), open_like(ONE_CHANNEL), [Memory({"": NET})], Location("a.pth"))
    assert (found.to, found.search.like.channels) == (1, (3, 1))
    assert settled(options("gray"), open_like(ONE_CHANNEL), [Memory({"": NET})], Location("a.pth")).to == 1
    unchanged = settled(options(), open_like(NET), [Memory({"": NET})], Location("a.pth"))
    assert (unchanged.rule.to, unchanged.search.like.channels) == (None, None)


def test_a_rule_that_does_not_make_the_target_is_refused():
    with pytest.raises(UsageError, match="the target has 2 channels, and the state dict given as like takes 1"):
        settled(options(select="0,1"), open_like(ONE_CHANNEL), [Memory({"": NET})], Location("a.pth"))
    four = {**NET, "conv1.weight": kernel(8, 4, 7, 7)}
    with pytest.raises(UsageError, match="--method sum makes one channel; the target has 4"):
        settled(options(method="sum"), open_like(four), [Memory({"": NET})], Location("a.pth"))


def test_parts_must_agree():
    grown = {**VAE, "enter.weight": kernel(8, 4, 3, 3)}
    like = open_like(ONE_CHANNEL)
    like = like._replace(groups=(*like.groups, *open_like(VAE).groups))
    stores = [Memory({"": NET}), Memory({"": VAE})]
    assert settled(options(), like, stores, Location("folder")).to == 1
    assert settled(options(), open_like(ONE_CHANNEL), stores, Location("folder")).to == 1
    like = like._replace(groups=(*open_like(ONE_CHANNEL).groups, *open_like(grown).groups))
    with pytest.raises(UnsupportedError, match=r"^folder: .* changes its parts differently: 3 to 1 and 3 to 4 channels$"):
        settled(options(), like, stores, Location("folder"))
    with pytest.raises(UnsupportedError, match="have other names"):
        settled(options(), open_like({"q.weight": kernel(3)}), stores, Location("folder"))


def test_without_like_nothing_changes():
    with open_model(RGB) as model:
        parsed = build_options("gray")
        assert with_like(model, parsed) is parsed
        assert with_like(model, build_options(None, like=GRAY)).to == 1


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network that takes an image, and one beside it that does not change."""
    for part, arrays in (("unet", NET), ("vae", VAE)):
        (tmp_path / "model" / part).mkdir(parents=True)
        safetensors.numpy.save_file(arrays, tmp_path / "model" / part / "model.safetensors")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["a folder", "a file"])
def test_a_part_that_does_not_differ_is_copied(folder: Path, kind: str):
    like = folder.parent / "like"
    shutil.copytree(folder, like)
    safetensors.numpy.save_file(ONE_CHANNEL, like / "unet" / "model.safetensors")
    given = like if kind == "a folder" else like / "unet" / "model.safetensors"
    report = convert(folder, like=given)
    assert (report.in_channels, report.changed) == ((3, 1), ("unet/model.safetensors/conv1.weight",))
    assert ("copied", "vae/model.safetensors: LIKE shows no other input channels, copied") in report.warnings
    out = folder.parent / "model_gray"
    vae = Path("vae", "model.safetensors")
    assert (out / vae).read_bytes() == (folder / vae).read_bytes()
    assert verify(folder, out, like=given).ok


def test_a_folder_without_differences_is_unchanged(folder: Path):
    report = convert(folder, folder.parent / "same", like=folder)
    assert (report.status, report.changed) == ("unchanged", ())


def test_a_folder_that_like_does_not_know_is_refused(folder: Path):
    with pytest.raises(UnsupportedError, match="have other names than those of the state dict given as like"):
        convert(folder, folder.parent / "out", like={"q.weight": kernel(3)})
    assert not (folder.parent / "out").exists()

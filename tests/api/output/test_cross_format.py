"""PyTorch to safetensors and back: the same tensors, the kernel converted, and what cannot be kept refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import UnsupportedError, UsageError, convert, verify
from tests.support.builders import conv, floats, storage, tensor, torch_zip
from tests.support.files import FIXTURES, contents, opened, snapshot

ZIP, LEGACY, SAFE = (FIXTURES / name for name in ("torch_zip", "torch_legacy", "safetensors"))


@pytest.mark.parametrize(
    "source",
    [
        ZIP / "state_dict.pth",
        ZIP / "bfloat16.pth",
        ZIP / "float8.pth",
        ZIP / "double.pth",
        ZIP / "channels_last.pth",
        LEGACY / "state_dict.pth",
    ],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_to_safetensors_and_back(source: Path, tmp_path: Path):
    there, back, straight = tmp_path / "a.safetensors", tmp_path / "b.pth", tmp_path / "c.pth"
    convert(source, there, to="gray")
    convert(source, straight, to="gray")
    with opened(there) as found, opened(straight) as expected:
        assert {n: (t.dtype, t.shape) for n, t in found.tensors.items()} == {
            n: (t.dtype, t.shape) for n, t in expected.tensors.items()
        }
    assert contents(there) == {name: contents(straight)[name] for name in contents(there)}
    report = convert(there, back, to="gray")
    assert (report.status, report.output.format) == ("converted", "torch_zip")
    assert {k: contents(back)[k] for k in sorted(contents(back))} == {
        k: contents(straight)[k] for k in sorted(contents(straight))
    }
    assert verify(source, there).ok
    assert verify(source, back).ok


def test_the_safetensors_library_reads_it(tmp_path: Path):
    convert(ZIP / "state_dict.pth", tmp_path / "a.safetensors", to=4, method="zero")
    named = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert named["conv1.weight"].shape == (8, 4, 7, 7)
    assert not named["conv1.weight"][:, 3].any()
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    again = tmp_path / "b.safetensors"
    safetensors.numpy.save_file(named, again, {"format": "pt"})
    assert again.read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_a_state_dict_by_its_key(tmp_path: Path):
    source = ZIP / "lightning.ckpt"
    with pytest.raises(UnsupportedError, match="holds") as caught:
        convert(source, tmp_path / "a.safetensors", to="gray")
    assert "--state-dict state_dict" in caught.value.hint
    with pytest.raises(UsageError, match="no state dict is called 'model'"):
        convert(source, tmp_path / "a.safetensors", to="gray", state_dict="model")
    assert snapshot(tmp_path) == {}
    convert(source, tmp_path / "a.safetensors", to="gray", state_dict="state_dict")
    named = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert named["model.conv1.weight"].shape[1] == 1


REFUSED: dict[str, tuple[Any, dict[str, bytes], str]] = {
    "a number": ({"conv1.weight": conv(), "epoch": 3}, {"0": floats(108)}, "holds epoch besides the tensors"),
    "shared": (
        {"conv1.weight": conv(), "tied": tensor(storage("0", 108), (4, 27))},
        {"0": floats(108)},
        "share memory",
    ),
    "a name": (
        {"conv1.weight": conv(), "__metadata__": tensor(storage("1", 2), (2,))},
        {"0": floats(108), "1": floats(2)},
        "cannot be stored in that format",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_kept(case: str, tmp_path: Path):
    root, storages, words = REFUSED[case]
    (tmp_path / "a.pth").write_bytes(torch_zip(root, storages))
    with pytest.raises(UnsupportedError, match=words):
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors", to=4)
    assert set(snapshot(tmp_path)) == {"a.pth"}


@pytest.mark.parametrize("name", ["module.pth", "scripted.pt", "quantised.pth"])
def test_what_is_no_state_dict(name: str, tmp_path: Path):
    with pytest.raises(UnsupportedError):
        convert(ZIP / name, tmp_path / "b.safetensors", to="gray")


def test_the_option_is_for_this_only(tmp_path: Path):
    with pytest.raises(UsageError, match="--state-dict needs an output in another format"):
        convert(ZIP / "lightning.ckpt", tmp_path / "b.ckpt", to="gray", state_dict="state_dict")
    with pytest.raises(UsageError, match="named like another format"):
        convert(ZIP / "state_dict.pth", tmp_path / "b.onnx", to="gray")


def test_scalars_and_empty_tensors(tmp_path: Path):
    root = {"conv1.weight": conv(), "n": tensor(storage("1", 1), ()), "e": tensor(storage("2", 0), (0, 3))}
    (tmp_path / "a.pth").write_bytes(torch_zip(root, {"0": floats(108), "1": floats(1), "2": b""}))
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", to=4)
    convert(tmp_path / "b.safetensors", tmp_path / "c.pth", to=4)
    with opened(tmp_path / "c.pth") as found:
        assert {n: t.shape for n, t in found.tensors.items()} == {"conv1.weight": (4, 4, 3, 3), "n": (), "e": (0, 3)}
    assert np.frombuffer(contents(tmp_path / "c.pth")["n"], "<f4").size == 1

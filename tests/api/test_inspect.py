"""Inspection: never fails for ambiguity, names parts of folders, reports what configurations declare."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import FileSystemError, UnknownFormatError, inspect
from tests.support.files import FIXTURES


def test_a_file():
    found = inspect(FIXTURES / "torch_zip" / "module.pth")
    (conv,) = found.first_convs
    assert (conv.in_channels, str(conv.layout)) == (3, "OIHW")
    assert {d.channels for d in found.declarations} == {3}
    assert len(found.tensors) == len({tensor.name for tensor in found.tensors})
    assert pickle.loads(pickle.dumps(found)) == found


def test_optimizer_state_is_listed():
    found = inspect(FIXTURES / "torch_zip" / "training.ckpt")
    assert found.optimizer
    assert all(entry.tensors or entry.numbers for entry in found.optimizer)


def test_ambiguity_is_no_error(tmp_path: Path):
    path = tmp_path / "unet.safetensors"
    named = {"conv_in.weight": np.ones((32, 4, 3, 3), np.float32), "conv_out.weight": np.ones((4, 32, 3, 3), np.float32)}
    safetensors.numpy.save_file(named, path)
    found = inspect(path)
    assert found.first_convs == ()
    assert {candidate.key for candidate in found.candidates} >= {"conv_in.weight"}


def test_parts_of_a_folder_are_named(tmp_path: Path):
    for name in ("a", "b"):
        safetensors.numpy.save_file({"conv1.weight": np.ones((8, 3, 7, 7), np.float32)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": 3}))
    found = inspect(tmp_path)
    assert [conv.tensor.name for conv in found.first_convs] == ["a.safetensors/conv1.weight", "b.safetensors/conv1.weight"]
    assert [d.where for d in found.declarations] == ["config.json: num_channels"]


def test_what_cannot_be_opened(tmp_path: Path):
    with pytest.raises(FileSystemError):
        inspect(tmp_path / "missing.pth")
    (tmp_path / "a.pth").write_bytes(b"nothing that is known")
    with pytest.raises(UnknownFormatError):
        inspect(tmp_path / "a.pth")

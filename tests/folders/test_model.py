"""A model of one file: its part, its place, and what its configurations add to the options."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from chkpt_channels import DamagedError, UnsupportedError
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.transform.options import build_options
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copy(RGB, tmp_path / "net.pth"))


def test_a_file_is_a_model_of_one_part(copied: Path):
    with ModelFile(copied) as model:
        (part,) = model.parts
        assert (model.is_folder, model.home, model.size) == (False, copied.parent, RGB.stat().st_size)
        assert part.store is model.checkpoint
        assert model.prefix(part) == ""
        assert model.title == model.checkpoint.title
        assert model.loading("x.pth").state == "torch.load('x.pth', weights_only=True)"
    assert model.source.fd == -1


def test_standard_input_has_no_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(RGB.read_bytes())))
    with ModelFile("-") as model:
        assert (model.home, model.described(model.parts[0], strict=True).configs) == (None, ())
        assert "conv1.weight" in model.checkpoint.tensors


def test_configurations_give_hints_and_the_normalization(copied: Path):
    (copied.parent / "config.json").write_text(json.dumps({"model_type": "x", "num_channels": 3}))
    (copied.parent / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1.2, 1.3]})
    )
    with ModelFile(copied) as model:
        plain, automatic = (model.resolved(build_options(1, norm=norm)) for norm in (None, "auto"))
    assert plain.search.hints.channels == automatic.search.hints.channels == 3
    assert not plain.norm
    assert (automatic.norm.name, automatic.norm.mean, automatic.norm.std) == ("", (0.1, 0.2, 0.3), (1.0, 1.2, 1.3))


def test_only_norm_auto_needs_readable_configurations(copied: Path):
    (copied.parent / "config.json").write_text("{")
    with ModelFile(copied) as model:
        assert model.resolved(build_options(1)).search.hints.channels == 0
        with pytest.raises(DamagedError, match=r"config\.json"):
            model.resolved(build_options(1, norm="auto"))


def test_norm_auto_without_configurations(copied: Path):
    with ModelFile(copied) as model, pytest.raises(UnsupportedError, match="states mean and std"):
        model.resolved(build_options(1, norm="auto"))

"""Output of one file: what is written with it, and nothing where something fails."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from chkpt_channels import OutputExistsError, UsageError, convert
from chkpt_channels.api.output.publish import FileTarget, publish, sha256_of
from chkpt_channels.api.output.target import Settings
from chkpt_channels.core.errors import FileSystemError
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.storage.atomic import Output
from chkpt_channels.storage.source import Source
from chkpt_channels.transform.options import build_options
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"


def test_a_state_dict_is_for_another_container(tmp_path: Path):
    with ModelFile(RGB) as model, pytest.raises(UsageError, match="needs an output in another format"):
        FileTarget(model, tmp_path / "a.pth", build_options("gray"), Settings(state_dict="x"), None)


def test_a_hash_of_the_content():
    with Source(RGB) as source:
        assert sha256_of(source) == hashlib.sha256(RGB.read_bytes()).hexdigest()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One with weights and their configuration, and an empty one."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    shutil.copy(RGB, source / "net.pth")
    (source / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": 3}))
    return source, out


def test_configurations_are_published_with_the_weights(folders: tuple[Path, Path]):
    source, out = folders
    with pytest.raises(UsageError, match="would replace the configurations"):
        convert(source / "net.pth", source / "gray.pth", with_sidecars=True)
    convert(source / "net.pth", out / "gray.pth", with_sidecars=True)
    assert json.loads((out / "config.json").read_text())["num_channels"] == 1
    (out / "gray.pth").unlink()
    written = (out / "config.json").read_bytes()
    (out / "config.json").write_bytes(written + b" ")
    with pytest.raises(OutputExistsError):  # another configuration is there
        convert(source / "net.pth", out / "gray.pth", with_sidecars=True)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    (out / "config.json").write_bytes(written)
    assert convert(source / "net.pth", out / "gray.pth", with_sidecars=True).status == "converted"
    assert convert(source / "net.pth", out / "gray.pth", with_sidecars=True).status == "current"
    report = convert(source / "net.pth", out / "gray.pth", with_sidecars=True, force=True)
    assert report.result()["beside"] == [str(out / "config.json")]
    assert [(d.file, d.where, d.before, d.after) for d in report.declarations] == [
        (str(source / "config.json"), "num_channels", 3, 1)
    ]


@pytest.mark.parametrize("other", ['{"model_type": "vit", "num_channels": 3}', "no JSON", "[]"])
@pytest.mark.parametrize("force", [True, False])
def test_the_configuration_of_another_model_is_never_replaced(other: str, force: bool, folders: tuple[Path, Path]):
    source, out = folders
    (out / "config.json").write_text(other)
    with pytest.raises(OutputExistsError, match=r"config\.json: is the configuration of another model"):
        convert(source / "net.pth", out / "gray.pth", with_sidecars=True, force=force)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"config.json": other}


def test_the_configuration_of_weights_beside_the_output_is_not_replaced(folders: tuple[Path, Path]):
    """They take the channels that it states; by itself the output may be replaced, and its configuration with it."""
    source, out = folders
    convert(source / "net.pth", out / "gray.pth", with_sidecars=True)
    convert(source / "net.pth", out / "again.pth", with_sidecars=True, force=True)
    with pytest.raises(OutputExistsError, match=r"config\.json: is the configuration of again\.pth, and is not replaced"):
        convert(source / "net.pth", out / "gray.pth", 4, with_sidecars=True, force=True)
    assert json.loads((out / "config.json").read_text())["num_channels"] == 1
    (out / "again.pth").unlink()
    convert(source / "net.pth", out / "gray.pth", 4, with_sidecars=True, force=True)
    assert json.loads((out / "config.json").read_text())["num_channels"] == 4


def test_a_configuration_that_does_not_describe_the_source_stays_behind(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    shutil.copy(RGB, source / "net.pth")
    (source / "config.json").write_text(json.dumps({"model_type": "vit", "num_channels": 3, "hidden_size": 768}))
    report = convert(source / "net.pth", out / "gray.pth", with_sidecars=True)
    assert [path.name for path in out.iterdir()] == ["gray.pth"]
    assert report.beside == ()
    told = {notice.code: notice.message for notice in report.warnings}
    assert (
        told["sidecar_kept"]
        == "the configuration beside it states hidden_size 768, and no tensor is that wide: it is not written"
    )


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Path.resolve leaves loops as they are")
def test_configurations_behind_a_loop_of_links(tmp_path: Path):
    shutil.copy(RGB, tmp_path / "net.pth")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": 3}))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileSystemError, match="loop"):
        convert(tmp_path / "net.pth", tmp_path / "loop" / "gray.pth", with_sidecars=True)


def test_what_was_published_first_is_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.data").write_bytes(b"data")
    (tmp_path / "config.json").write_bytes(b"old")

    def fails(self: Output, *, first: bool = False) -> None:
        if not first:
            raise FileSystemError("refused")
        original(self, first=first)

    original = Output.publish
    monkeypatch.setattr(Output, "publish", fails)
    with Output(tmp_path / "out.bin", None) as out, pytest.raises(FileSystemError, match="refused"):
        publish(out, tmp_path, {"a.data": "out.data"}, {"config.json": b"new"}, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.data": b"data", "config.json": b"old"}

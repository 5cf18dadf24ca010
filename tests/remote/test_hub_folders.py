"""Folders and whole repositories on the hub: what a folder here gives, of one commit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import chkpt_channels
from chkpt_channels.cli.app import run
from chkpt_channels.core.errors import FileSystemError, UnsupportedError, UsageError
from tests.remote.conftest import Bucket, Zoo
from tests.remote.test_prefixes import files, small, under  # noqa: F401 # a fixture
from tests.support.stores import COMMIT


@pytest.fixture
def repository(hugging: Zoo, small: Path) -> Zoo:  # noqa: F811
    for home in (hugging.root, hugging.root / "sub" / "resnet"):
        shutil.copytree(small, home, dirs_exist_ok=True)
    return hugging


def test_it_becomes_a_folder_here(repository: Zoo, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    source = "hf://owner/repo/sub/resnet/"
    report = chkpt_channels.convert(source, tmp_path / "out", to="gray")
    assert files(tmp_path / "out") == files(small.with_name("gray"))
    assert f"{source}config.json" in {change.file for change in report.declarations}
    assert all(
        COMMIT in request.path for request in repository.server.log if "/resolve/" in request.path and request.method == "GET"
    )
    assert chkpt_channels.verify(source, tmp_path / "out").ok
    assert [conv.tensor.name for conv in chkpt_channels.inspect(source).first_convs] == ["conv1.weight"]
    monkeypatch.chdir(tmp_path)
    assert run(["convert", f"hf://owner/repo@{COMMIT}/sub/resnet/", "--to", "gray", "--output-dir", "all", "-q"]) == 0
    assert files(tmp_path / "all" / "resnet_gray") == files(small.with_name("gray"))


def test_a_repository_is_a_folder(repository: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["check", "hf://owner/repo@main", "--expect", "rgb"]) == 0
    assert "hf://owner/repo@main/sub/resnet/model.safetensors.index.json" in capsys.readouterr().out
    assert chkpt_channels.convert("hf://owner/repo", tmp_path / "out", to="gray").status == "converted"
    chkpt_channels.convert(repository.root, tmp_path / "ours", to="gray")
    assert files(tmp_path / "out") == files(tmp_path / "ours")


def test_it_becomes_one_in_a_bucket(repository: Zoo, small: Path, bucket: Bucket):  # noqa: F811
    moved = chkpt_channels.convert("hf://owner/repo/sub/resnet/", "s3://zoo/out/", to="gray").transfer
    assert under(bucket, "out/") == files(small.with_name("gray"))
    assert moved is not None
    assert moved.how == "streamed"


def test_what_is_refused(repository: Zoo, tmp_path: Path):
    with pytest.raises(UsageError, match="name a file"):
        chkpt_channels.convert("hf://owner/repo", to="gray")
    with pytest.raises(FileSystemError, match="no such repository"):
        chkpt_channels.inspect("hf://owner/none")
    with pytest.raises(FileSystemError, match="no such revision"):
        chkpt_channels.inspect("hf://owner/repo@v9")
    with pytest.raises(FileSystemError, match="no such file"):
        chkpt_channels.inspect("hf://owner/repo/none/")
    with pytest.raises(UnsupportedError, match="outputs are written to files and to s3"):
        chkpt_channels.convert("hf://owner/repo", "hf://owner/other/", to="gray")
    assert not list(tmp_path.glob("out*"))

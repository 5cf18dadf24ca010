"""Output of a model folder: every file is in the draft, which is published by one rename or vanishes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import FileSystemError, convert
from chkpt_channels.api.output.folder import FolderTarget
from chkpt_channels.api.output.target import Settings
from chkpt_channels.core.errors import OutputExistsError, UsageError
from chkpt_channels.folders.model_folder import ModelFolder
from chkpt_channels.folders.planning import plan_model
from chkpt_channels.transform.options import build_options

GRAY = build_options("gray")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "sub").mkdir(parents=True)
    safetensors.numpy.save_file({"conv1.weight": np.ones((8, 3, 7, 7), np.float32)}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": 3}))
    (path / "sub" / "notes.txt").write_text("notes")
    return path


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_it_appears_whole_and_counts_its_bytes(folder: Path):
    counts: list[tuple[int, int]] = []
    with (
        ModelFolder(folder) as model,
        FolderTarget(model, None, GRAY, Settings(), lambda more, total: counts.append((more, total))) as target,
    ):
        planned = plan_model(model, GRAY)
        target.fill(planned)
        assert not target.path.exists()
        written = target.publish(planned)
    out = folder.parent / "model_gray"
    assert target.path == out
    assert files(out).keys() == files(folder).keys()
    assert files(out)["sub/notes.txt"] == b"notes"
    assert json.loads(files(out)["config.json"])["num_channels"] == 1
    assert (written.status == "converted", written.output.bytes) == (True, sum(map(len, files(out).values())))
    assert {total for _, total in counts} == {sum(map(len, files(folder).values()))}


def test_it_is_not_named_like_a_file(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="named like a file") as refused:
        convert(folder, tmp_path / "out.safetensors", "gray")
    assert refused.value.hint == f"name it out, or convert one of the files in {folder}"
    assert list(tmp_path.iterdir()) == [folder]


def test_an_unpublished_draft_is_removed(folder: Path, tmp_path: Path):
    with ModelFolder(folder) as model, FolderTarget(model, tmp_path / "out", GRAY, Settings(), None) as target:
        target.fill(plan_model(model, GRAY))
        assert len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("hard_link", [True, False])
def test_files_that_do_not_change_can_be_linked(folder: Path, tmp_path: Path, hard_link: bool):
    settings = Settings(hard_link=hard_link)
    with ModelFolder(folder) as model, FolderTarget(model, tmp_path / "out", GRAY, settings, None) as target:
        planned = plan_model(model, GRAY)
        target.fill(planned)
        target.publish(planned)
    same = os.path.samefile(folder / "sub" / "notes.txt", tmp_path / "out" / "sub" / "notes.txt")
    assert same is hard_link
    assert not os.path.samefile(folder / "config.json", tmp_path / "out" / "config.json")


@pytest.mark.parametrize("hard_link", [True, False])
def test_a_file_that_becomes_a_link_is_not_followed(folder: Path, tmp_path: Path, hard_link: bool):
    secret, notes = tmp_path / "secret", folder / "sub" / "notes.txt"
    secret.write_text("secret")
    settings = Settings(hard_link=hard_link)
    with ModelFolder(folder) as model, FolderTarget(model, tmp_path / "out", GRAY, settings, None) as target:
        planned = plan_model(model, GRAY)
        notes.unlink()
        notes.symlink_to(secret)
        with pytest.raises(FileSystemError, match=r"notes\.txt: was replaced while the folder was read"):
            target.fill(planned)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "secret"]


def test_a_folder_that_is_there_already_is_compared_and_never_replaced(folder: Path):
    out = folder.parent / "out"
    convert(folder, out, "gray")
    before = files(out)
    assert convert(folder, out, "gray").status == "current"
    assert files(out) == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    for change in ("model.safetensors", "config.json", "sub/notes.txt"):
        (out / change).write_bytes(before[change][:-1] + b"?")
        with pytest.raises(OutputExistsError, match="exists already"):
            convert(folder, out, "gray")
        (out / change).write_bytes(before[change])
    (out / "more.txt").write_text("of somebody")
    with pytest.raises(OutputExistsError, match="exists already"):
        convert(folder, out, "gray")

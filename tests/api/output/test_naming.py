"""Names of outputs: default names, suffixes that fit the format, hashes in names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from chkpt_channels import FileSystemError, UsageError
from chkpt_channels.api.output.naming import (
    default_output,
    derived_path,
    other_container,
    output_path,
    stated_hash,
    with_hash,
)
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.transform.options import build_options
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
WEIGHTS = FIXTURES / "keras_h5" / "plain.weights.h5"
GRAY = build_options("gray")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.pth", "a_gray.pth"),
        ("a.pth.tar", "a_gray.pth.tar"),
        ("a.tar", "a_gray.tar"),
        ("a.weights.h5", "a_gray.weights.h5"),
        ("a.v2.onnx", "a.v2_gray.onnx"),
        ("a", "a_gray"),
    ],
)
def test_default_names(name: str, expected: str):
    assert default_output(Path("x") / name, "gray") == Path("x") / expected


def test_the_default_name_of_a_folder_has_no_suffix(tmp_path: Path):
    (tmp_path / "resnet.v2").mkdir()
    assert default_output(tmp_path / "resnet.v2", "rgb") == tmp_path / "resnet.v2_rgb"
    assert default_output(tmp_path / "resnet.v2" / "..", "rgb").name == f"{tmp_path.name}_rgb"


def test_the_word_is_that_of_the_target():
    assert derived_path("a.pth", None, {}) == Path("a_gray.pth")
    assert derived_path("a.pth", None, {"select": "0,1"}) == Path("a_2ch.pth")
    assert derived_path("a.pth", "bgr", {}) == Path("a_bgr.pth")
    assert derived_path("s3://zoo/b/a.pth.tar", "bgr", {}) == "s3://zoo/b/a_bgr.pth.tar"
    assert derived_path("https://zoo.org/b/a.pth", "bgr", {}) == Path("a_bgr.pth")


@pytest.mark.parametrize(
    ("name", "digits"),
    [("a-0123abcd.pth", "0123abcd"), ("a-0123abc.pth", ""), ("a.pth", ""), ("a-0123abcd_gray.pth", ""), ("a-GHIJKLMN.pth", "")],
)
def test_a_hash_is_what_a_name_ends_in(name: str, digits: str):
    assert stated_hash(Path(name)) == digits


def test_like_shows_the_target(tmp_path: Path):
    """Both files are opened for the name; without a difference there is no target to name."""
    shutil.copy(FIXTURES / "torch_zip" / "state_dict.pth", tmp_path / "a.pth")
    like = FIXTURES / "torch_zip" / "state_dict_gray.pth"
    assert derived_path(tmp_path / "a.pth", None, {"like": like}) == tmp_path / "a_gray.pth"
    assert derived_path("nothing.pth", "rgb", {"like": like}) == Path("nothing_rgb.pth")
    assert derived_path(tmp_path / "a.pth", None, {"like": tmp_path / "a.pth"}) == tmp_path / "a_like.pth"


def test_a_new_hash_takes_the_old_ones_place():
    digest = "fedcba9876543210"
    assert with_hash(Path("a-0123abcd_gray.pth"), digest).name == "a_gray-fedcba98.pth"
    assert with_hash(Path("a.pth.tar"), digest).name == "a-fedcba98.pth.tar"


def test_where_a_result_goes(tmp_path: Path):
    source = Path(shutil.copy(RGB, tmp_path / "net.pth"))
    with ModelFile(source) as model:
        assert output_path(model, None, GRAY) == tmp_path / "net_gray.pth"
        assert output_path(model, "-", GRAY) == Path("-")
        assert output_path(model, "x.bin", GRAY) == Path("x.bin")
        assert output_path(model, "x.safetensors", GRAY) == Path("x.safetensors")
        assert other_container(model.format, Path("x.safetensors")).name == "safetensors"
        assert other_container(model.format, Path("x.pth")) is None
        with pytest.raises(UsageError, match="named like another format") as caught:
            output_path(model, "x.onnx", GRAY)
    assert caught.value.hint == "name it x.pth"


def test_an_ending_by_which_a_library_knows_its_files():
    with ModelFile(WEIGHTS) as model:
        assert output_path(model, "x.weights.h5", GRAY) == Path("x.weights.h5")
        with pytest.raises(UsageError, match="would be read as another kind of") as caught:
            output_path(model, "x.h5", GRAY)
    assert caught.value.hint == "name it x.weights.h5"


@pytest.mark.parametrize(
    ("source", "name", "hint"),
    [
        ("keras_zip/functional.keras", "x", "name it x.keras"),
        ("keras_zip/functional.keras", "x.v2", "name it x.v2.keras"),
        ("keras_h5/functional.h5", "x", "name it x.h5"),
        ("keras_h5/legacy_weights.h5", "x", "name it x.h5"),
        ("keras_h5/plain.weights.h5", "x", "name it x.weights.h5"),
    ],
)
def test_a_name_under_which_keras_reads_no_file(source: str, name: str, hint: str):
    with ModelFile(FIXTURES / source) as model:
        with pytest.raises(UsageError, match=f"the output {name} would ") as caught:
            output_path(model, name, GRAY)
        assert caught.value.hint == hint
        assert (model.loading(name).statement, "rename it" in model.loading(name).remark) == ("", True)
        named = str(output_path(model, hint.removeprefix("name it "), GRAY))
        assert named in model.loading(named).statement


@pytest.mark.parametrize("source", ["torch_zip/state_dict.pth", "onnx/plain_ts.onnx", "safetensors/model.safetensors"])
def test_other_files_are_read_under_any_name(source: str):
    with ModelFile(FIXTURES / source) as model:
        assert output_path(model, "x", GRAY) == Path("x")


def test_a_current_folder_that_is_gone_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileSystemError, match="no such file"):
        default_output(Path(), "gray")

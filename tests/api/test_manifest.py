"""chkpt-channels.toml: a list of conversions, read strictly, paths relative to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import FileSystemError, UsageError, fleet, verify
from chkpt_channels.api.manifest import Job, read
from chkpt_channels.cli.app import run
from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import OPTIONS
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"


def written(folder: Path, text: str) -> Path:
    path = folder / "chkpt-channels.toml"
    path.write_text(text)
    return path


def test_what_it_says(tmp_path: Path):
    text = """
    [[convert]]
    src = "a.pth"
    dst = "sub/b.pth"
    to = "gray"
    norm = "imagenet"
    input-range = 255
    layer = "conv1"
    from = 3
    new-mean = 0.45
    matrix = "m.csv"

    [[convert]]
    src = "a.pth"
    to = 4
    layers = ["x", "y"]
    set_hparams = true
    """
    first, second = read(written(tmp_path, text))
    words = {
        "norm": "imagenet",
        "input_range": 255,
        "layers": ["conv1"],
        "from_channels": 3,
        "new_mean": [0.45],
        "matrix": str(tmp_path / "m.csv"),
    }
    source, output = str(tmp_path / "a.pth"), str(tmp_path / "sub" / "b.pth")
    file = tmp_path / "chkpt-channels.toml"
    assert first == Job(source, output, "gray", words, stated=f"{file}: [[convert]] 1")  # type: ignore[arg-type]
    options = {"layers": ["x", "y"], "set_hparams": True}
    assert second == Job(source, None, 4, options, stated=f"{file}: [[convert]] 2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[convert", "is not TOML"),
        ("src = 'a'", "must hold"),
        ("[convert]\nsrc = 'a'", "must hold"),
        ("convert = ['a']", "must hold"),
        ("[[convert]]\nsrc='a'\n[other]\nx=1", "must hold"),
        ("[[convert]]\ndst = 'b'", r"\[\[convert\]\] 1: src and dst must be paths"),
        ("[[convert]]\nsrc = 1", "src and dst must be paths"),
        ("[[convert]]\nsrc = 'a'\ndst = 1", "src and dst must be paths"),
        ("[[convert]]\nsrc = 'a'\n[[convert]]\nsrc = 'a'\nmetod = 'sum'", r"\[\[convert\]\] 2: 'metod' is not an option"),
        ("[[convert]]\nsrc = 'a'\nforce = true", "'force' is not an option"),
    ],
)
def test_what_it_does_not_understand(tmp_path: Path, text: str, told: str):
    with pytest.raises(UsageError, match=told):
        read(written(tmp_path, text))


@pytest.mark.parametrize(
    ("key", "meant"),
    [("input_rage", "input-range"), ("output_dir", 'dst = "FILE", or "FOLDER/"'), ("output", 'dst = "FILE", or "FOLDER/"')],
)
def test_a_word_that_is_nearly_one(tmp_path: Path, key: str, meant: str):
    with pytest.raises(UsageError) as caught:
        read(written(tmp_path, f"[[convert]]\nsrc = 'a'\n{key} = 1"))
    assert caught.value.hint == meant


def test_bytes_that_are_no_text(tmp_path: Path):
    path = tmp_path / "chkpt-channels.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        read(path)


def test_none(tmp_path: Path):
    with pytest.raises(FileSystemError):
        read(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    "value",
    [
        "to = []",
        "to = 1.5",
        "to = true",
        "norm = 3",
        "mean = {}",
        "layer = 3",
        "layer = [3]",
        "from = 'x'",
        "from = true",
        "input-range = 'x'",
        "strict = 1",
        "method = ['sum']",
        "set-hparams = 'yes'",
        "like = 3",
        "like = {}",
        "mean = ['x']",
        "select = [1.5]",
    ],
)
def test_values_of_a_wrong_kind_are_wrong_usage(tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]):
    shutil.copy(RGB, tmp_path / "a.pth")
    path = written(tmp_path, f"[[convert]]\nsrc = 'a.pth'\ndst = 'b.pth'\n{value}\n")
    assert run(["convert", "--manifest", str(path)]) == 2, capsys.readouterr()
    assert "a bug" not in capsys.readouterr().err
    assert not (tmp_path / "b.pth").exists()


def test_like_is_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(RGB, tmp_path / "a.pth")
    shutil.copy(RGB.with_name("state_dict_gray.pth"), tmp_path / "like.pth")
    path = written(tmp_path, "[[convert]]\nsrc = 'a.pth'\nlike = 'like.pth'\n")
    (job,) = read(path)
    assert (job.to, job.options) == (None, {"like": str(tmp_path / "like.pth")})
    monkeypatch.chdir("/")
    assert run(["convert", "--manifest", str(path)]) == 0
    assert run(["convert", "--check", "--manifest", str(path)]) == 0
    assert verify(tmp_path / "a.pth", tmp_path / "a_gray.pth", "gray").ok


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    shutil.copy(RGB, tmp_path / "a b é.pth")
    tables = [("gray.pth", "'gray'"), ("four.pth", "4")]
    text = "".join(f"[[convert]]\nsrc = 'a b é.pth'\ndst = '{dst}'\nto = {to}\n" for dst, to in tables)
    path = written(tmp_path, text)
    monkeypatch.chdir("/")  # paths are relative to the file
    check = ["convert", "--check", "--manifest", str(path)]
    assert run(check) == 1
    assert capsys.readouterr().out.count("is missing") == 2
    assert run(["convert", "--manifest", str(path)]) == 0
    assert verify(tmp_path / "a b é.pth", tmp_path / "gray.pth", "gray").ok
    assert run(check) == 0
    shutil.copy(tmp_path / "gray.pth", tmp_path / "four.pth")
    assert run(check) == 1
    assert run([*check, "--to", "gray"]) == 2
    assert run([*check, str(RGB)]) == 2


def test_what_is_wrong_in_a_table_is_told_with_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copy(RGB, tmp_path / "a.pth")
    tables = ("to = 'gry'", "to = 0", "to = 4\nmethod = 'sum'", "to = 1\nnorm = 'imagnet'", "to = 'gray'\nluma = 'x'")
    path = str(written(tmp_path, "".join(f"[[convert]]\nsrc = 'a.pth'\n{table}\n" for table in tables)))
    for command in (["convert", "--manifest", path], ["convert", "--check", "--manifest", path]):
        assert run(command) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert [line.startswith(f"error: {path}: [[convert]] {i}: --") for i, line in enumerate(lines, 1)] == [True] * len(tables)


def test_without_an_output_it_is_beside_the_source(tmp_path: Path):
    shutil.copy(RGB, tmp_path / "a.pth")
    path: Any = written(tmp_path, "[[convert]]\nsrc = 'a.pth'\nto = 'gray'\n")
    assert run(["convert", "--manifest", str(path)]) == 0
    assert (tmp_path / "a_gray.pth").exists()
    assert run(["convert", "--check", "--manifest", str(path)]) == 0


VALUES = (True, "x", ["x"], 3, 0.5, [[1, 0.5]])


def test_what_is_wrong_with_one_file_for_a_folder_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copy(RGB, tmp_path / "a.pth")
    tables = ['src = "a.pth"\ndst = "out/"\nto = "purple"', 'src = "a.pth"\ndst = "out/"\nto = "gray"']
    file = written(tmp_path, "".join(f"[[convert]]\n{table}\n" for table in tables))
    assert run(["convert", "--manifest", str(file)]) == 2
    assert "[[convert]] 1: --to 'purple' is not a target" in capsys.readouterr().err
    assert (tmp_path / "out" / "a_gray.pth").exists()


def test_two_files_that_would_get_one_name_in_a_folder(tmp_path: Path):
    for home in ("x", "y"):
        (tmp_path / home).mkdir()
        shutil.copy(RGB, tmp_path / home / "a.pth")
    table = '[[convert]]\nsrc = "{}/a.pth"\ndst = "out/"\nto = "gray"\n'
    with pytest.raises(UsageError, match=r"x/a\.pth and .*y/a\.pth would both become .*out/a_gray\.pth"):
        read(written(tmp_path, table.format("x") + table.format("y")))
    with pytest.raises(UsageError, match="would both become"):
        read(written(tmp_path, table.format("*")))


def test_every_option_takes_a_value_from_a_document():
    assert all(any(map(option.takes, VALUES)) for option in OPTIONS)


@pytest.mark.parametrize("option", OPTIONS, ids=[option.name for option in OPTIONS])
def test_every_option_by_its_long_name(option: Option, tmp_path: Path):
    value = next(filter(option.takes, VALUES))
    for name in (option.long_name, option.name, option.name.replace("_", "-")):
        (tmp_path / "m.toml").write_text(f'[[convert]]\nsrc = "a.pth"\nto = "gray"\n{name} = {json.dumps(value)}\n')
        (job,) = read(tmp_path / "m.toml")
        assert list(job.options) == [option.name]


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "{b=" * 5000 + "1" + "}" * 5000,
        "[" + "a." * 50_000 + "a]",
        "a." * 50_000 + "a = 1",
    ],
)
def test_a_manifest_that_is_nested_too_deeply(text: str, tmp_path: Path):
    with pytest.raises(UsageError, match="is nested too deeply"):
        read(written(tmp_path, text))


def test_a_pattern_into_a_bucket(tmp_path: Path):
    (tmp_path / "a.pth").touch()
    (tmp_path / "m.toml").write_text('[[convert]]\nsrc = "*.pth"\ndst = "s3://zoo/gray/"\nto = "gray"\n')
    (job,) = fleet.rows(tmp_path / "m.toml")
    assert (job.dst, job.makes_folder) == ("s3://zoo/gray/a_gray.pth", False)  # no folder "s3:" is made here


def test_an_output_that_ends_with_a_slash_is_a_folder_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As with -o, whether one file or a pattern is converted; a model folder becomes the folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(RGB, "a.pth")
    (tmp_path / "model").mkdir()
    text = """
    [[convert]]
    src = "a.pth"
    dst = "out/"
    to = "gray"

    [[convert]]
    src = "model"
    dst = "other/"
    to = "gray"
    """
    file, folder = read(written(tmp_path, text))
    assert (file.dst, file.makes_folder) == (str(tmp_path / "out" / "a_gray.pth"), True)
    assert (folder.dst, folder.makes_folder) == (f"{tmp_path / 'other'}/", False)
    assert run(["convert", "--manifest", "chkpt-channels.toml"]) != 0  # the folder holds no model
    assert verify("a.pth", "out/a_gray.pth").ok

"""The user's own matrix: rows, or a .npy, .csv or .json file of finite numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import DamagedError, FileSystemError, UsageError
from chkpt_channels.transform.mixing.matrix_file import parse_matrix

ROWS = ((0.5, 1.0), (0.25, -2.0), (1e-3, 0.0))


def npy(path: Path) -> None:
    np.save(path, np.array(ROWS))


WRITERS = {
    "a.npy": npy,
    "a.NPY": lambda path: np.save(path.open("wb"), np.array(ROWS)),
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.csv": lambda path: path.write_text("0.5,1\n\n0.25,-2\n1e-3,0\n"),
    "bom.csv": lambda path: path.write_bytes("\ufeff0.5,1\n0.25,-2\n0.001,0\n".encode()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files(name: str, tmp_path: Path):
    WRITERS[name](tmp_path / name)
    assert parse_matrix(tmp_path / name) == ROWS
    assert parse_matrix(str(tmp_path / name)) == ROWS


def test_rows():
    assert parse_matrix([[1], [2]]) == ((1.0,), (2.0,))
    assert parse_matrix(np.array(ROWS)) == ROWS


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "a row for each old channel"),
        ([[]], "a row for each old channel"),
        ([[1, 2], [3]], "a row for each old channel"),
        ([[float("nan")]], "finite numbers"),
        ([[float("-inf")]], "finite numbers"),
        ([["x"]], "rows of numbers"),
        ([["1"]], "rows of numbers"),
        ([[b"1"]], "rows of numbers"),
        ([[True]], "rows of numbers"),
        ([[10**400]], "rows of numbers"),
        (np.array([["1"]]), "rows of numbers"),
        (np.array([[True]]), "rows of numbers"),
        (np.array([[1j]]), "rows of numbers"),
        ([1, 2], "rows of numbers"),
    ],
)
def test_what_is_no_matrix(rows: Any, words: str):
    with pytest.raises(UsageError, match=words) as caught:
        parse_matrix(rows)
    assert caught.value.file == ""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"1", "must be a .npy, .csv or .json file"),
        ("a.csv", b"1,x", "cannot be read as .csv"),
        ("a.csv", b"\xff", "cannot be read as .csv"),
        ("a.json", b'[["1"], [true]]', "rows of numbers"),
        ("a.json", b"[[1", "cannot be read as .json"),
        ("a.json", b"[" * 100_000, "cannot be read as .json|rows of numbers"),
        ("a.npy", b"", "cannot be read as .npy"),
        ("a.npy", b"no array", "cannot be read as .npy"),
    ],
)
def test_files_that_are_refused(name: str, content: bytes, words: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        parse_matrix(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"cannot be read as \.npy"):
        parse_matrix(tmp_path / "a.npy")


def test_a_file_that_is_missing_or_too_large(tmp_path: Path):
    with pytest.raises(FileSystemError, match="no such file"):
        parse_matrix(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open("wb") as file:
        file.truncate((4 << 20) + 1)
    with pytest.raises(DamagedError, match="4194305 bytes; 4194304 are the most"):
        parse_matrix(tmp_path / "a.csv")


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_length_is_compared_before_an_array_is_made(version: tuple[int, int], tmp_path: Path):
    with (tmp_path / "a.npy").open("wb") as file:
        write = np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0
        write(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
    with pytest.raises(UsageError, match=r"a\.npy: --matrix cannot be read as \.npy: its header says \[1000000000000, 3\]"):
        parse_matrix(tmp_path / "a.npy")

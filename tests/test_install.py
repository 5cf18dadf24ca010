"""What stands in pyproject.toml for users and developers, and where the package does not run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from tests.support.lowest import ROOT, lowest, python

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_each_dependency_has_a_floor_and_no_cap():
    assert lowest().keys() >= {"numpy", "ml_dtypes", "safetensors", "h5py", "onnx", "typer", "rich", "matplotlib"}


def test_a_cap_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.support.lowest.requirements", lambda: ["numpy>=1.26,<3"])
    with pytest.raises(ValueError, match=re.escape("'numpy>=1.26,<3' is not of the form name>=version")):
        lowest()


def test_extras_are_for_users_and_groups_for_developers():
    assert PYPROJECT["project"]["optional-dependencies"].keys() == {"plot", "dask", "remote", "s3", "hf"}
    assert set(re.findall(r"--group (\w+)", MAKEFILE)) == PYPROJECT["dependency-groups"].keys()
    assert set(re.findall(r"'\.\[([\w,]+)\]'", MAKEFILE)) <= {"plot", "s3,hf"}


def test_the_lowest_python_is_one_that_is_named():
    assert f"Programming Language :: Python :: {python()}" in PYPROJECT["project"]["classifiers"]


def test_windows_is_told_what_to_do_in_one_line():
    code = "import sys; sys.platform = 'win32'; import chkpt_channels"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: chkpt-channels runs on Linux and macOS; on Windows install it inside WSL, which `wsl --install` sets up"
    )

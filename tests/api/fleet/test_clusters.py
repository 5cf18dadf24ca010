"""Addresses of clusters; tests/frameworks/test_dask.py has one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chkpt_channels import UnsupportedError, UsageError, fleet
from chkpt_channels.cli.app import run
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"


@pytest.mark.parametrize("address", ["dask://", "dask://host", "ray://host:1", "host:8786", "dask:host:1", ""])
def test_what_is_no_address(address: str):
    with pytest.raises(UsageError, match=r"--on takes dask://HOST:PORT"), fleet.executor_on(address):
        raise AssertionError


def test_none_is_none():
    with fleet.executor_on(None) as executor:
        assert executor is None


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UnsupportedError, match="needs Dask") as error, fleet.executor_on("dask://127.0.0.1:8786"):
        raise AssertionError
    assert error.value.hint == "pip install 'chkpt-channels[dask]'"


def test_the_command_names_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run(["convert", str(RGB), "--to", "gray", "-o", str(tmp_path / "x.pth"), "--on", "dask://127.0.0.1:8786"]) == 4
    assert "needs Dask" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

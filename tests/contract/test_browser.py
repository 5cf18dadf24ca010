"""What Python in a browser lacks is switched off here, one by one and together: what is written stays the same, byte for byte."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from chkpt_channels import FileSystemError, OutputExistsError, convert, patch
from chkpt_channels.storage import atomic, stream_copy
from chkpt_channels.storage.source import BROWSER
from tests.support.files import FIXTURES, smallest

FORMATS = sorted(path.parent.name for path in FIXTURES.glob("*/expected.json"))


def missing(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("can't start new thread")


def without_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("preadv", "link", "pipe2", "copy_file_range", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(atomic, "UNNAMED", 0)


def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", missing)
    monkeypatch.setattr(os, "fork", missing)


def without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("onnx", "safetensors")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("onnx", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets everything be as in a browser, once called."""

    def switch() -> None:
        monkeypatch.setattr(sys, "platform", BROWSER)
        for switched in (without_calls, without_threads, without_libraries):
            switched(monkeypatch)

    return switch


@pytest.mark.parametrize("form", FORMATS)
def test_a_browser_writes_the_same_bytes(form: str, tmp_path: Path, browser: Callable[[], None]):
    path = smallest(form)
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
    expected = convert(path, there / path.name, "gray")
    browser()
    report = convert(path, here / path.name, "gray")
    written = {file.name: file.read_bytes() for file in here.iterdir()}
    assert written == {file.name: file.read_bytes() for file in there.iterdir()}
    assert report.kernels == expected.kernels
    assert patch(path, "gray", name=path.name).size == len(written[path.name])


def test_nothing_is_overwritten_there(tmp_path: Path, browser: Callable[[], None]):
    path, out = smallest("torch_zip"), tmp_path / "out.pth"
    browser()
    out.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        convert(path, out, "gray")
    assert out.read_bytes() == b"mine"
    convert(path, out, "gray", force=True)
    with atomic.Output(tmp_path / "new.pth", None) as late:
        (tmp_path / "new.pth").write_bytes(b"theirs")
        with pytest.raises(OutputExistsError):
            late.publish()
    assert (tmp_path / "new.pth").read_bytes() == b"theirs"


def test_large_files_go_by_blocks_without_threads(tmp_path: Path, browser: Callable[[], None], monkeypatch: pytest.MonkeyPatch):
    path = smallest("torch_zip")
    convert(path, tmp_path / "a.pth", "gray")
    browser()
    monkeypatch.setattr(stream_copy, "BLOCK_BYTES", 4096)
    convert(path, tmp_path / "b.pth", "gray")
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize("switch", [without_threads, without_libraries])
def test_elsewhere_the_same_is_an_error(
    switch: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A machine that has no thread left, and a library that is not installed, are told."""
    switch(monkeypatch)
    monkeypatch.setattr(stream_copy, "THREADS_FROM_BYTES", 0)
    with pytest.raises((FileSystemError, ModuleNotFoundError), match=r"can't start new thread|onnx"):
        convert(smallest("onnx"), tmp_path / "out.onnx", "gray")
    assert not list(tmp_path.iterdir())

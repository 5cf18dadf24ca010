"""What files that are no checkpoint turn out to be, and what to do about them."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chkpt_channels import ChkptChannelsError, DamagedError, UnknownFormatError, UnsupportedError, convert, inspect
from tests.support.files import FIXTURES, snapshot

RGB = (FIXTURES / "torch_zip" / "state_dict.pth").read_bytes()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 102530333\n"


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    return out.getvalue()


def zipped_text() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    return out.getvalue()


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, RGB)
    return out.getvalue()


def array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.ones(3))
    return out.getvalue()


LOOKS: dict[str, tuple[bytes, type[ChkptChannelsError], str, str]] = {
    "empty": (b"", UnknownFormatError, r"is empty \(0 bytes\)", "download or copy it again"),
    "Git-LFS": (POINTER, UnknownFormatError, "is a Git-LFS pointer to 102,530,333 bytes", "git lfs pull --include="),
    "Git-LFS, cut": (POINTER[:60], UnknownFormatError, "is a Git-LFS pointer", "git lfs pull"),
    "HTML": (
        b"<!DOCTYPE html>\n<html><body>Sign in</body></html>",
        UnknownFormatError,
        "is an HTML page",
        "download the file itself",
    ),
    "HTML, in capitals": (b"\n  <HTML>", UnknownFormatError, "is an HTML page", "download"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", UnknownFormatError, "is an HTML page", "download"),
    "zeros": (b"\0" * 5000, UnknownFormatError, "nothing but zeros", ""),
    "noise": (
        bytes(range(7, 250)) * 9,
        UnknownFormatError,
        "is not a checkpoint of a known format",
        "reads Flax, Keras, NumPy, ONNX, PyTorch and safetensors files",
    ),
    "text": (b"Not found\n", UnknownFormatError, "is not a checkpoint of a known format", ""),
    "one byte": (b"P", UnknownFormatError, "is not a checkpoint of a known format", ""),
    "JSON": (b'{"architectures": ["ResNet"]}', UnsupportedError, "is a JSON file", ""),
    "JSON list": (b" [1, 2, 3, 4, 5, 6, 7, 8, 9]", UnsupportedError, "is a JSON file", ""),
    "gzip": (gzip.compress(RGB), UnsupportedError, "is a gzip file", "gunzip"),
    "xz": (b"\xfd7zXZ\0" + b"x" * 50, UnsupportedError, "is a compressed file", "unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"x" * 50, UnsupportedError, "is a compressed file", "unpack"),
    "bzip2": (b"BZh91AY" + b"x" * 50, UnsupportedError, "is a compressed file", "unpack"),
    "tar": (tar(), UnsupportedError, "is a tar archive", "unpack it"),
    "GGUF": (b"GGUF\3\0\0\0" + b"\1" * 50, UnsupportedError, "is a GGUF file", ""),
    "TFLite": (b"\x1c\0\0\0TFL3" + b"\1" * 50, UnsupportedError, "is a TFLite model", ""),
    "numpy": (array(), UnsupportedError, "is a numpy array", ""),
    "zip": (zipped_text(), UnsupportedError, "is a zip archive, but not a checkpoint", ""),
    "a zipped checkpoint": (zipped("a/net.pth"), UnsupportedError, "is a zip archive around a/net.pth", "a/net.pth"),
    "two of them": (zipped("a.pth", "b.pt", "c.txt"), UnsupportedError, "around a.pth and 1 more", "unzip "),
    "torch.export": (zipped("net/archive_format", "net/w.pt"), UnsupportedError, "torch.export archive", "torch.export.load("),
    "torch.export, older": (zipped("serialized_exported_program.json"), UnsupportedError, "torch.export archive", ""),
    "arrays of protocol 0": (pickle.dumps({"w": np.ones(99)}, 0), UnsupportedError, "its weights are numpy arrays", ""),
    "a cut pickle": (
        pickle.dumps({"w": "numpy." * 99, "v": 1}, 2)[:80],
        DamagedError,
        "is cut off: its pickle does not end",
        "download or copy it again",
    ),
    "pickle": (pickle.dumps({f"key {i}": i for i in range(999)}, 4), UnsupportedError, "is a Python pickle", ""),
}


@pytest.mark.parametrize(("data", "kind", "words", "hint"), LOOKS.values(), ids=LOOKS)
def test_it_says_what_it_is(
    data: bytes, kind: type[ChkptChannelsError], words: str, hint: str, put: Callable[..., Path], tmp_path: Path
):
    path = put(data)
    with pytest.raises(ChkptChannelsError, match=words) as caught:
        convert(path, tmp_path / "out.pth")
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{path}: ")
    assert hint in caught.value.hint
    with pytest.raises(kind):
        inspect(path)
    assert snapshot(tmp_path).keys() == {"a.pth"}


@pytest.mark.parametrize("name", ["state_dict.pth", "scripted.pt"])
@pytest.mark.parametrize("size", [4, 100, 1000, 10_000])
def test_a_cut_checkpoint_is_not_taken_for_another_archive(name: str, size: int, put: Callable[..., Path]):
    """Its directory is missing: that is damage, and no sound file of a foreign format."""
    with pytest.raises(ChkptChannelsError) as caught:
        inspect(put((FIXTURES / "torch_zip" / name).read_bytes()[:size]))
    assert caught.value.exit_code == 3

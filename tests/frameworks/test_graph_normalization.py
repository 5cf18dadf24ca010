"""Pipelines folded into graphs: onnxruntime and Keras say that the constant went where it belongs."""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")  # before keras is imported, by whichever test

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from chkpt_channels import UnsupportedError, convert, verify
from chkpt_channels.transform.mixing.normalization import NORMS

MEAN, STD = (np.array(v).reshape(3, 1, 1) for v in NORMS["imagenet"][:2])
CHANCE = np.random.default_rng(0)


def weights(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(CHANCE.random(shape).astype(np.float32) + 0.1, name) for name, shape in shapes.items()]


def saved(path: Path, nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto], filters: int = 8) -> Path:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", filters, None, None])
    graph = helper.make_graph(nodes, "g", [image], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def node(op: str, inputs: str, output: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


BN = node("BatchNormalization", "a gamma beta mean var", "y")
STATISTICS = {"gamma": (8,), "beta": (8,), "mean": (8,), "var": (8,)}
SHARED = [node("Conv", "image w b", "a"), node("Relu", "a", "r"), node("Conv", "r w2 b", "y")]
GRAPHS = {
    "bias": ([node("Conv", "image w b", "y")], {"w": (8, 3, 3, 3), "b": (8,)}),
    "no bias": ([node("Conv", "image w", "a"), node("Clip", "a", "y")], {"w": (8, 3, 3, 3)}),
    "BatchNorm": ([node("Conv", "image w", "a"), BN], {"w": (8, 3, 3, 3), **STATISTICS}),
    "BatchNorm behind a Relu": (
        [node("Conv", "image w", "c"), node("Relu", "c", "a"), BN],
        {"w": (8, 3, 3, 3), **STATISTICS},
    ),
    "a bias that others share": (SHARED, {"w": (8, 3, 3, 3), "b": (8,), "w2": (8, 8, 3, 3)}),
    "two users": (
        [node("Conv", "image w", "a"), node("Conv", "image w", "c", strides=[1, 1]), node("Mul", "a c", "y")],
        {"w": (8, 3, 3, 3)},
    ),
    "a kernel of a BatchNorm that is an output's too": (
        [node("Conv", "image w", "a"), node("BatchNormalization", "a gamma beta mean var", "d"), node("Mul", "a d", "y")],
        {"w": (8, 3, 3, 3), **STATISTICS},
    ),
    "patches": ([node("Conv", "image w b", "y", strides=[4, 4])], {"w": (8, 3, 4, 4), "b": (8,)}),
}


def run(path: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image.astype(np.float32)})[0]


@pytest.mark.parametrize("words", [{}, {"input_range": 255}], ids=["folded", "bytes"])
@pytest.mark.parametrize("to", ["gray", "rgb"])
@pytest.mark.parametrize(("nodes", "stored"), GRAPHS.values(), ids=GRAPHS)
def test_onnxruntime_agrees(nodes: list, stored: dict, to: str, words: dict, tmp_path: Path):
    if to == "rgb":
        words = {"input_range": 255}  # otherwise nothing changes
    before, after = saved(tmp_path / "a.onnx", nodes, weights(**stored)), tmp_path / "b.onnx"
    report = convert(before, after, to=to, norm="imagenet", **words)
    mean, std, top = report.pipeline
    raw = CHANCE.random((1, report.in_channels[1], 16, 16))
    fed = top * (raw - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    expected, found = run(before, (np.broadcast_to(raw, (1, 3, 16, 16)) - MEAN) / STD), run(after, fed)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    assert verify(before, after, to=to, norm="imagenet", **words).ok


def test_a_missing_or_wrong_new_bias_is_seen(tmp_path: Path):
    nodes, stored = GRAPHS["no bias"]
    before, after = saved(tmp_path / "a.onnx", nodes, weights(**stored)), tmp_path / "b.onnx"
    convert(before, after, norm="imagenet")
    model = onnx.load(after)
    (bias,) = [t for t in model.graph.initializer if len(t.dims) == 1]
    wrong = numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name)
    bias.CopyFrom(wrong)
    onnx.save(model, tmp_path / "wrong.onnx")
    model.graph.initializer.remove(bias)
    del model.graph.node[0].input[2]
    onnx.save(model, tmp_path / "none.onnx")
    for name in ("wrong.onnx", "none.onnx"):
        found = verify(before, tmp_path / name, norm="imagenet")
        assert "its new bias is missing or wrong" in {d.message for d in found.differences}


def test_a_transposed_convolution_is_refused(tmp_path: Path):
    stored = weights(w=(3, 8, 2, 2), b=(8,))
    path = saved(tmp_path / "a.onnx", [node("ConvTranspose", "image w b", "y", strides=[2, 2])], stored)
    assert convert(path, tmp_path / "b.onnx").status == "converted"
    with pytest.raises(UnsupportedError, match="transposed convolution"):
        convert(path, tmp_path / "c.onnx", method="sum", norm="imagenet")


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "BatchNorm"])
def test_keras_agrees(bias: bool, suffix: str, tmp_path: Path):
    def built(channels: int) -> keras.Model:
        layers = keras.layers
        first = layers.Conv2D(8, 3, use_bias=bias, name="conv1_conv")
        norm = layers.BatchNormalization(name="conv1_bn")
        return keras.Sequential([layers.Input((16, 16, channels)), first, norm, layers.ReLU(), layers.Conv2D(4, 3)])

    old, new = built(3), built(1)
    old.set_weights([CHANCE.random(w.shape) + 0.1 for w in old.get_weights()])
    before, after = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    (old.save_weights if suffix == ".weights.h5" else old.save)(before)
    report = convert(before, after, norm="imagenet")
    if suffix == ".weights.h5":
        new.load_weights(after)
    else:
        new = keras.models.load_model(after, compile=False)
    raw = CHANCE.random((1, 16, 16, 1))
    expected = old.predict((raw - MEAN.reshape(3)) / STD.reshape(3), verbose=0)
    found = new.predict((raw - np.array(report.pipeline.mean)) / np.array(report.pipeline.std), verbose=0)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert verify(before, after, norm="imagenet").ok


APPLICATIONS = {
    "ResNet50": (keras.applications.ResNet50, keras.applications.resnet.preprocess_input, "conv2_block1_out", 3),
    "VGG16": (keras.applications.VGG16, keras.applications.vgg16.preprocess_input, "block2_pool", 2),
}
"""Each with its preprocessing, a layer some layers in, and how many of its cells at the border see the padding."""


def applied(name: str, channels: int) -> keras.Model:
    return APPLICATIONS[name][0](weights=None, include_top=False, input_shape=(96, 96, channels))


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("name", APPLICATIONS)
def test_networks_of_caffe_take_bytes(name: str, suffix: str, tmp_path: Path):
    """BGR in 0..255 less three means is folded in: plain gray bytes are what is left to feed."""
    _, preprocess, layer, border = APPLICATIONS[name]
    keras.utils.set_random_seed(0)
    old, before, after = applied(name, 3), tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    (old.save if suffix == ".keras" else old.save_weights)(before)
    report = convert(before, after, to="gray", norm="caffe")
    assert report.advice[-1].message == "feed it images in 0..255 as they are"
    if suffix == ".keras":
        new = keras.models.load_model(after)
    else:
        new = applied(name, 1)
        new.load_weights(after)
    gray = CHANCE.integers(0, 256, (2, 96, 96, 1)).astype(np.float32)
    images = preprocess(np.repeat(gray, 3, -1)), gray
    expected, found = (
        np.asarray(keras.Model(model.inputs, model.get_layer(layer).output).predict(image, verbose=0))[
            :, border:-border, border:-border
        ]
        for model, image in zip((old, new), images, strict=True)
    )
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    assert verify(before, after).under == "--norm caffe"

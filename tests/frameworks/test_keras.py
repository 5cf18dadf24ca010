"""Keras itself loads what was converted, and answers to a gray image as the original does to the stacked one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not in this environment")

from keras.src.applications import convnext, densenet, inception_resnet_v2, nasnet  # noqa: E402  after the backend is chosen

import chkpt_channels  # noqa: E402

L = keras.layers
applications = keras.applications

NASNET = {"penultimate_filters": 96, "num_blocks": 1, "stem_block_filters": 32, "skip_reduction": False, "filter_multiplier": 2}

FAMILIES: dict[str, tuple[Callable[..., Any], int, dict[str, Any]]] = {
    "ResNet50": (applications.ResNet50, 32, {}),
    "ResNet50V2": (applications.ResNet50V2, 32, {}),
    "MobileNet": (applications.MobileNet, 32, {"alpha": 0.25}),
    "MobileNetV2": (applications.MobileNetV2, 32, {"alpha": 0.35}),
    "MobileNetV3Small": (applications.MobileNetV3Small, 32, {}),
    "VGG16": (applications.VGG16, 32, {}),
    "DenseNet": (densenet.DenseNet, 32, {"blocks": [2, 2, 2, 2]}),
    "InceptionV3": (applications.InceptionV3, 75, {}),
    "InceptionResNetV2": (applications.InceptionResNetV2, 75, {}),
    "Xception": (applications.Xception, 71, {}),
    "NASNet": (nasnet.NASNet, 32, NASNET),  # the ready-made sizes refuse the torch backend
    "EfficientNetB0": (applications.EfficientNetB0, 32, {}),
    "EfficientNetV2B0": (applications.EfficientNetV2B0, 32, {}),
    "ConvNeXtTiny": (applications.ConvNeXtTiny, 32, {}),
}
STACKED = {"EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny"}


class Sum(L.Layer):
    """Keras 3.15 saves `a + b` as .h5 without its module and then takes it for the layer Add: the unconverted files of
    MobileNetV3 and ConvNeXt do not load either. With these in its place they do."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._allow_non_tensor_positional_args = True

    def call(self, a: Any, b: Any = None) -> Any:
        return a[0] + a[1] if b is None else a + b


class Product(Sum):
    def call(self, a: Any, b: Any = None) -> Any:
        return a[0] * a[1] if b is None else a * b


CUSTOM = {
    "LayerScale": convnext.LayerScale,
    "CustomScaleLayer": inception_resnet_v2.CustomScaleLayer,
}
CUSTOM_H5 = {"Add": Sum, "Multiply": Product}


def randomised(model: Any, seed: int = 0) -> Any:
    """Statistics and affine weights of every normalisation, off their neutral values."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            for weight in layer.weights:
                spread = random.uniform(0.8, 1.25, weight.shape)
                weight.assign(spread if weight.name in ("gamma", "moving_variance") else 0.2 * (spread - 1))
        if isinstance(layer, L.Normalization) and layer.input_mean is None:
            layer.set_weights([random.uniform(0.3, 0.6, 3), random.uniform(0.03, 0.1, 3), np.array(0)])
            layer.finalize_state()
    return model


def gray_images(size: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (count, size, size, 1)).astype("float32")


def assert_close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def load(path: Path) -> Any:
    if path.suffix == ".keras":
        return keras.models.load_model(path)
    return keras.models.load_model(path, compile=False, custom_objects=CUSTOM | CUSTOM_H5)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_applications(name: str, tmp_path: Path):
    build, size, options = FAMILIES[name]
    model = randomised(build(weights=None, include_top=False, input_shape=(size, size, 3), pooling="avg", **options))
    gray = gray_images(size)
    expected = model.predict(np.repeat(gray, 3, -1), verbose=0)
    for suffix in (".keras", ".h5"):
        source, target = tmp_path / f"rgb{suffix}", tmp_path / f"gray{suffix}"
        model.save(source)
        report = chkpt_channels.convert(source, target, to="gray")
        assert {kernel.method for kernel in report.kernels} == {"stack" if name in STACKED else "sum"}
        converted = load(target)
        assert converted.input_shape == (None, size, size, 1)
        assert_close(converted.predict(gray, verbose=0), expected)
        keras.backend.clear_session()

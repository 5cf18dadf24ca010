"""Keras itself loads what was converted, and answers to a gray image as the original does to the stacked one."""

from __future__ import annotations

import json
import math
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
from fixtures.generate import keras_files as make_keras  # noqa: E402

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"

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
    """Statistics and affine weights of every normalization, off their neutral values."""
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


LUMA = np.array([0.2126, 0.7152, 0.0722])


def as_old(image: np.ndarray, old: int, axis: int = -1) -> np.ndarray:
    """What the old network must see to answer as the new one does to `image`: stacked, luma, or repeat's mix."""
    new = image.shape[axis]
    if new == 1:
        return np.repeat(image, old, axis)
    matrix = (
        LUMA[None] if (old, new) == (1, 3) else np.array([[old / new * (j % old == i) for j in range(new)] for i in range(old)])
    )
    return np.moveaxis(np.moveaxis(image, axis, -1) @ matrix.T, -1, axis).astype("float32")


def images(model: Any, channels: int) -> list[np.ndarray]:
    shapes = model.input_shape if isinstance(model.input_shape, list) else [model.input_shape]
    random = np.random.default_rng(2)
    return [
        random.uniform(0, 255, (2, *(channels if n in (1, 3, 4) else n for n in shape[1:]))).astype("float32") for shape in shapes
    ]


def channel_axis(model: Any) -> int:
    shape = model.input_shape[0] if isinstance(model.input_shape, list) else model.input_shape
    return 1 if shape[1] in (1, 3, 4) else -1


WHOLE = [
    f for f in make_keras.FIXTURES if f.channels and f.save in (make_keras.save, make_keras.save_deflated, make_keras.save_packed)
]
ADAPTED = {"depthwise", "separable"}  # toward more channels: Keras has no kernel that would do
LOADABLE = [f for f in WHOLE if not f.keras2 or f.file == "keras_h5/keras2.h5"]  # the others only Keras 2 reads: test_keras2.py


@pytest.mark.parametrize("to", [1, 3, 4])
@pytest.mark.parametrize("fixture", LOADABLE, ids=lambda f: f.file)
def test_every_fixture_loads_and_agrees(fixture: make_keras.Fixture, to: int, tmp_path: Path):
    source, target = FIXTURES / fixture.file, tmp_path / f"new{Path(fixture.file).suffix}"
    method = chkpt_channels.convert(source, target, to=to).kernels[0].method
    assert (method == "adapter") == (to > fixture.channels and source.stem in ADAPTED)
    before, after = load(source), load(target)
    new = images(after, to)
    old = [as_old(image, fixture.channels, channel_axis(after)) for image in new]
    found, expected = after.predict(new, verbose=0), before.predict(old, verbose=0)
    tolerance = 0.03 if "bfloat16" in fixture.file else 1e-4
    if method == "repeat" and "normalised" in fixture.file:
        tolerance = 0.1  # each band is seen behind the statistics of the color it stands in for: the border's zeros are others
    assert_close(found, expected, 0 if method == "stack" and tolerance == 1e-4 else tolerance)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(("name", "channels", "to"), [("MobileNetV2", 1, 3), ("ResNet50V2", 3, 13), ("DenseNet", 3, 2)])
def test_more_channels_of_real_networks(name: str, channels: int, to: int, suffix: str, tmp_path: Path):
    build, size, options = FAMILIES[name]
    model = randomised(build(weights=None, include_top=False, input_shape=(size, size, channels), pooling="avg", **options))
    source, target = tmp_path / f"old{suffix}", tmp_path / f"new{suffix}"
    model.save(source)
    chkpt_channels.convert(source, target, to=to)
    image = np.random.default_rng(3).uniform(0, 255, (2, size, size, to)).astype("float32")
    assert_close(load(target).predict(image, verbose=0), model.predict(as_old(image, channels), verbose=0))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_depthwise_first_layer_takes_one_channel_and_no_more(suffix: str, tmp_path: Path):
    """Toward gray its bytes are read anew; Keras has no layer that gives four channels to three filters: one in front does."""
    image = L.Input((16, 16, 3))
    x = L.DepthwiseConv2D(3, depth_multiplier=2, strides=2, name="first")(image)
    model = keras.Model(image, L.GlobalAveragePooling2D()(L.Conv2D(8, 1)(x)))
    source, target = tmp_path / f"old{suffix}", tmp_path / f"new{suffix}"
    model.save(source)
    for to in (2, 4):
        with pytest.raises(chkpt_channels.UnsupportedError, match="first"):
            chkpt_channels.convert(source, target, to=to, method="repeat")
        assert not target.exists()
        assert chkpt_channels.convert(source, target, to=to).kernels[0].method == "adapter"
        image = np.random.default_rng(3).uniform(0, 1, (2, 16, 16, to)).astype("float32")
        assert_close(load(target).predict(image, verbose=0), model.predict(as_old(image, 3), verbose=0))
        target.unlink()
    chkpt_channels.convert(source, target, to="gray")
    gray = gray_images(16)
    assert_close(load(target).predict(gray, verbose=0), model.predict(np.repeat(gray, 3, -1), verbose=0))


@pytest.mark.parametrize("to", ["gray", 4])
def test_training_goes_on(to: str | int, tmp_path: Path):
    chkpt_channels.convert(FIXTURES / "keras_zip/nested.keras", tmp_path / "new.keras", to=to)
    model = keras.models.load_model(tmp_path / "new.keras")
    assert int(model.optimizer.iterations) == 1
    before = model.get_weights()[0].copy()
    random = np.random.default_rng(0)
    model.fit(random.random((4, *model.input_shape[1:])), random.random((4, 5)), verbose=0, epochs=2)
    assert int(model.optimizer.iterations) == 3
    assert np.abs(model.get_weights()[0] - before).max() > 0
    model.save(tmp_path / "again.keras")
    assert chkpt_channels.inspect(tmp_path / "again.keras").first_convs[0].in_channels == model.input_shape[-1]


def test_a_stacked_model_trains_and_is_saved_again(tmp_path: Path):
    chkpt_channels.convert(FIXTURES / "keras_zip/normalised.keras", tmp_path / "new.keras", to="gray")
    model = keras.models.load_model(tmp_path / "new.keras")
    random = np.random.default_rng(0)
    model.compile("sgd", "mse")
    model.fit(random.random((4, 16, 16, 1)), random.random((4, 5)), verbose=0)
    model.save(tmp_path / "again.keras")
    gray = gray_images(16)
    assert_close(keras.models.load_model(tmp_path / "again.keras").predict(gray, verbose=0), model.predict(gray, verbose=0), 1e-6)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_efficientnet_folded_is_exact_inside(suffix: str, tmp_path: Path, record_property: Callable[[str, object], None]):
    """`--method sum`: one-channel kernels behind a folded Normalization; at the border zero padding cannot be three colors."""
    size, options = 64, {"weights": None, "include_top": False}
    model = randomised(applications.EfficientNetB0(input_shape=(size, size, 3), **options))
    source, target = tmp_path / f"rgb{suffix}", tmp_path / f"gray{suffix}"
    if suffix == ".weights.h5":
        model.save_weights(source)
        chkpt_channels.convert(source, target, to="gray")
        folded = applications.EfficientNetB0(input_shape=(size, size, 1), **options)
        folded.load_weights(target)
    else:
        model.save(source)
        chkpt_channels.convert(source, target, to="gray", method="sum")
        folded = load(target)
    gray = gray_images(size)
    stem = [keras.Model(m.input, m.get_layer("stem_bn").output) for m in (model, folded)]
    before, after = stem[0].predict(np.repeat(gray, 3, -1), verbose=0), stem[1].predict(gray, verbose=0)
    assert_close(after[:, 1:-1, 1:-1], before[:, 1:-1, 1:-1], 1e-5)
    border = float(np.abs(after - before).max() / np.abs(before).max())
    record_property("border_error", border)
    assert 1e-4 < border < 0.5


IN_FRONT = {
    "Normalization": lambda x: L.Normalization(mean=[0.4, 0.5, 0.3], variance=[0.04, 0.09, 0.01])(x),
    "Rescaling": lambda x: L.Rescaling([2.0, 0.5, 3.0], offset=[-1.0, 0.2, 0.4])(x),
    "an operation": lambda x: x * np.array([2.0, 0.5, 3.0], "float32"),
}


@pytest.mark.parametrize("words", [{"to": "bgr"}, {"select": "2,1,0"}, {"select": "1,1,0"}, {"bands": "B,G,R"}], ids=str)
@pytest.mark.parametrize(
    ("front", "suffix"), [*((front, ".keras") for front in IN_FRONT), ("Normalization", ".h5"), ("Rescaling", ".h5")]
)
def test_constants_of_the_configuration_change_places(front: str, words: dict, suffix: str, tmp_path: Path):
    """With as many channels as before, too, where no declaration changes."""
    image = keras.Input((8, 8, 3))
    model = randomised(keras.Model(image, L.Conv2D(4, 3)(IN_FRONT[front](image))))
    source, target = tmp_path / f"rgb{suffix}", tmp_path / f"new{suffix}"
    model.save(source)
    chkpt_channels.convert(source, target, **words)
    new = np.random.default_rng(0).random((2, 8, 8, 3), "float32")
    chosen = [1, 1, 0] if words.get("select") == "1,1,0" else [2, 1, 0]
    old = new @ np.eye(3, dtype="float32")[chosen]  # new channel j is old channel chosen[j]
    assert_close(load(target).predict(new, verbose=0), model.predict(old, verbose=0), 1e-5)


@pytest.mark.parametrize("layout", ["stored", "legacy"])
def test_weights_fit_the_model_of_one_channel(layout: str, tmp_path: Path):
    model, gray_model = randomised(make_keras.plain()), make_keras.plain(1)
    source, target = tmp_path / "rgb.weights.h5", tmp_path / "gray.weights.h5"
    if layout == "stored":
        model.save_weights(source)
        chkpt_channels.convert(source, target, to="gray")
        gray_model.load_weights(target)
    else:
        source, target = tmp_path / "rgb.h5", tmp_path / "gray.h5"
        make_keras.save_legacy_weights(model, source)
        chkpt_channels.convert(source, target, to="gray")
        gray_model.load_weights(target)
    gray = gray_images(16)
    assert_close(gray_model.predict(gray, verbose=0), model.predict(np.repeat(gray, 3, -1), verbose=0))


def sharded(kind: str, channels: int) -> Any:
    """Networks of which Keras cuts the first layer in two where a shard holds no more than its kernel."""
    keras.utils.set_random_seed(1)
    depthwise = L.DepthwiseConv2D(9, depth_multiplier=8 if channels == 3 else 24)
    first = {"depthwise": [depthwise], "normalized": [L.Normalization(), L.Conv2D(64, 3)]}
    layers = [*first.get(kind, [L.Conv2D(64, 3)]), L.BatchNormalization(), L.ReLU(), L.Conv2D(8, 1), L.Conv2D(8, 3)]
    model = keras.Sequential([keras.Input((16, 16, channels)), *layers, L.GlobalAveragePooling2D(), L.Dense(5)])
    model = randomised(model) if channels == 3 else model
    if kind == "trained":
        model.compile("adam", "mse")
        model.fit(np.ones((2, 16, 16, channels)), np.ones((2, 5)), verbose=0)
    return model


@pytest.mark.parametrize("kind", ["plain", "depthwise", "normalized", "trained"])
def test_shards_are_one_model(kind: str, tmp_path: Path):
    model, gray_model = sharded(kind, 3), sharded(kind, 1)
    source, target, index = tmp_path / "a", tmp_path / "b", "net.weights.json"
    source.mkdir()
    model.save_weights(source / index, max_shard_size=8000 / 1024**3)
    assert len([*source.glob("net_0000*.weights.h5")]) > 1
    (conv,) = chkpt_channels.inspect(source).first_convs
    assert (conv.in_channels, conv.groups) == (3, 3 if kind == "depthwise" else 1)
    chkpt_channels.convert(source, target, to="gray")
    assert chkpt_channels.verify(source, target).ok
    for shard in target.iterdir():
        assert chkpt_channels.check(shard, expect="gray").ok
    gray_model.load_weights(target / index)
    gray = gray_images(16)
    assert_close(gray_model.predict(gray, verbose=0), model.predict(np.repeat(gray, 3, -1), verbose=0))
    slots = gray_model.optimizer.variables if kind == "trained" else []
    size = json.loads((target / index).read_text())["metadata"]["total_size"]
    assert size == sum(math.prod(v.shape) * 4 for v in (*gray_model.weights, *slots))


@pytest.mark.parametrize("name", ["rgb.weights.h5", "rgb.h5", "rgb.keras"])
def test_under_its_usual_name_it_loads(name: str, tmp_path: Path):
    """Keras tells its kinds of HDF5 by the name."""
    model, gray_model = make_keras.plain(), make_keras.plain(1)
    save = model.save_weights if ".weights" in name else model.save
    save(tmp_path / name)
    report = chkpt_channels.convert(tmp_path / name, to="gray")
    scope = {"keras": keras, "model": gray_model}
    exec("\n".join(report.load_lines), scope)
    gray = gray_images(16)
    assert_close(scope["model"].predict(gray, verbose=0), model.predict(np.repeat(gray, 3, -1), verbose=0))


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "DenseNet121"])
def test_first_convs_of_real_weights_files(name: str, tmp_path: Path):
    """Names and shapes alone, in the order in which HDF5 put the layers."""
    model = getattr(applications, name)(weights=None, include_top=False, input_shape=(32, 32, 3))
    model.save_weights(tmp_path / "a.weights.h5")
    make_keras.save_legacy_weights(model, tmp_path / "b.h5")
    for path in (tmp_path / "a.weights.h5", tmp_path / "b.h5"):
        found = chkpt_channels.inspect(path)
        assert [conv.tensor.shape[2] for conv in found.first_convs] == [3], found.candidates

"""`--fold-adapter` in Keras' .h5 files: the convolution in front of a base is gone, and Keras computes what it did."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not in this environment")

from chkpt_channels import UnsupportedError, check, convert, verify  # noqa: E402 # behind importorskip
from tests.frameworks.test_adapter_keras import MODELS, built, images  # noqa: E402 # behind importorskip

L = keras.layers


def adapter(**more: Any) -> Any:
    return L.Conv2D(3, 1, name="front", bias_initializer="random_normal", **more)


def functional(between: Callable[[Any], Any] = lambda x: x, **more: Any) -> Any:
    image = keras.Input((16, 16, 4), name="image")
    x = L.Conv2D(5, 3, activation="relu", **more)(between(adapter()(image)))
    return keras.Model(image, L.Dense(3)(L.Flatten()(x)))


def sequential() -> Any:
    return keras.Sequential([keras.Input((16, 16, 4)), adapter(use_bias=False), L.Conv2D(5, 3), L.Conv2D(3, 1)])


def base() -> Any:
    inner = keras.Input((16, 16, 3))
    x = L.BatchNormalization()(L.Conv2D(5, 3, use_bias=False)(inner))
    return keras.Model(inner, L.Conv2D(2, 1)(L.ReLU()(x)), name="base")


def nested() -> Any:
    image = keras.Input((16, 16, 4))
    return keras.Model(image, L.GlobalAveragePooling2D()(base()(adapter(padding="same")(L.Rescaling(0.1)(image)))))


def nested_sequential() -> Any:
    return keras.Sequential([keras.Input((16, 16, 4)), adapter(), base(), L.GlobalMaxPooling2D()])


def two_stems() -> Any:
    """Another image beside it, and two branches behind it."""
    image, other = keras.Input((16, 16, 4)), keras.Input((16, 16, 2))
    x = adapter()(image)
    return keras.Model([image, other], L.Concatenate()([L.Conv2D(4, 3)(x), L.Conv2D(5, 3)(x), L.Conv2D(2, 3)(other)]))


def normalization(x: Any) -> Any:
    return L.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(x)


def batch_norm(x: Any) -> Any:
    made = L.BatchNormalization()
    y = made(x)
    made.set_weights([np.linspace(0.5, 2, 3) + i for i in range(4)])
    return y


def pixels(between: Any) -> Any:
    return keras.Sequential([keras.Input((16, 16, 4)), adapter(), between, L.Dense(5), L.ReLU()])


def of_rank(rank: int) -> Any:
    image = keras.Input((*[8] * rank, 4))
    kind = getattr(L, f"Conv{rank}D")
    return keras.Model(image, kind(5, 3)(kind(3, 1)(image)))


def first() -> Any:
    image = keras.Input((4, 16, 16))
    x = L.Conv2D(3, 1, data_format="channels_first")(image)
    return keras.Model(image, L.Conv2D(5, 3, data_format="channels_first")(x))


FOLDED: dict[str, Callable[[], Any]] = {
    "functional": functional,
    "sequential": sequential,
    "nested": nested,
    "nested in a sequential": nested_sequential,
    "two stems": two_stems,
    "a normalization behind it": lambda: functional(normalization),
    "a BatchNorm behind it": lambda: functional(batch_norm),
    "a pool behind it": lambda: functional(lambda x: L.AveragePooling2D(2)(x)),
    "signals": lambda: of_rank(1),
    "volumes": lambda: of_rank(3),
    "channels first": first,
    "padded": lambda: functional(padding="same"),
    "padded by a layer": lambda: functional(lambda x: L.ZeroPadding2D(2)(x)),
    "padded before single pixels": lambda: pixels(L.ZeroPadding2D()),
    "single pixels": lambda: pixels(L.Identity()),
}
BORDERS = {"padded", "padded by a layer", "padded before single pixels"}


def trained_resnet50(window: int) -> Any:
    """A ResNet50 behind a convolution, trained for two steps, with statistics of its own in each BatchNormalization."""
    keras.utils.set_random_seed(3)
    image = keras.Input((32, 32, 4), name="image")
    resnet = keras.applications.ResNet50(weights=None, classes=4, input_shape=(32, 32, 3))
    net = keras.Model(image, resnet(L.Conv2D(3, window, padding="same", name="front")(image)))
    net.compile("sgd", "sparse_categorical_crossentropy")
    d = np.random.default_rng(0)
    net.fit(d.random((8, 32, 32, 4)).astype("float32"), d.integers(4, size=8), batch_size=4, verbose=0)
    for norm in (layer for layer in resnet.layers if type(layer).__name__ == "BatchNormalization"):
        gamma, beta, mean, variance = norm.get_weights()
        norm.set_weights([gamma, beta, mean + d.random(mean.shape) / 10, variance + d.random(mean.shape) / 10])
    return net


def feed(net: Any) -> list[np.ndarray]:
    d = np.random.default_rng(1)
    return [d.random([2, *tensor.shape[1:]]).astype("float32") for tensor in net.inputs]


def judged(path: Path, *, border: bool = False, **options: Any) -> Any:
    """The folded model. Raise AssertionError unless it computes what the old one did, with a convolution fewer, and the commands
    agree; with a border only its largest number is told."""
    out = path.with_name("folded.h5")
    report = convert(path, out, fold_adapter=True, **options)
    old, new = (keras.models.load_model(each, compile=False) for each in (path, out))
    assert len(new.layers) == len(old.layers) - 1
    assert [tensor.shape for tensor in new.inputs] == [tensor.shape for tensor in old.inputs]
    fed = feed(old)
    a, b = (np.asarray(net.predict(fed, verbose=0), np.float64) for net in (old, new))
    largest = np.abs(a).max()
    assert largest > 0
    assert ("border_error" in {w.code for w in report.warnings}) == border
    assert (np.abs(a - b).max() <= 2e-6 * largest) != border
    assert [w.code for w in report.warnings].count("folded") == 1
    assert verify(path, out, fold_adapter=True, **options).ok
    assert not verify(path, path, fold_adapter=True, **options).ok
    assert check(out).ok
    assert report.in_channels == (3, 4)
    return new


@pytest.mark.parametrize("case", FOLDED)
def test_it_computes_the_same(case: str, tmp_path: Path):
    built(FOLDED[case], tmp_path / "a.h5")
    new = judged(tmp_path / "a.h5", border=case in BORDERS)
    assert "front" not in {layer.name for layer in new.layers}
    new.save(tmp_path / "again.keras")  # what Keras makes of it is whole
    keras.models.load_model(tmp_path / "again.keras", compile=False)


def test_a_trained_resnet50(tmp_path: Path):
    """The same but for the two outer pixels of what the first convolution gives."""
    net = trained_resnet50(1)
    net.save(tmp_path / "a.h5", include_optimizer=False)
    report = convert(tmp_path / "a.h5", tmp_path / "b.h5", fold_adapter=True)
    (told,) = [w.message for w in report.warnings if w.code == "border_error"]
    old, new = (keras.models.load_model(tmp_path / f"{name}.h5", compile=False) for name in "ab")
    assert [layer.name for layer in new.layers] == ["image", "resnet50"]

    def stem(model: Any) -> Any:
        """What its first convolution gives."""
        whole = model.get_layer("resnet50")
        start = keras.Model(whole.input, whole.get_layer("conv1_conv").output)
        fronts = [layer for layer in model.layers if layer.name == "front"]
        return keras.Model(model.input, start(fronts[0].output if fronts else model.input))

    a, b = (np.asarray(stem(model).predict(feed(old), verbose=0), np.float64) for model in (old, new))
    difference = np.abs(a - b)
    assert difference[:, 2:-2, 2:-2].max() <= 1e-5 * np.abs(a).max()
    assert difference.max() <= float(re.search(r"up to ([\d.e+-]+)", told)[1]) * 1.01
    assert np.abs(old.predict(feed(old), verbose=0) - new.predict(feed(old), verbose=0)).max() <= 0.1
    assert verify(tmp_path / "a.h5", tmp_path / "b.h5", fold_adapter=True).ok
    assert check(tmp_path / "b.h5").ok


@pytest.mark.parametrize("name", [name for name, (_, kind) in MODELS.items() if kind != "Dense"])
def test_what_this_tool_put_in_front_comes_out_again(name: str, tmp_path: Path):
    """As if the kernel had been edited to begin with."""
    built(MODELS[name][0], tmp_path / "a.h5")
    convert(tmp_path / "a.h5", tmp_path / "b.h5", to=4, method="adapter")
    convert(tmp_path / "b.h5", tmp_path / "c.h5", fold_adapter=True)
    convert(tmp_path / "a.h5", tmp_path / "d.h5", to=4)
    folded, edited = (keras.models.load_model(tmp_path / f"{each}.h5", compile=False) for each in "cd")
    assert [layer.name for layer in folded.layers] == [layer.name for layer in edited.layers]
    x, _ = images(edited)
    a, b = (np.asarray(net.predict(x, verbose=0), np.float64) for net in (edited, folded))
    assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max()


def wrapped(front: Any) -> Any:
    image = keras.Input((16, 16, 4))
    return keras.Model(image, L.Conv2D(5, 3)(front(image)))


def called_twice() -> Any:
    image, front = keras.Input((16, 16, 4)), adapter()
    stem = L.Conv2D(5, 3)
    return keras.Model(image, L.Add()([stem(front(image)), stem(front(L.Rescaling(2.0)(image)))]))


def given() -> Any:
    image = keras.Input((16, 16, 4))
    x = adapter()(image)
    return keras.Model(image, [x, L.Conv2D(5, 3)(x)])


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an activation": (lambda: wrapped(adapter(activation="relu")), "front: has the activation 'relu': it is not folded"),
    "one behind it": (lambda: functional(lambda x: L.ReLU()(x)), "re_lu.*: this ReLU precedes the kernel and is not linear"),
    "a larger one": (lambda: wrapped(L.Conv2D(3, 3, name="front")), "front: is no 1×1 convolution that takes every pixel"),
    "a stride": (lambda: wrapped(adapter(strides=2)), "front: is no 1×1 convolution that takes every pixel"),
    "another class": (lambda: wrapped(L.SeparableConv2D(3, 1, name="front")), "front: is a SeparableConv2D"),
    "one in a model": (
        lambda: wrapped(keras.Sequential([keras.Input((16, 16, 4)), adapter()])),
        "front: is inside of another model",
    ),
    "two calls": (called_twice, "front: is inside of another model, or is called more than once"),
    "an output": (given, "the model's output"),
    "nothing behind it": (lambda: keras.Sequential([keras.Input((16, 16, 4)), adapter(), L.Flatten()]), "is followed by no conv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_folded(case: str, tmp_path: Path):
    model, message = REFUSED[case]
    built(model, tmp_path / "a.h5")
    with pytest.raises(UnsupportedError, match=message):
        convert(tmp_path / "a.h5", fold_adapter=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_numbered_weights_and_an_optimizer_are_refused(tmp_path: Path):
    net = built(functional, tmp_path / "a.keras")
    with pytest.raises(UnsupportedError, match="front: is one of the layers whose weights are numbered") as caught:
        convert(tmp_path / "a.keras", fold_adapter=True)
    assert caught.value.hint == "model.save('NAME.h5', include_optimizer=False)"
    net.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(
        UnsupportedError, match="its tensors cannot be taken out: --fold-adapter takes ONNX files, Keras models in"
    ):
        convert(tmp_path / "a.weights.h5", fold_adapter=True)
    net.compile("adam", "mse")
    net.fit(np.zeros((2, 16, 16, 4)), np.zeros((2, 3)), verbose=0)
    net.save(tmp_path / "b.h5")
    with pytest.raises(UnsupportedError, match="front: has a part in the optimizer's state") as caught:
        convert(tmp_path / "b.h5", fold_adapter=True)
    assert caught.value.hint == "model.save('NAME.h5', include_optimizer=False)"
    net.save(tmp_path / "c.h5", include_optimizer=False)
    assert judged(tmp_path / "c.h5")

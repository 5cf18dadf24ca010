"""The adapter in Keras files: Keras loads it, it gives A · x + t, and the old model on that gives what the new one does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not in this environment")

from chkpt_channels import UnsupportedError, check, convert, verify  # noqa: E402 # behind importorskip

L = keras.layers
TO_4 = [[0.75, 0, 0, 0.75], [0, 0.75, 0, 0], [0, 0, 0.75, 0]]


def normalized(dtype: str | None = None) -> Any:
    """Two branches, one of them behind a normalization."""
    image = keras.Input((16, 16, 3), dtype=dtype)
    x = L.Rescaling(1 / 255)(image)
    x = L.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(x)
    x = L.Conv2D(5, 3, padding="same", activation="relu")(x)
    return keras.Model(image, L.Concatenate()([x, L.Conv2D(4, 3, padding="same")(L.Rescaling(0.5)(image))]))


def sequential() -> Any:
    return keras.Sequential([keras.Input((16, 16, 3)), L.Conv2D(5, 3, padding="same"), L.Conv2D(3, 1)])


def transposed() -> Any:
    """A decoder of the class that an adapter is of otherwise."""
    image = keras.Input((16, 16, 3))
    x = L.Conv2D(5, 3, padding="same")(image)
    return keras.Model(image, L.Conv2D(2, 1)(L.Add()([x, L.Conv2DTranspose(5, 2, strides=2)(L.MaxPooling2D()(x))])))


def swapped() -> Any:
    image = keras.Input((16, 16, 3))
    return keras.Model(image, L.Conv2D(5, 3, padding="same")(keras.ops.flip(image, axis=-1)))


def of_rank(rank: int) -> Any:
    image = keras.Input((*[8] * rank, 3))
    return keras.Model(image, getattr(L, f"Conv{rank}D")(5, 3, padding="same")(image))


def first() -> Any:
    image = keras.Input((3, 16, 16))
    return keras.Model(image, L.Conv2D(5, 3, data_format="channels_first")(image))


def nested() -> Any:
    image = keras.Input((16, 16, 3))
    return keras.Model(image, L.GlobalAveragePooling2D()(sequential()(image)))


def mixed() -> Any:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return normalized()
    finally:
        keras.config.set_dtype_policy("float32")


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "EfficientNetB0": (
        lambda: keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3), classes=10),
        "Conv2DTranspose",
    ),
    "normalized": (normalized, "Conv2DTranspose"),
    "sequential": (sequential, "Conv2DTranspose"),
    "transposed": (transposed, "Dense"),
    "nested": (nested, "Conv2DTranspose"),
    "channels first": (first, "Conv2DTranspose"),
    "mixed precision": (mixed, "Conv2DTranspose"),
    "signals": (lambda: of_rank(1), "Conv1DTranspose"),
    "volumes": (lambda: of_rank(3), "Conv3DTranspose"),
}


def built(model: Callable[[], Any], path: Path) -> Any:
    """The model with weights of a fixed seed, saved."""
    keras.utils.set_random_seed(3)
    made = model()
    made.save(path)
    return made


def images(model: Any) -> tuple[np.ndarray, int]:
    """Random images for a model, and the axis of their channels."""
    shape = [2 if n is None else n for n in model.input_shape]
    return np.random.default_rng(0).random(shape).astype("float32"), 1 if shape[-1] == 16 else len(shape) - 1


def mapped(x: np.ndarray, axis: int, matrix: Any, offset: Any = 0.0) -> np.ndarray:
    old = np.moveaxis(np.tensordot(np.asarray(matrix, np.float64), np.moveaxis(x, axis, 0), 1), 0, axis)
    return old + np.reshape(offset, [-1 if k == axis else 1 for k in range(x.ndim)])


def judge(old: Any, after: Path, matrix: Any, offset: Any = 0.0) -> Any:
    """The new model. Raise AssertionError unless its adapter gives A · x + t, and the rest is the old one on that."""
    new = keras.models.load_model(after, compile=False)
    x, axis = images(new)
    (adapter,) = [layer for layer in new.layers if layer.name.endswith("_adapter")]
    adapted = np.asarray(keras.Model(new.inputs, adapter.output).predict(x, verbose=0))
    wanted = mapped(x, axis, matrix, offset)
    assert np.abs(adapted - wanted).max() <= 1e-6 * np.abs(wanted).max()
    a, b = (np.asarray(y, np.float64) for y in (old.predict(adapted, verbose=0), new.predict(x, verbose=0)))
    assert np.abs(a).max() > 0
    assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max()
    return adapter


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", MODELS)
def test_from_three_to_four(name: str, suffix: str, tmp_path: Path):
    before, after = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    model, kind = MODELS[name]
    old = built(model, before)
    report = convert(before, after, to=4, method="adapter")
    assert report.kernels[0].method == "adapter"
    assert type(judge(old, after, TO_4)).__name__ == kind
    assert verify(before, after, to=4, method="adapter").ok
    assert not check(after, expect=4).mismatches


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_normalizations_outside_become_its_constant(suffix: str, tmp_path: Path):
    before, after, options = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", {"to": 1, "norm": "imagenet", "method": "adapter"}
    old = built(normalized, before)
    convert(before, after, **options)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    judge(old, after, (std.mean() / std)[:, None], (mean.mean() - mean) / std)
    assert verify(before, after, **options).ok


def test_auto_takes_it_where_a_kernel_edit_is_refused(tmp_path: Path):
    before, after = tmp_path / "a.keras", tmp_path / "b.keras"
    old = built(swapped, before)
    assert convert(before, after, to=4).kernels[0].method == "adapter"
    judge(old, after, TO_4)
    assert convert(before, tmp_path / "c.keras", to=1).kernels[0].method == "stack"
    built(normalized, tmp_path / "d.keras")
    assert convert(tmp_path / "d.keras", tmp_path / "e.keras", to=4).kernels[0].method == "repeat"


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", ["normalized", "transposed", "channels first"])
def test_the_second_conversion_edits_it(name: str, suffix: str, tmp_path: Path):
    before, first_time, second = (tmp_path / f"{letter}{suffix}" for letter in "abc")
    built(MODELS[name][0], before)
    convert(before, first_time, select=[2, 0, 1, 2], method="adapter")
    old = keras.models.load_model(first_time, compile=False)
    for options in ({"to": 1}, {"select": [3, 0], "method": "adapter"}):
        convert(first_time, second, force=True, **options)
        new = keras.models.load_model(second, compile=False)
        x, axis = images(new)
        fed = mapped(x, axis, np.ones((4, 1)) if "to" in options else np.eye(4)[:, [3, 0]]).astype(np.float32)
        assert len(new.layers) == len(old.layers)
        assert np.allclose(old.predict(fed, verbose=0), new.predict(x, verbose=0), atol=1e-5)
        assert verify(first_time, second, **options).ok


def trained() -> Any:
    model = normalized()
    model.compile("adam", "mse")
    model.train_on_batch(np.zeros((1, 16, 16, 3)), np.zeros((1, 16, 16, 9)))
    return model


def of_two() -> Any:
    images = [keras.Input((8, 8, 3)) for _ in range(2)]
    return keras.Model(images, L.Conv2D(3, 3)(L.Add()(images)))


def of_frames() -> Any:
    image = keras.Input((4, 3, 8, 8))
    return keras.Model(image, L.TimeDistributed(L.Conv2D(3, 3, data_format="channels_first"))(image))


def of_everything() -> Any:
    image = keras.Input((16, 16, 3))
    return keras.Model(image, L.Dense(2)(L.Conv2DTranspose(2, 3)(L.Conv2D(5, 3)(image))))


def beside_a_mask() -> Any:
    image, mask = keras.Input((16, 16, 3), name="image"), keras.Input((16, 16, 1), name="mask")
    x = L.Conv2D(5, 3, padding="same")(L.Conv2D(4, 3, padding="same")(mask))
    return keras.Model([mask, image], L.Add()([L.Conv2D(5, 3, padding="same")(image), x]))


def test_an_image_beside_another_input(tmp_path: Path):
    """Groups of a .keras file are numbered by class, whatever the order; an .h5 is read in the order of the layers."""
    before, after, old = tmp_path / "a.keras", tmp_path / "b.keras", built(beside_a_mask, tmp_path / "a.keras")
    assert convert(before, after, to=4, method="adapter").kernels[0].method == "adapter"
    new, rng = keras.models.load_model(after, compile=False), np.random.default_rng(0)
    image, mask = rng.random((2, 16, 16, 4)).astype("float32"), rng.random((2, 16, 16, 1)).astype("float32")
    fed = mapped(image, 3, TO_4).astype("float32")
    assert np.allclose(old.predict([mask, fed], verbose=0), new.predict([mask, image], verbose=0), atol=1e-5)
    assert verify(before, after, to=4, method="adapter").ok
    old.save(tmp_path / "a.h5")
    with pytest.raises(UnsupportedError, match="takes 2 inputs, and the order of its layers' weights would change"):
        convert(tmp_path / "a.h5", tmp_path / "b.h5", to=4, method="adapter")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "trained": (trained, "holds an optimizer's state, which does not fit one more layer"),
    "two images": (of_two, "takes 2 inputs, and the order of its layers' weights would change"),
    "bytes": (lambda: normalized("uint8"), "as uint8, and a convolution takes floating-point numbers"),
    "frames": (of_frames, "with the channels on axis 2 of 5"),
    "no class is left": (of_everything, "holds layers of each class that could stand in front"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path):
    model, message = REFUSED[name]
    built(model, tmp_path / "a.keras")
    with pytest.raises(UnsupportedError, match=message):
        convert(tmp_path / "a.keras", tmp_path / "b.keras", to=4, method="adapter")


def test_weights_alone_have_no_room(tmp_path: Path):
    sequential().save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(UnsupportedError, match="holds no graph that a convolution could be put into"):
        convert(tmp_path / "a.weights.h5", tmp_path / "b.weights.h5", to=4, method="adapter")

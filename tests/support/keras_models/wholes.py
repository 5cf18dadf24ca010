"""From a seed to a model: what images it takes, and how its layers are put together."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

from tests.support.keras_models.draw import SIZES, Draw, Flow, L
from tests.support.keras_models.fronts import LAYERS, front, through
from tests.support.keras_models.stems import STEMS, conv, features, of_dims

KINDS = {"image": 12, "volume": 2, "video": 4, "signal": 1}


class Drawn(NamedTuple):
    """A model, the names of what was drawn for it, and the axis of its images' channels."""

    model: Any
    names: list[str]
    axis: int


def shape_of(d: Draw, kind: str, channels: int, first: bool) -> tuple[list[int | None], int]:
    """Without the batch, and the number of axes of a convolution."""
    dims = {"image": 2, "volume": 3, "video": 2, "signal": 1}[kind]
    size: list[int | None] = [SIZES[dims]] * dims
    if kind == "image" and d.often(0.15):
        size = [None, None]
    shape = [channels, *size] if first else [*size, channels]
    return ([3, *shape] if kind == "video" else shape), dims


def start(d: Draw, kind: str, channels: int, first: bool, name: str | None = None) -> Flow:
    shape, dims = shape_of(d, kind, channels, first)
    time = kind == "video"
    return Flow(keras.Input(shape, name=name), 1 + time if first else len(shape), dims, time)


def rest(d: Draw, f: Flow) -> list[Any]:
    """What follows: a map of features, and perhaps a vector."""
    x, dims = f.x, f.dims
    if f.time:
        f = f._replace(x=x)
        layer = L.Conv3D(5, 1, data_format=f.format)
        axis = 1 if f.first else 4
        x = L.Permute((2, 1, 3, 4))(x) if f.first else x
        dims = 3
    else:
        axis = f.axis
        layer = of_dims("Conv#D", f)(5, d.pick(1, 3), padding="same", data_format=f.format)
        if d.often(0.4):
            x = L.BatchNormalization(axis=axis)(x)
    x = L.Activation(d.activation())(layer(x))
    if d.often(0.6):
        return [x]
    pool = getattr(L, f"GlobalAveragePooling{dims}D")(data_format=f.format)
    return [x, L.Dense(3, name="head" if d.often(0.5) else None)(pool(x))]


def functional(d: Draw, f: Flow) -> Any:
    return keras.Model(f.x, rest(d, features(d, through(d, f))))


def nested(d: Draw, f: Flow) -> Any:
    """A base inside of a model, with steps in front of both, and perhaps one more around them."""
    g = through(d, f, 2)
    inner = g._replace(x=keras.Input(g.x.shape[1:], name="base_input" if d.often(0.5) else None))
    base = keras.Model(inner.x, features(d, through(d, inner, 2)).x, name="base" if d.often(0.5) else None)
    if d.often(0.25):
        around = keras.Input(g.x.shape[1:])
        base = keras.Model(around, base(around))
    return keras.Model(f.x, rest(d, g._replace(x=base(g.x))))


def nested_sequential(d: Draw, f: Flow) -> Any:
    before, g = sequence(d, f, 2)
    stem = (conv(d, g),) if g.time is False else (L.TimeDistributed(conv(d, frame(g))),)
    base = keras.Sequential([keras.Input(f.x.shape[1:]), *before, *stem])
    return keras.Model(f.x, rest(d, g._replace(x=base(f.x))))


def frame(f: Flow) -> Flow:
    """One of a video."""
    return Flow(keras.Input(f.x.shape[2:]), f.axis - 1, f.dims)


def sequence(d: Draw, f: Flow, most: int) -> tuple[list[Any], Flow]:
    """Layers in front of a stem, and the image behind them."""
    layers = []
    for _ in range(d.pick(*range(most + 1))):
        layer, f = front(d, f, LAYERS)
        layers.append(layer)
    return layers, f


def sequential(d: Draw, f: Flow) -> Any:
    before, g = sequence(d, f, 3)
    stem = L.TimeDistributed(conv(d, frame(g))) if g.time else d.one_of(STEMS, g)
    stem(g.x)
    after: list[Any] = [L.Activation(d.activation())]
    if not f.time:
        after += [of_dims("Conv#D", f)(5, 3, padding="same", data_format=f.format)]
    else:
        after += [L.TimeDistributed(L.Conv2D(5, 1, data_format=f.format))]
    model = keras.Sequential(name="model" if d.often(0.5) else None)
    for layer in [keras.Input(f.x.shape[1:]), *before, stem, *after]:
        model.add(layer)
    return model


def with_vector(d: Draw, f: Flow) -> Any:
    """An image and a few numbers."""
    numbers = keras.Input((d.pick(1, 3, 4),), name="numbers")
    x = features(d, through(d, f, 2))
    outputs = rest(d, x)
    gate = L.Dense(5, activation="sigmoid")(numbers)
    axis = 1 if f.first else len(outputs[0].shape) - 1
    shape = [5 if k == axis else 1 for k in range(1, len(outputs[0].shape))]
    return keras.Model([f.x, numbers], [L.Multiply()([outputs[0], L.Reshape(shape)(gate)]), *outputs[1:]])


def two_images(d: Draw, f: Flow) -> Any:
    """Of as many channels: one encoder for both, or one each. Named and given as a list or by name."""
    other = keras.Input(f.x.shape[1:], name="second")
    inner = f._replace(x=keras.Input(f.x.shape[1:]))
    encoder = keras.Model(inner.x, features(d, through(d, inner, 2)).x)
    if d.often(0.6):
        pair = [encoder(f.x), encoder(other)]
    else:
        layers = [of_dims("Conv#D", f)(4, 3, padding="same", data_format=f.format) for _ in "ab"]
        layers = layers if not f.time else [L.TimeDistributed(layer) for layer in layers]
        pair = [layer(x) for layer, x in zip(layers, (f.x, other), strict=True)]
    joined = f._replace(x=d.pick(L.Add(), L.Subtract(), L.Concatenate(axis=f.axis))(pair))
    inputs = {f.x.name: f.x, "second": other} if d.often(0.3) else [f.x, other]
    return keras.Model(inputs, rest(d, joined))


def with_other_image(d: Draw, f: Flow) -> Any:
    """RGB and depth, or a mask: another image of one channel or of two, with a stem of its own or beside the first."""
    channels = d.pick(1, 1, 2)
    shape = [channels if k == f.axis else n for k, n in enumerate(f.x.shape)][1:]
    other = keras.Input(shape, name=d.pick("depth", "mask"))
    g = f._replace(x=f.x)
    if d.often(0.35):
        joined = f._replace(x=L.Concatenate(axis=f.axis)([f.x, other]))
        return keras.Model([f.x, other], rest(d, features(d, joined)))
    layers = [of_dims("Conv#D", f)(4, 3, padding="same", data_format=f.format) for _ in "ab"]
    layers = layers if not f.time else [L.TimeDistributed(layer) for layer in layers]
    made = [layer(x) for layer, x in zip(layers, (g.x, other), strict=True)]
    inputs = [f.x, other] if d.often(0.5) else [other, f.x]
    return keras.Model(inputs, rest(d, f._replace(x=L.Concatenate(axis=f.axis)(made))))


WHOLES = {functional: 10, sequential: 5, nested: 4, nested_sequential: 2, with_vector: 1.2, two_images: 2, with_other_image: 2}


def randomised(model: Any, seed: int) -> None:
    """Weights that start at zero or one, off these values."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(random.uniform(0.7, 1.4, weight.shape))
        elif weight.name in ("bias", "beta", "moving_mean"):
            weight.assign(random.uniform(-0.3, 0.3, weight.shape))


def build(seed: int, channels: int, plain: bool = False) -> Drawn:
    """The model of a seed for images of so many channels. Raises what Keras raises where a drawn row of layers does not fit."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    d = Draw(seed, channels, plain)
    kind, first = d.weighted(KINDS), d.often(0.2)
    d.names += [kind, *(["channels_first"] if first else [])]
    f = start(d, kind, channels, first, "image" if d.often(0.4) else None)
    wholes = {rule: weight for rule, weight in WHOLES.items() if not (plain and rule is with_other_image)}
    model = d.one_of(wholes, f)  # of weights alone no one knows which images meet in a kernel
    randomised(model, seed)
    if d.often(0.12):
        d.names.append("compiled")
        model.compile(d.pick("adam", "sgd", "rmsprop"), "mse")
        model.optimizer.build(model.trainable_variables)
    return Drawn(model, d.names, f.axis)

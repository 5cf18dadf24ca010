"""What stands between an image and a first convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.applications import imagenet_utils

from tests.support.keras_models.draw import Draw, Flow, L, Step, shaped, size_of


def rescaling(d: Draw, f: Flow) -> Step:
    if d.plain and "normalization_adapted" in d.names:  # the scale of its constants would be in the code alone: this is announced
        return idle(d, f)
    scale, offset = d.pick(1 / 255, 2.0, 1 / 127.5), d.pick(0.0, -1.0)
    return Step(L.Rescaling(scale, offset=0.0 if d.plain else offset))


def rescaling_lists(d: Draw, f: Flow) -> Step:
    scale, offset = d.numbers(f.channels, 0.5, 3), d.numbers(f.channels, -2, 2)
    if f.first:  # Keras aligns them with the last axis
        scale, offset = shaped(f, scale).tolist(), shaped(f, offset).tolist()
    return Step(L.Rescaling(scale, offset=offset if d.often(0.7) else 0.0))


def normalization_given(d: Draw, f: Flow) -> Step:
    mean, variance = d.numbers(f.channels, 0.2, 0.7), d.numbers(f.channels, 0.1, 2)
    invert = d.often(0.1)
    axis = f.axis if f.first else d.pick(-1, -1, f.axis, (-1,))
    wrapped = d.pick(list, list, np.array, tuple)
    return Step(L.Normalization(axis=axis, mean=wrapped(mean), variance=wrapped(variance), invert=invert))


def normalization_adapted(d: Draw, f: Flow) -> Step:
    axis = d.weighted({"channels": 5, "none": 1})
    layer = L.Normalization(axis=None if axis == "none" else f.axis if f.first else -1)
    random = np.random.default_rng(d.chance.randrange(1000))
    shape = [4, *[6 if n is None else n for n in f.x.shape[1:]]]
    along = np.array(d.numbers(f.channels, 0.5, 2)).reshape([-1 if k == f.axis else 1 for k in range(len(shape))])
    layer.adapt((random.random(shape) * along + along).astype("float32"))
    return Step(layer)


def batch_norm(d: Draw, f: Flow) -> Step:
    return Step(L.BatchNormalization(axis=f.axis if f.first else -1, scale=d.often(0.7), center=d.often(0.7)))


def arithmetic(d: Draw, f: Flow) -> Step:
    kind, way = d.pick("add", "subtract", "multiply", "divide"), d.pick("right", "right", "right", "left", "function", "method")
    values = d.numbers(f.channels, 0.5, 2)
    values = shaped(f, values)[None] if d.often(0.2) else shaped(f, values)
    function = getattr(ops, kind)
    if way == "function":
        return Step(lambda x: function(x, values))
    if way == "left":
        return Step(lambda x: function(values, x))
    return Step({"add": lambda x: x + values, "subtract": lambda x: x - values, "multiply": lambda x: x * values,
                 "divide": lambda x: x / values}[kind])  # fmt: skip


def scalar_arithmetic(d: Draw, f: Flow) -> Step:
    value = d.pick(2.0, 0.5, 1 / 255)
    return Step(d.pick(lambda x: x * value, lambda x: x / value, lambda x: x - value, lambda x: value - x, lambda x: -x))


def preprocess_input(d: Draw, f: Flow) -> Step:
    """That of keras.applications; Caffe's order and means are of three channels."""
    mode = d.pick("caffe", "tf", "torch")
    if mode != "tf" and f.channels != 3:
        mode = "tf"
    return Step(lambda x: imagenet_utils.preprocess_input(x, data_format=f.format, mode=mode))


def channel_order(d: Draw, f: Flow) -> Step:
    kind, order = d.pick("slice", "flip", "take", "split", "unstack"), d.order(f.channels)
    if kind == "slice":
        return Step(lambda x: x[(*[slice(None)] * f.axis, slice(None, None, -1))])
    if kind == "flip":
        return Step(lambda x: ops.flip(x, axis=f.axis))
    if kind == "take":
        return Step(lambda x: ops.take(x, order, axis=f.axis))
    if kind == "split":
        return Step(lambda x: ops.concatenate([ops.split(x, f.channels, axis=f.axis)[k] for k in order], axis=f.axis))
    return Step(lambda x: ops.stack([ops.unstack(x, axis=f.axis)[k] for k in order], axis=f.axis))


def some_channels(d: Draw, f: Flow) -> Step:
    """One of them, or all but one: the network sees no more."""
    kept = d.pick(slice(0, 1), slice(None, -1)) if f.channels > 1 else slice(None)
    return Step(lambda x: x[(*[slice(None)] * f.axis, kept)])


def zero_padding(d: Draw, f: Flow) -> Step:
    if f.time or (f.first and f.dims == 1):  # it would pad channels
        return rescaling(d, f)
    return Step(getattr(L, f"ZeroPadding{f.dims}D")(d.pick(1, 2, 3), **({} if f.dims == 1 else {"data_format": f.format})))


def padding(d: Draw, f: Flow) -> Step:
    value = d.pick(0.0, 0.5)
    amounts = [(0, 0) if k in (0, f.axis) else (1, 1) for k in range(len(f.x.shape))]
    mode = d.pick("constant", "constant", "reflect")
    if mode == "reflect" and f.dims != 2:
        mode = "constant"
    return Step(lambda x: ops.pad(x, amounts, mode=mode, **({"constant_values": value} if mode == "constant" else {})))


def cropping(d: Draw, f: Flow) -> Step:
    if f.time:
        return rescaling(d, f)
    return Step(getattr(L, f"Cropping{f.dims}D")(1, **({} if f.dims == 1 else {"data_format": f.format})))


def resizing(d: Draw, f: Flow) -> Step:
    if f.dims != 2 or f.time:
        return rescaling(d, f)
    kind = d.pick("bilinear", "nearest", "crop", "function")
    if kind == "crop":
        return Step(L.CenterCrop(20, 20, data_format=f.format))
    if kind == "function":
        return Step(lambda x: ops.image.resize(x, (20, 20), data_format=f.format))
    return Step(L.Resizing(20, 22, interpolation=kind, data_format=f.format))


def upsampling(d: Draw, f: Flow) -> Step:
    if f.dims != 2 or f.time:
        return rescaling(d, f)
    return Step(L.UpSampling2D(2, data_format=f.format))


def pooling(d: Draw, f: Flow) -> Step:
    kind = d.pick("Average", "Average" if d.plain else "Max")
    if f.time:
        return rescaling(d, f)
    return Step(getattr(L, f"{kind}Pooling{f.dims}D")(2, data_format=f.format))


def transposed(d: Draw, f: Flow) -> Step:
    """Channels come last, or first."""
    if f.time:
        return rescaling(d, f)
    axes = list(range(1, len(f.x.shape)))
    axes = [*axes[1:], 1] if f.first else [axes[-1], *axes[:-1]]
    axis = len(axes) if f.first else 1
    if d.often(0.5):
        return Step(L.Permute(axes), axis)
    return Step(lambda x: ops.transpose(x, [0, *axes]), axis)


def there_and_back(d: Draw, f: Flow) -> Step:
    """A reshape that changes nothing in the end."""
    shape = list(f.x.shape[1:])
    if None in shape:
        return Step(lambda x: ops.squeeze(ops.expand_dims(x, 1), 1))
    if d.often(0.5):
        return Step(L.Reshape(shape))
    return Step(lambda x: ops.reshape(ops.reshape(x, (-1, int(np.prod(shape)))), (-1, *shape)))


def squashed(d: Draw, f: Flow) -> Step:
    """Not linear, for each value alone."""
    return Step(d.pick(
        L.Activation("tanh"), L.ReLU(max_value=1.5), L.Activation("sigmoid"), lambda x: ops.clip(x, 0.0, 0.9),
        lambda x: ops.abs(x - 0.5), lambda x: ops.square(x), lambda x: ops.maximum(x, 0.3), lambda x: x**2.0,
    ))  # fmt: skip


def cast(d: Draw, f: Flow) -> Step:
    return Step(lambda x: ops.cast(x, "float32"))


def idle(d: Draw, f: Flow) -> Step:
    """Nothing outside of training."""
    return Step(d.pick(L.GaussianNoise, L.Dropout)(0.1) if d.often(0.8) else L.Identity())


def augmented(d: Draw, f: Flow) -> Step:
    """Keras' own, alone or in the Sequential of its tutorials."""
    if f.dims != 2 or f.time:
        return idle(d, f)
    makers = [
        lambda: L.RandomFlip("horizontal"), lambda: L.RandomRotation(0.1), lambda: L.RandomZoom(0.1),
        lambda: L.RandomTranslation(0.1, 0.1), lambda: L.RandomContrast(0.1), lambda: L.RandomBrightness(0.1),
        lambda: L.RandomCrop(18, 18), lambda: L.RandomHue(0.1), lambda: L.RandomGrayscale(0.2), lambda: L.RandomSaturation(0.3),
    ]  # fmt: skip
    geometric = [0, 1, 2, 3, 6]
    chosen = [(d.pick(*geometric), d.pick(*range(len(makers))))[f.channels == 3 and not f.first] for _ in range(d.pick(1, 2, 2))]
    layers = [makers[0 if f.first and k == 6 else k]() for k in chosen]
    for layer in layers:
        layer.data_format = f.format
    return Step(layers[0] if len(layers) == 1 else keras.Sequential(layers))


def gray_inside(d: Draw, f: Flow) -> Step:
    """The mean of the channels, or luma: what follows takes one."""
    if d.often(0.3) and f.channels == 3 and f.dims == 2 and not f.time:
        return Step(lambda x: ops.image.rgb_to_grayscale(x, data_format=f.format))
    return Step(lambda x: ops.mean(x, axis=f.axis, keepdims=True))


def repeated(d: Draw, f: Flow) -> Step:
    """The image several times, as gray ones are fed to networks of colors."""
    kind = d.pick("layer", "function", "repeat", "tile")
    if kind == "layer":
        return Step(lambda x: L.Concatenate(axis=f.axis)([x, x, x]))
    if kind == "function":
        return Step(lambda x: ops.concatenate([x, x], axis=f.axis))
    if kind == "repeat":
        return Step(lambda x: ops.repeat(x, 3, axis=f.axis))
    return Step(lambda x: ops.tile(x, [3 if k == f.axis else 1 for k in range(len(f.x.shape))]))


def with_itself(d: Draw, f: Flow) -> Step:
    """The image beside something made of it."""
    made = d.pick(lambda x: x * 2.0, lambda x: 1.0 - x, lambda x: ops.square(x), lambda x: ops.mean(x, f.axis, keepdims=True))
    return Step(lambda x: L.Concatenate(axis=f.axis)([x, made(x)] if d.often(0.5) else [made(x), x]))


def pointwise(d: Draw, f: Flow) -> Step:
    """The 1×1 convolution that people put in front of a base."""
    if f.time:
        return rescaling(d, f)
    return Step(getattr(L, f"Conv{f.dims}D")(3, 1, data_format=f.format, use_bias=d.often(0.6)))


def wrapped_scaling(d: Draw, f: Flow) -> Step:
    return Step(L.TimeDistributed(L.Rescaling(0.5))) if f.time else rescaling(d, f)


FRONTS = {
    rescaling: 3, rescaling_lists: 4, normalization_given: 4, normalization_adapted: 4, batch_norm: 2, arithmetic: 4,
    scalar_arithmetic: 1.5, preprocess_input: 1.5, channel_order: 1.5, some_channels: 0.7, zero_padding: 2, padding: 1,
    cropping: 1, resizing: 1.5, upsampling: 0.7, pooling: 0.7, transposed: 0.7, there_and_back: 0.7, squashed: 1.2, cast: 0.5,
    idle: 1, augmented: 2, gray_inside: 0.5, repeated: 0.7, with_itself: 0.7, pointwise: 1, wrapped_scaling: 0.5,
}  # fmt: skip
LAYERS = {
    rescaling: 3, rescaling_lists: 4, normalization_given: 4, normalization_adapted: 4, batch_norm: 2, zero_padding: 2,
    cropping: 1, resizing: 1.5, upsampling: 0.7, pooling: 0.7, idle: 1, augmented: 2, pointwise: 1, wrapped_scaling: 0.5,
}  # fmt: skip
"""Those that a Sequential may hold."""
PLAIN = {
    rescaling: 2, normalization_adapted: 4, batch_norm: 3, zero_padding: 2, cropping: 1, resizing: 1.5, upsampling: 0.7,
    pooling: 0.7, idle: 1, augmented: 1, pointwise: 1,
}  # fmt: skip
"""Those that hold nothing of channels in their configuration, and let every mix of channels through."""


def front(d: Draw, f: Flow, options: dict[Callable[[Draw, Flow], Step], float]) -> tuple[Any, Flow]:
    """One of them, and the image behind it."""
    step = d.one_of(PLAIN if d.plain else options, f)
    return step.call, f._replace(x=step.call(f.x), axis=f.axis if step.axis is None else step.axis)


def through(d: Draw, f: Flow, most: int = 3) -> Flow:
    """The image behind some of them."""
    for _ in range(d.weighted(dict(zip(range(most + 1), (2, 4, 3, 1), strict=False)))):
        if all(n is None or n >= 10 for n in size_of(f)):
            f = front(d, f, FRONTS)[1]
    return f

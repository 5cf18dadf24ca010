"""First convolutions, and all else that may take the image first."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tests.support.keras_models.draw import Draw, Flow, L, size_of


def settings(d: Draw, f: Flow) -> dict[str, Any]:
    """What any convolution may say. Dilated ones do not stride. Weights alone do not tell whether an activation is between a
    kernel and the norm that takes its constants: there is none, then."""
    strides = d.pick(1, 1, 2)
    dilation = d.pick(1, 1, 1, 2) if strides == 1 else 1
    return {
        "kernel_size": d.pick(1, 3, 3, 3, 5), "strides": strides, "dilation_rate": dilation,
        "padding": d.pick("same", "same", "valid"), "use_bias": (bias := d.often(0.7)),
        "activation": d.activation() if d.often(0.3) and not (d.plain and not bias) else None, "data_format": f.format,
    }  # fmt: skip


def of_dims(kind: str, f: Flow) -> Any:
    return getattr(L, f"{kind.replace('#', str(f.dims))}")


def conv(d: Draw, f: Flow) -> Any:
    return of_dims("Conv#D", f)(6, **settings(d, f))


def grouped(d: Draw, f: Flow) -> Any:
    if d.plain:  # its filters are as many as the image has channels
        return conv(d, f)
    return of_dims("Conv#D", f)(2 * f.channels, groups=f.channels, **settings(d, f) | {"dilation_rate": 1})


def depthwise(d: Draw, f: Flow) -> Any:
    if f.dims == 3 or d.plain:  # toward gray its multiplier is another, and that is in the code
        return conv(d, f)
    return of_dims("DepthwiseConv#D", f)(depth_multiplier=d.pick(1, 2), **settings(d, f))


def separable(d: Draw, f: Flow) -> Any:
    if f.dims == 3 or d.plain:
        return conv(d, f)
    return of_dims("SeparableConv#D", f)(6, depth_multiplier=d.pick(1, 1, 2), **settings(d, f))


def deconv(d: Draw, f: Flow) -> Any:
    return of_dims("Conv#DTranspose", f)(6, **settings(d, f) | {"dilation_rate": 1})


def spectral(d: Draw, f: Flow) -> Any:
    inner = d.one_of({conv: 3, dense: 1}, f)
    return L.SpectralNormalization(inner, power_iterations=1)


def dense(d: Draw, f: Flow) -> Any:
    """A convolution of single pixels in all but the name; channels come last."""
    if f.first:
        return conv(d, f)
    if d.often(0.3):
        axes = "abcdef"[: len(f.x.shape) - 2]
        shape = [None if n is None else n for n in f.x.shape[1:-1]]
        return L.EinsumDense(f"z{axes}i,io->z{axes}o", (*shape, 6), bias_axes="o" if d.often(0.5) else None)
    return L.Dense(6, use_bias=d.often(0.7))


def patches(d: Draw, f: Flow) -> Any:
    return of_dims("Conv#D", f)(8, 4, strides=4, data_format=f.format, name="patch_embedding" if d.often(0.3) else None)


STEMS = {conv: 10, grouped: 1, depthwise: 2, separable: 2, deconv: 1, spectral: 2, dense: 1.5, patches: 1}
"""Each makes a layer that gives features where there was an image."""


def unrolled(d: Draw, f: Flow) -> Any:
    """Patches as vectors, and a Dense layer over each: MLP-Mixer and ViT without a convolution. The image is of even size."""
    height, width = size_of(f)
    h, w, c = height // 2, width // 2, f.channels
    kind = d.pick("reshape", "patches", "flat", "depth")
    if kind == "patches":
        made = ops.image.extract_patches(f.x, size=2, data_format=f.format)
    elif kind == "depth":
        made = ops.space_to_depth(f.x, 2) if hasattr(ops, "space_to_depth") else ops.image.extract_patches(f.x, size=2)
    elif kind == "flat":
        return L.Reshape((1, 1, 6))(L.Dense(6)(L.Flatten()(L.AveragePooling2D(4)(f.x))))
    else:
        made = ops.reshape(ops.transpose(ops.reshape(f.x, (-1, h, 2, w, 2, c)), (0, 1, 3, 2, 4, 5)), (-1, h, w, 4 * c))
    return L.Dense(6)(made)


def lstm_over_rows(d: Draw, f: Flow) -> Any:
    """Rows of pixels as a sequence."""
    height, width = size_of(f)
    made = L.Reshape((height, width * f.channels))(f.x)
    return L.Reshape((height, 1, 6))(d.pick(L.LSTM, L.GRU)(6, return_sequences=True)(made))


def video(d: Draw, f: Flow) -> Any:
    """One that takes frames, time first."""
    kind = d.weighted({"td": 4, "td_model": 3, "lstm": 3, "bidirectional": 3, "td_sequential": 2})
    d.names.append(kind)
    recurrent = {
        "filters": 4,
        "kernel_size": 3,
        "padding": d.pick("same", "valid"),
        "return_sequences": True,
        "data_format": f.format,
    }
    recurrent |= {"use_bias": d.often(0.8), "strides": d.pick(1, 1, 2)}
    if kind == "lstm":
        return L.ConvLSTM2D(**recurrent)
    if kind == "bidirectional":
        return L.Bidirectional(L.ConvLSTM2D(**recurrent), merge_mode=d.pick("concat", "sum", "ave"))
    shape = f.x.shape[2:]
    frame = Flow(keras.Input(shape), f.axis - 1, f.dims)
    layer = d.one_of({conv: 6, depthwise: 1, separable: 1}, frame)
    if kind == "td":
        return L.TimeDistributed(layer)
    before = [L.Rescaling(1 / 127.5, offset=-1.0)] if d.often(0.5) and not d.plain else []
    if kind == "td_sequential":
        return L.TimeDistributed(keras.Sequential([keras.Input(shape), *before, layer, L.Activation("tanh")]))
    x = frame.x
    for step in [*before, layer]:
        x = step(x)
    return L.TimeDistributed(keras.Model(frame.x, x))


def features(d: Draw, f: Flow) -> Flow:
    """Those of one stem, of several side by side, or of one that is used twice."""
    if f.time:
        d.names.append("video")
        return f._replace(x=video(d, f)(f.x))
    even = f.dims == 2 and not f.first and all(n is not None and n % 2 == 0 for n in size_of(f))
    # of weights alone, a Dense layer over the means of the image is one over as many other numbers
    pooled = {} if d.plain else {"pooled": 1}
    kind = d.weighted({"one": 16, "branches": 2, "shared": 1, "past": 1.5, **pooled, "unrolled": 1.2, "rows": 0.4})
    d.names.append(kind)
    if kind in ("unrolled", "rows") and even:
        return f._replace(x=(unrolled if kind == "unrolled" else lstm_over_rows)(d, f))
    if kind == "branches":
        convs = [of_dims("Conv#D", f)(4, k, padding="same", data_format=f.format, use_bias=d.often(0.5)) for k in (1, 3)]
        return f._replace(x=d.pick(L.Concatenate(axis=f.axis), L.Add())([layer(f.x) for layer in convs]))
    if kind == "shared":
        layer = of_dims("Conv#D", f)(4, 3, data_format=f.format)
        other = d.pick(lambda x: x * 0.5, lambda x: -x, lambda x: ops.flip(x, 2), lambda x: 1.0 - x)
        return f._replace(x=L.Add()([layer(f.x), layer(other(f.x))]) if d.often(0.6) else layer(layer_of_as_many(d, f)(f.x)))
    if kind == "past":
        made = of_dims("Conv#D", f)(4, 3, padding="same", activation=d.activation(), data_format=f.format)(f.x)
        if d.often(0.3):
            back = of_dims("Conv#D", f)(f.channels, 3, padding="same", data_format=f.format)(made)
            return f._replace(x=d.pick(L.Add(), L.Subtract(), L.Multiply())([f.x, back]))
        return f._replace(x=L.Concatenate(axis=f.axis)([f.x, made]))
    if kind == "pooled":
        made = of_dims("Conv#D", f)(4, 3, padding="same", data_format=f.format)(f.x)
        gate = L.Dense(4, activation="sigmoid")(getattr(L, f"GlobalAveragePooling{f.dims}D")(data_format=f.format)(f.x))
        return f._replace(x=made * gate[(slice(None), *[slice(None) if k == f.axis else None for k in range(1, len(f.x.shape))])])
    return f._replace(x=d.one_of(STEMS, f)(f.x))


def layer_of_as_many(d: Draw, f: Flow) -> Any:
    """A convolution from the image's channels to as many."""
    return of_dims("Conv#D", f)(f.channels, 3, padding="same", activation=d.activation(), data_format=f.format)

"""The numbers of what a layer does to each channel of an image, from its configuration and its weights.

    Rescaling            y = scale · x + offset
    Normalization        y = (x − mean) / max(√variance, 1e-7), or the inverse
    BatchNormalization   y = gamma · (x − moving_mean) / √(moving_variance + epsilon) + beta
    functions            x · c, x / c, x + c, x − c, c − x

Source: keras/src/layers/preprocessing/{rescaling,normalization}.py, layers/normalization/batch_normalization.py, Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.keras.config import Layer, Path, at
from chkpt_channels.formats.keras.dataflow.effects import Image, axes_of, operands
from chkpt_channels.formats.keras.layers import extents, flat

EPSILON = 1e-7
"""keras.config.epsilon(), which Normalization uses."""


class ChannelConstants(NamedTuple):
    """The numbers of a per-channel operation. `lists` are paths of the configuration, `tensors` the layer's weights that hold
    one value per channel."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    lists: tuple[Path, ...] = ()
    tensors: tuple[str, ...] = ()


def constants(layer: Layer, call: int, image: Image, weight: Callable[[str], Sequence[float] | None]) -> ChannelConstants | None:
    """The numbers of a layer that `effect` says scales; `weight` reads one of its weights. None where it has none."""
    config = layer.config
    if layer.is_function:
        return _of_function(layer, call, image)
    if layer.kind == "Rescaling":
        scale, offset = (_wide(config.get(key, default), image) for key, default in (("scale", 1.0), ("offset", 0.0)))
        lists = tuple((*layer.path, "config", key) for key in ("scale", "offset") if len(flat(config.get(key)) or ()) > 1)
        return ChannelConstants(scale, offset, lists)
    if layer.kind == "Normalization":
        return _of_normalization(layer, image, weight)
    return _of_batch_normalization(layer, image, weight)


def _wide(value: Any, image: Image) -> tuple[float, ...]:
    numbers = flat(value) or []
    return tuple(numbers * image.channels if len(numbers) == 1 else numbers)


def _of_function(layer: Layer, call: int, image: Image) -> ChannelConstants | None:
    terms = operands(layer, call)
    if terms is None:
        return None
    sign, constant, path, is_first = terms
    c, ones, zeros = _wide(constant, image), (1.0,) * image.channels, (0.0,) * image.channels
    scale = (
        c if sign == "*" else tuple(1 / x for x in c) if sign == "/" else (-1.0,) * len(c) if is_first and sign == "-" else ones
    )
    shift = zeros if sign in "*/" else c if sign == "+" or is_first else tuple(-x for x in c)
    return ChannelConstants(scale, shift, (path,) if len(flat(constant) or ()) > 1 else ())


def _of_normalization(layer: Layer, image: Image, weight: Callable[[str], Sequence[float] | None]) -> ChannelConstants | None:
    given = {key: layer.config.get(key) for key in ("mean", "variance")}
    if given["mean"] is not None:
        mean, variance = (_wide(given[key], image) for key in ("mean", "variance"))
        lists = tuple((*layer.path, "config", key) for key, value in given.items() if len(flat(value) or ()) > 1)
        tensors: tuple[str, ...] = ()
    else:
        stored = weight("mean"), weight("variance")
        if stored[0] is None or stored[1] is None:
            return None
        mean, variance = _wide(list(stored[0]), image), _wide(list(stored[1]), image)
        lists, tensors = (), ("mean", "variance") if axes_of(layer.config.get("axis", -1), image.rank) else ()
    deviation = tuple(max(sqrt(max(v, 0.0)), EPSILON) for v in variance)
    if layer.config.get("invert"):
        return ChannelConstants(deviation, mean, lists, tensors)
    return ChannelConstants(
        tuple(1 / d for d in deviation), tuple(-m / d for m, d in zip(mean, deviation, strict=True)), lists, tensors
    )


def _of_batch_normalization(
    layer: Layer, image: Image, weight: Callable[[str], Sequence[float] | None]
) -> ChannelConstants | None:
    stored = {name: weight(name) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    mean, variance = stored["moving_mean"], stored["moving_variance"]
    if mean is None or variance is None:
        return None
    gamma, beta = stored["gamma"] or [1.0] * image.channels, stored["beta"] or [0.0] * image.channels
    epsilon = float(layer.config.get("epsilon", 1e-3))
    scale = tuple(g / sqrt(v + epsilon) for g, v in zip(gamma, variance, strict=True))
    shift = tuple(b - m * s for b, m, s in zip(beta, mean, scale, strict=True))
    return ChannelConstants(scale, shift, (), tuple(name for name, value in stored.items() if value is not None))


def select_channels(document: Any, path: Path, channels: Sequence[int]) -> Any:
    """The constant at `path` with the numbers of these channels, nested as before."""
    value = at(document, path)
    if isinstance(value, dict):
        return {**value, "config": {**value["config"], "value": select_channels(value, ("config", "value"), channels)}}
    lengths = extents(value)
    axis = next(i for i, length in enumerate(lengths) if length > 1)
    return _along(value, axis, channels)


def _along(value: Any, axis: int, channels: Sequence[int]) -> Any:
    if axis == 0:
        return [value[channel] for channel in channels]
    return [_along(inner, axis - 1, channels) for inner in value]

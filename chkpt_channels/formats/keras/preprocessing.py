"""What a layer before a convolution does to each channel, from its configuration and its weights.

    Rescaling            y = scale · x + offset
    Normalization        y = (x − mean) / max(√variance, 1e-7), or the inverse
    BatchNormalization   y = gamma · (x − moving_mean) / √(moving_variance + epsilon) + beta
    functions            x · c, x / c, x + c, x − c, c − x

Nested models repeat the pattern: EfficientNet has Rescaling, Normalization and a second Rescaling (in Keras 2 a TFOpLambda with
a nested list), ConvNeXt a Normalization whose constants are in the configuration.
Source: keras/src/layers/preprocessing/{rescaling,normalization}.py, layers/normalization/batch_normalization.py, Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any, NamedTuple

from chkpt_channels.formats.keras.config import Layer, Path, Ref, at, is_reference
from chkpt_channels.formats.keras.layers import CHANNELWISE, CONVS, NONLINEAR, data_format, extents, flat

EPSILON = 1e-7
"""keras.config.epsilon(), which Normalization uses."""

_OPERATIONS = {
    **dict.fromkeys(("math.multiply", "Multiply"), "*"),
    **dict.fromkeys(("math.truediv", "math.divide", "Divide", "TrueDivide"), "/"),
    **dict.fromkeys(("math.add", "__operators__.add", "nn.bias_add", "Add"), "+"),
    **dict.fromkeys(("math.subtract", "Subtract"), "-"),
    **dict.fromkeys(("cast", "Cast", "image.resize", "identity"), "="),
}


class Image(NamedTuple):
    """An image that a model takes: its tensor, its number among the inputs, the layer and the path that state its shape, and
    the axis of that shape that holds the channels."""

    ref: Ref
    number: int
    layer: Layer
    path: Path
    channels: int
    axis: int
    rank: int

    @property
    def data_format(self) -> str:
        """As Keras names it."""
        return "channels_last" if self.axis == self.rank - 1 else "channels_first"


class ChannelConstants(NamedTuple):
    """The numbers of a per-channel operation. `lists` are paths of the configuration, `tensors` the layer's weights that hold
    one value per channel."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    lists: tuple[Path, ...] = ()
    tensors: tuple[str, ...] = ()


def effect(layer: Layer, call: int, image: Image) -> str:
    """What a layer does to an image. It "keeps" its channels, linearly and all alike, or "bends" them, all alike; "shifts" all of
    them by the same constants, or "scales" each by its own; is a "conv" over them; or "mixes" them, which is the answer for
    everything unknown too."""
    config = layer.config if isinstance(layer.config, dict) else {}
    formatted = data_format(config) == image.data_format
    if layer.is_function:
        return _effect_of_function(layer, call, image)
    if layer.kind in CONVS:
        return "conv" if formatted and image.rank == len(CONVS[layer.kind].layout.axes) else "mixes"
    if layer.kind in CHANNELWISE:
        soft = layer.kind == "Activation" and "softmax" in str(config.get("activation"))
        if soft or ("data_format" in config and not formatted):
            return "mixes"
        return "bends" if layer.kind in NONLINEAR and config.get("activation") != "linear" else "keeps"
    if layer.kind == "Rescaling":
        return _effect_of_constants([config.get("scale", 1.0), config.get("offset", 0.0)], image)
    if layer.kind == "Normalization":
        return _effect_of_normalization(config, image)
    if layer.kind == "BatchNormalization":
        return "scales" if _axes(config.get("axis", -1), image.rank) == [image.axis] else "mixes"
    return "mixes"


def _effect_of_constants(constants: Sequence[Any], image: Image) -> str:
    values = [flat(constant) for constant in constants]
    if any(numbers is None or len(numbers) not in (1, image.channels) for numbers in values):
        return "mixes"
    if all(numbers is not None and len(numbers) == 1 for numbers in values):
        return "shifts"
    return "scales" if all(_is_along(constant, image) for constant in constants) else "mixes"


def _is_along(constant: Any, image: Image) -> bool:
    """Whether a constant, broadcast as an array, has one value per channel, or only one."""
    lengths = extents(constant)
    if all(length == 1 for length in lengths):
        return True
    axis = len(lengths) - (image.rank - image.axis)
    return axis >= 0 and all(length == (image.channels if i == axis else 1) for i, length in enumerate(lengths))


def _effect_of_normalization(config: Mapping[str, Any], image: Image) -> str:
    axes = _axes(config.get("axis", -1), image.rank)
    if axes not in ([], [image.axis]):
        return "mixes"
    given = [config[key] for key in ("mean", "variance") if config.get(key) is not None]
    if any(flat(value) is None or len(flat(value) or ()) not in (1, image.channels) for value in given):
        return "mixes"
    return "scales" if axes else "shifts"


def _axes(axis: Any, rank: int) -> list[int] | None:
    """The axes that a normalization keeps apart; None where they are no integers."""
    listed = [] if axis is None else axis if isinstance(axis, list) else [axis]
    return [i % rank for i in listed] if all(type(i) is int for i in listed) else None


def _effect_of_function(layer: Layer, call: int, image: Image) -> str:
    terms = operands(layer, call)
    if terms is None:
        return "mixes"
    sign, constant, _, is_first = terms
    if sign == "=":
        return "keeps"
    return "mixes" if sign == "/" and is_first else _effect_of_constants([constant], image)


def operands(layer: Layer, call: int) -> tuple[str, Any, Path, bool] | None:
    """(operation, constant, its path, whether it is the first operand) of a function of one tensor and a constant."""
    node = layer.nodes[call]
    sign = _OPERATIONS.get(str(layer.config.get("function", layer.kind)).removeprefix("tf."))
    if sign is None or len(node.inbound) != 1:
        return None
    if sign == "=":
        return sign, None, (), False
    value = layer.entry["inbound_nodes"][call]
    if isinstance(value, dict):
        arguments = value.get("args") or []
        for i, argument in enumerate(arguments):
            if len(arguments) == 2 and flat(argument) is not None:
                return sign, argument, (*node.path, "args", i), i == 0
        return None
    if is_reference(value) and len(value) == 4:
        return sign, value[3].get("y", value[3].get("bias")), (*node.path, 3, "y" if "y" in value[3] else "bias"), False
    if isinstance(value, list) and value and value[0] == "_CONSTANT_VALUE":
        return sign, value[2], (*node.path, 2), True
    return None


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
        lists, tensors = (), ("mean", "variance") if len(stored[0]) > 1 else ()
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

"""What a layer before a convolution does to the channels of an image, from its configuration.

Nested models repeat the pattern: EfficientNet has Rescaling, Normalization and a second Rescaling (in Keras 2 a TFOpLambda with
a nested list), ConvNeXt a Normalization whose constants are in the configuration.
Source: keras/src/layers and keras/src/ops of Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.keras.config import Layer, Path, Ref, is_reference
from chkpt_channels.formats.keras.layers import CHANNELWISE, CONVS, NONLINEAR, data_format, extents, flat, is_pointwise

_OPERATIONS = {
    **dict.fromkeys(("math.multiply", "Multiply"), "*"),
    **dict.fromkeys(("math.truediv", "math.divide", "Divide", "TrueDivide"), "/"),
    **dict.fromkeys(("math.add", "__operators__.add", "nn.bias_add", "Add"), "+"),
    **dict.fromkeys(("math.subtract", "Subtract"), "-"),
    **dict.fromkeys(("cast", "Cast", "image.resize", "identity"), "="),
}
_BENDING = frozenset(
    {
        *("Absolute", "Square", "Sqrt", "Exp", "Expm1", "Log", "Log1p", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Clip"),
        *("Relu", "Relu6", "Sigmoid", "Tanh", "Silu", "Gelu", "Elu", "Selu", "Softplus", "Softsign", "LeakyRelu", "HardSigmoid"),
        *("Maximum", "Minimum", "Power", "TrueDivide", "Divide"),
    }
)
"""Operations on each value alone, with one constant at most."""
_LAST = frozenset({"ZeroPadding1D", "Cropping1D", "UpSampling1D"})
"""Classes that take axis 1 for the pixels, with no word of it in their configuration."""
_PADDING = ("constant", "edge", "reflect", "symmetric", "wrap")
"""Modes that fill with pixels of the same channel, or with a constant."""


class Image(NamedTuple):
    """An image that a model takes: its tensor, its number among the inputs, the layer and the path that state its shape, and
    the axis of that shape that holds the channels. What an adapter makes has no path."""

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


def effect(layer: Layer, call: int, image: Image) -> str:
    """What a layer does to an image. It "keeps" its channels, linearly and all alike, or "bends" them, all alike; "shifts" all of
    them by the same constants, or "scales" each by its own; is a "conv" over them; or "mixes" them, which is the answer for
    everything unknown too."""
    config = layer.config
    formatted = image.axis == (1 if data_format(config) == "channels_first" else image.rank - 1)
    if layer.kind in ("Permute", "Reshape", "Transpose", "Moveaxis", "Swapaxes", "ExpandDims", "Squeeze"):
        return "keeps" if moved(layer, image) else "mixes"
    if layer.is_function:
        return _effect_of_function(layer, call, image)
    if layer.kind in CONVS:
        return "conv" if _takes(layer, image) else "mixes"
    if layer.kind in CHANNELWISE:
        soft = layer.kind == "Activation" and "softmax" in str(config.get("activation"))
        if soft or (("data_format" in config or layer.kind in _LAST) and not formatted):
            return "mixes"
        filled = config.get("pad_to_aspect_ratio") and config.get("fill_value")
        return "bends" if filled or (layer.kind in NONLINEAR and config.get("activation") != "linear") else "keeps"
    if layer.kind == "Rescaling":
        return _effect_of_constants([config.get("scale", 1.0), config.get("offset", 0.0)], image)
    if layer.kind == "Normalization":
        return _effect_of_normalization(config, image)
    if layer.kind == "BatchNormalization":
        return "scales" if axes_of(config.get("axis", -1), image.rank) == [image.axis] else "mixes"
    return "mixes"


def _takes(layer: Layer, image: Image) -> bool:
    """Whether the channels that a kernel sums over are those of the image."""
    spatial, first = len(CONVS[layer.kind].layout.axes) - 2, data_format(layer.config) == "channels_first"
    if is_pointwise(layer.kind):  # the last axis, however many precede it
        return image.axis == image.rank - 1 and (layer.kind == "Dense" or _contracts_last(str(layer.config.get("equation"))))
    before = 1 + CONVS[layer.kind].recurrent  # the batch, and time
    return image.rank == before + spatial + 1 and image.axis == (before if first else image.rank - 1)


def _contracts_last(equation: str) -> bool:
    """Whether an einsum is a product of the last axis and a matrix: "abi,io->abo"."""
    terms = equation.replace("->", ",").split(",")
    if len(terms) != 3 or len(terms[1]) != 2:
        return False
    taken, matrix, made = terms
    return taken.endswith(matrix[0]) and made.endswith(matrix[1]) and taken[:-1] == made[:-1]


def moved(layer: Layer, image: Image) -> Image | None:
    """The image after a layer that moves or folds axes; None where its channels are no axis of their own then, and for every
    other layer."""
    config, rank = layer.config, image.rank
    if layer.kind in ("Permute", "Transpose"):
        order = [0, *config["dims"]] if layer.kind == "Permute" else axes_of(config.get("axes"), rank)
        return image._replace(axis=order.index(image.axis)) if order and sorted(order) == [*range(rank)] else None
    if layer.kind in ("Moveaxis", "Swapaxes"):
        keys = ("source", "destination") if layer.kind == "Moveaxis" else ("axis1", "axis2")
        pair = axes_of([config.get(key) for key in keys], rank)
        if pair is None:
            return None
        order = [*range(rank)]
        if layer.kind == "Moveaxis":
            order.insert(pair[1], order.pop(pair[0]))
        else:
            order[pair[0]], order[pair[1]] = pair[1], pair[0]
        return image._replace(axis=order.index(image.axis))
    if layer.kind in ("ExpandDims", "Squeeze"):
        step = 1 if layer.kind == "ExpandDims" else -1
        axis = axes_of(config.get("axis"), rank + (step > 0))
        if not axis or axis[0] == 0 or (step < 0 and axis[0] == image.axis):
            return None
        return image._replace(rank=rank + step, axis=image.axis + step * (axis[0] <= image.axis))
    return _reshaped(layer, image) if layer.kind == "Reshape" else None


def _reshaped(layer: Layer, image: Image) -> Image | None:
    """The image where a reshape leaves the channels outermost or innermost, as they were."""
    shape = reshape_target(layer)
    if shape is None:
        return None
    at = {1: 1, image.rank - 1: len(shape) - 1}.get(image.axis, 0)
    return image._replace(rank=len(shape), axis=at) if 0 < at < len(shape) and shape[at] == image.channels else None


def reshape_target(layer: Layer) -> list[Any] | None:
    """The shape that a Reshape asks for, its batch included."""
    shape = layer.config.get("newshape") if layer.is_function else layer.config.get("target_shape")
    return (shape if layer.is_function else [-1, *shape]) if isinstance(shape, list) else None


def _effect_of_constants(constants: Sequence[Any], image: Image) -> str:
    counts = {len(flat(constant) or ()) for constant in constants}
    if not counts <= {1, image.channels}:
        return "mixes"
    if counts == {1}:
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
    axes = axes_of(config.get("axis", -1), image.rank)
    if axes not in ([], [image.axis]):
        return "mixes"
    given = [config[key] for key in ("mean", "variance") if config.get(key) is not None]
    if any(len(flat(value) or ()) not in (1, image.channels) for value in given):
        return "mixes"
    return "scales" if axes else "shifts"


def axes_of(axis: Any, rank: int) -> list[int] | None:
    """The axes that a normalization keeps apart; None where they are no integers."""
    listed = [] if axis is None else axis if isinstance(axis, list) else [axis]
    return [i % rank for i in listed] if all(type(i) is int for i in listed) else None


def _effect_of_function(layer: Layer, call: int, image: Image) -> str:
    if layer.kind == "Pad":
        return _effect_of_pad(layer, call, image)
    if layer.kind == "Resize":
        return "keeps" if data_format(layer.config) == image.data_format and not layer.config.get("fill_value") else "mixes"
    terms = operands(layer, call)
    if terms is not None and not (terms[0] == "/" and terms[3]):
        return "keeps" if terms[0] == "=" else _effect_of_constants([terms[1]], image)
    return "bends" if layer.kind in _BENDING and _is_alone(layer, call) else "mixes"


def _effect_of_pad(layer: Layer, call: int, image: Image) -> str:
    widths, mode = layer.config.get("pad_width"), layer.config.get("mode")
    if not isinstance(widths, list) or len(widths) != image.rank or widths[image.axis] != [0, 0] or mode not in _PADDING:
        return "mixes"
    value = layer.entry["inbound_nodes"][call].get("kwargs", {}).get("constant_values")
    return "bends" if value else "keeps"


def pads(layer: Layer) -> bool:
    """Whether a layer may put zeros around an image."""
    return layer.kind.startswith(("ZeroPadding", "Pad")) or bool(layer.config.get("pad_to_aspect_ratio"))


def repeats(layer: Layer, call: int, image: Image) -> bool:
    """Whether a layer repeats the only channel of an image, which shows that axis: Concatenate of the same tensor several times,
    or an UpSampling that takes this axis for pixels."""
    if layer.kind == "Concatenate":
        refs = [inbound.ref for inbound in layer.nodes[call].inbound]
        along = axes_of(layer.config.get("axis", -1), image.rank) == [image.axis]
        return image.channels == 1 and along and len(refs) > 1 and len(set(refs)) == 1
    size = layer.config.get("size")
    first = data_format(layer.config) == "channels_first"
    if not layer.kind.startswith("UpSampling") or not isinstance(size, list) or len(size) != image.rank - 2:
        return False
    pixels = [axis for axis in range(1, image.rank) if axis != (1 if first else image.rank - 1)]
    return image.channels == 1 and all((n > 1) == (axis == image.axis) for axis, n in zip(pixels, size, strict=True))


def _is_alone(layer: Layer, call: int) -> bool:
    """Whether an operation takes one tensor, and beside it one number at most."""
    value = layer.entry["inbound_nodes"][call]
    arguments = value.get("args", []) if isinstance(value, dict) else []
    others = [argument for argument in arguments if not isinstance(argument, dict)]
    return len(layer.nodes[call].inbound) == 1 and len(arguments) < 3 and all(len(flat(n) or ()) == 1 for n in others)


def operands(layer: Layer, call: int) -> tuple[str, Any, Path, bool] | None:
    """(operation, constant, its path, whether it is the first operand) of a function of one tensor and a constant."""
    node = layer.nodes[call]
    if layer.kind == "Negative":
        return "*", -1.0, (), False
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

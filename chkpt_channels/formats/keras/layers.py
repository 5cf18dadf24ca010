"""What Keras layer classes do to an image, and which weights they keep: tables for Keras 1 to 3.

Source: keras/src/layers of Keras 3.15 and tf_keras 2.21.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple


class ConvKind(NamedTuple):
    """A class of convolutions: the layout of its kernel, the names of its weights, whether each channel has its own filters, and
    whether it goes through time, with the weights in its cell."""

    layout: Layout
    weights: tuple[str, ...]
    depthwise: bool = False
    recurrent: bool = False


_RECURRENT = ("kernel", "recurrent_kernel", "bias")
_PLAIN, _DEPTH, _SEPARABLE = ("kernel", "bias"), ("depthwise_kernel", "bias"), ("depthwise_kernel", "pointwise_kernel", "bias")

CONVS = {
    "Conv1D": ConvKind(Layout("WIO"), _PLAIN),
    "Conv2D": ConvKind(Layout("HWIO"), _PLAIN),
    "Conv3D": ConvKind(Layout("DHWIO"), _PLAIN),
    "Conv1DTranspose": ConvKind(Layout("WOI"), _PLAIN),
    "Conv2DTranspose": ConvKind(Layout("HWOI"), _PLAIN),
    "Conv3DTranspose": ConvKind(Layout("DHWOI"), _PLAIN),
    "DepthwiseConv1D": ConvKind(Layout("WIO"), _DEPTH, True),
    "DepthwiseConv2D": ConvKind(Layout("HWIO"), _DEPTH, True),
    "SeparableConv1D": ConvKind(Layout("WIO"), _SEPARABLE, True),
    "SeparableConv2D": ConvKind(Layout("HWIO"), _SEPARABLE, True),
    "ConvLSTM1D": ConvKind(Layout("WIO"), _RECURRENT, recurrent=True),
    "ConvLSTM2D": ConvKind(Layout("HWIO"), _RECURRENT, recurrent=True),
    "ConvLSTM3D": ConvKind(Layout("DHWIO"), _RECURRENT, recurrent=True),
    "Dense": ConvKind(Layout("IO"), _PLAIN),
    "EinsumDense": ConvKind(Layout("IO"), _PLAIN),
}
CONVS |= {f"{'Separable' * separable}Convolution{rank}D": CONVS[f"{'Separable' * separable}Conv{rank}D"]
          for separable, rank in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2))}  # fmt: skip

WRAPPERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "TimeDistributed": (("layer", "layer"),),
    "SpectralNormalization": (("layer", "layer"),),
    "Bidirectional": (("layer", "forward_layer"), ("backward_layer", "backward_layer")),
}
"""Layers around others: the keys of these in the configuration, and their names in the tree of weights."""

WEIGHT_NAMES: Mapping[str, tuple[str, ...]] = {
    "kernel": ("kernel", "W"),
    "depthwise_kernel": ("depthwise_kernel", "kernel"),
    "bias": ("bias", "b"),
    "moving_mean": ("moving_mean", "running_mean"),
    "moving_variance": ("moving_variance", "running_std"),
}
"""Further names of weights: Keras 3 calls the depthwise kernel `kernel`, Keras 1 has W and b."""

CHANNELWISE = frozenset(
    {
        *("InputLayer", "Identity", "Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU"),
        *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise", "GaussianDropout"),
        *("AlphaDropout", "ActivityRegularization", "Resizing", "CenterCrop", "AutoContrast", "Equalization", "Solarization"),
        *("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D"),
        *("UpSampling1D", "UpSampling2D", "UpSampling3D"),
        *(f"{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in (1, 2, 3)),
        *(
            f"Random{what}"
            for what in (
                *("Flip", "Crop", "Translation", "Rotation", "Zoom", "Height", "Width", "Contrast", "Brightness"),
                *("Shear", "Perspective", "ElasticTransform", "GaussianBlur", "Invert", "Posterization", "Sharpness"),
            )
        ),
    }
)
"""Classes that treat every channel alike and keep them apart."""

NONLINEAR = frozenset(
    {
        *("Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "AutoContrast", "Equalization", "Solarization"),
        *(f"MaxPooling{rank}D" for rank in (1, 2, 3)),
    }
)
"""Those of them that are not linear: constants before one cannot be moved to the kernel after it."""

UNTRAINED = frozenset({"moving_mean", "moving_variance", "mean", "variance", "count", "vector_u"})
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def weight_names(kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The weights of a layer in the order in which they are saved; none for classes that are not in the tables."""
    if conv := CONVS.get(kind):
        has_bias = config.get("bias_axes") if kind == "EinsumDense" else config.get("use_bias", config.get("bias", True))
        return conv.weights if has_bias else conv.weights[:-1]
    if kind == "SpectralNormalization":
        return "kernel", "vector_u"
    if kind == "BatchNormalization":
        absent = {"gamma": not config.get("scale", True), "beta": not config.get("center", True)}
        return tuple(name for name in _NORM if not absent.get(name))
    if kind == "Normalization" and config.get("mean") is None:
        return ("mean", "variance", "count")
    return ()


def is_pointwise(kind: str) -> bool:
    """Whether a class of CONVS takes single pixels, of an image of any rank."""
    return len(CONVS[kind].layout.axes) == 2


def data_format(config: Mapping[str, Any]) -> str:
    """Which axis a layer takes for the channels; Keras 1 called it `dim_ordering`."""
    old = {"th": "channels_first", "tf": "channels_last"}.get(str(config.get("dim_ordering")))
    return old or str(config.get("data_format") or "channels_last")


def kernel_size(config: Mapping[str, Any], rank: int) -> tuple[int, ...] | None:
    """The spatial extent of a convolution's kernel, None where the configuration does not give it. Keras 1 has nb_row, nb_col and
    filter_length."""
    size = config.get("kernel_size")
    if size is None:
        size = [config[key] for key in ("nb_row", "nb_col", "filter_length") if key in config]
    if isinstance(size, int):
        size = [size] * rank
    return tuple(size) if isinstance(size, list | tuple) and len(size) == rank else None


def one_channel_shape(shape: tuple[int, ...], *, depthwise: bool) -> tuple[int, ...]:
    """The shape in which a kernel's bytes serve one channel: [H, W, I, multiplier] becomes [H, W, 1, I · multiplier]."""
    return (*shape[:-2], 1, shape[-2] * shape[-1]) if depthwise else shape


def snake_case(name: str) -> str:
    """A class's name in the paths of weights files (keras/src/utils/naming.py, `to_snake_case`)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def flat(value: Any) -> list[float] | None:
    """The numbers of a constant in a configuration: a number, nested lists or a serialized array; None for anything else."""
    if isinstance(value, dict):
        value = value.get("config", {}).get("value") if value.get("class_name") in ("__numpy__", "__tensor__") else None
    numbers: Sequence[Any] = value if isinstance(value, list) else [value]
    while any(isinstance(item, list) for item in numbers):
        if not all(isinstance(item, list) for item in numbers):
            return None
        numbers = [inner for item in numbers for inner in item]
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in numbers):
        return None
    return [float(item) for item in numbers]


def extents(value: Any) -> tuple[int, ...]:
    """The lengths of nested lists from the outermost on, as of an array; () for a number."""
    if isinstance(value, dict):
        value = value.get("config", {}).get("value")
    lengths = []
    while isinstance(value, list):
        lengths.append(len(value))
        value = value[0] if value else None
    return tuple(lengths)

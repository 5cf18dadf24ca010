"""A 1×1 convolution in front of a Keras model that makes the image's old channels of its new ones: its layer, and its weights.

A new Conv2D would renumber the groups of all others in a .keras file: Keras sorts the layers by depth when it loads, wherever the
configuration lists them. So the layer is of a class that the model does not hold: a Conv2DTranspose, which computes the same
where its window is one pixel, or a Dense. In an .h5 the weights are read in the order of the layers, and those of the adapter
come first: there it is put in front of models of one input alone. Source: keras/src/saving/saving_lib.py and
keras/src/legacy/saving/legacy_h5_format.py of Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import ChannelMap, FirstConv, Tensor
from chkpt_channels.formats.keras import config_edits
from chkpt_channels.formats.keras.config import KerasModel, Layer
from chkpt_channels.formats.keras.dataflow.effects import Image
from chkpt_channels.formats.keras.dataflow.trace import InputTrace
from chkpt_channels.formats.keras.layers import CONVS, data_format, snake_case
from chkpt_channels.formats.keras.weights import is_stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOATS = ("float16", "float32", "float64", "bfloat16")
"""Images that a convolution takes."""
RESAVED = "model.save('NAME.h5', include_optimizer=False)"
"""Layers have names there, in the place of numbers, and no state."""
FOLDABLE = (*(f"Conv{n}D{kind}" for n in (1, 2, 3) for kind in ("", "Transpose")), "Convolution1D", "Convolution2D")
"""Classes that compute a sum over the channels of a pixel where their window is one."""
RANKS = range(3, 6)
"""Of images with one to three axes of pixels."""


class AddedLayer(NamedTuple):
    """A layer that a conversion adds: its class, its name, and its weights by their names, the order that of its class."""

    kind: str
    name: str
    weights: Mapping[str, NDArray[Any]]


def obstacle(model: KerasModel, images: Sequence[Image], tensors: Mapping[str, Tensor]) -> str:
    """Why no layer can be put in front of these images, in words that follow the file's name; "" where one can."""
    if len(images) != 1 or (len(model.inputs) != 1 and not any(map(is_stored, tensors))):
        return f"takes {len(model.inputs)} inputs, and the order of its layers' weights would change"
    image = images[0]
    if image.layer.parent is not model or (image.layer.kind != "InputLayer" and not model.is_sequential):
        return f"has its input {image.layer.where} inside of another model"
    if image.rank not in RANKS or image.axis not in (1, image.rank - 1):
        return f"takes {image.layer.where} with the channels on axis {image.axis} of {image.rank}"
    if (dtype := _dtype(image)) not in FLOATS:
        return f"takes {image.layer.where} as {dtype}, and a convolution takes floating-point numbers"
    if any(tensor.group and tensor.shape for tensor in tensors.values()):
        return "holds an optimizer's state, which does not fit one more layer"
    return "" if _kind(model, image) else "holds layers of each class that could stand in front, and their weights are numbered"


def put_in_front(document: Any, model: KerasModel, image: Image, channels: ChannelMap) -> AddedLayer:
    """Put the layer into a configuration without an `obstacle`."""
    import numpy as np

    kind, dtype = _kind(model, image), "float64" if _dtype(image) == "float64" else "float32"
    names = CONVS[kind].weights if channels.offset else CONVS[kind].weights[:1]
    new = len(channels.matrix[0])
    name = config_edits.insert(
        document, image, new, "adapter", partial(_entry, kind, len(channels.matrix), dtype, len(names) > 1)
    )
    weights = (_stored(channels.matrix, CONVS[kind].layout, dtype), np.array(channels.offset).astype(dtype))
    return AddedLayer(kind, name, dict(zip(names, weights, strict=False)))


def fold_obstacle(model: KerasModel, layer: Layer, conv: FirstConv, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Why a layer of the image cannot be taken out and folded into what follows it, in words that follow its name, and what the
    user can do; both "" where it can."""
    if why := _misfit(model, layer, conv):
        return why, ""
    if any(map(is_stored, tensors)):
        return "is one of the layers whose weights are numbered, and would change their numbers", RESAVED
    if any(tensor.group and tensor.shape for tensor in tensors.values()):
        return "has a part in the optimizer's state, which does not fit one layer less", RESAVED
    return "", ""


def _misfit(model: KerasModel, layer: Layer, conv: FirstConv) -> str:
    if layer.kind not in FOLDABLE or conv.layout is None:
        return f"is a {layer.kind}"
    window = [n for n, letter in zip(conv.tensor.shape, conv.layout.axes, strict=True) if letter in "DHW"]
    strides = layer.config.get("strides", layer.config.get("subsample")) or 1
    if any(n != 1 for n in (*window, *(strides if isinstance(strides, list) else [strides]))):
        return "is no 1×1 convolution that takes every pixel"
    if not layer.is_linear:
        return f"has the activation {layer.config.get('activation')!r}"
    if layer.parent is not model or len(layer.nodes) != 1:
        return "is inside of another model, or is called more than once"
    return "states the shape of the input" if "batch_input_shape" in layer.config else ""


def behind(model: KerasModel, layer: Layer, conv: FirstConv) -> InputTrace:
    """What takes what a layer without a `fold_obstacle` gives: an image with a channel for each of its filters."""
    rank = len(conv.tensor.shape)
    axis = 1 if data_format(layer.config) == "channels_first" else rank - 1
    filters = conv.tensor.shape[conv.layout.axes.index("O")] if conv.layout else 0
    return InputTrace(model, Image((layer.name, 0, 0), 0, layer, (), filters, axis, rank))


def _kind(model: KerasModel, image: Image) -> str:
    """A class that maps channels pixel by pixel and that the model does not hold, "" where there is none."""
    held = {snake_case(layer.kind) for layer in model.layers.values()}
    kinds = [f"Conv{image.rank - 2}DTranspose", *["Dense"] * (image.data_format == "channels_last")]
    return next((kind for kind in kinds if snake_case(kind) not in held), "")


def _dtype(image: Image) -> str:
    """The dtype of an image; layers that are no InputLayer take it as they compute."""
    dtype = image.layer.config.get("dtype") or "float32"
    return dtype if isinstance(dtype, str) and image.layer.kind == "InputLayer" else "float32"


def _entry(
    kind: str, filters: int, dtype: str, has_bias: bool, name: str, image: Image, first: Mapping[str, Any]
) -> dict[str, Any]:
    config: dict[str, Any] = {"name": name, "trainable": True, "dtype": dtype}
    if kind == "Dense":
        config |= {"units": filters}
    else:
        ones = [1] * (image.rank - 2)
        config |= {"filters": filters, "kernel_size": ones, "strides": ones, "padding": "valid", "data_format": image.data_format}
    config |= {"activation": "linear", "use_bias": has_bias}
    return config_edits.following(kind, config, image, first)


def _stored(matrix: Sequence[Sequence[float]], layout: Layout, dtype: str) -> NDArray[Any]:
    """A [I_old, I_new] as the kernel of such a layout: its outputs are the old channels."""
    import numpy as np

    values = np.array(matrix, np.float64).astype(dtype)
    turned = values if "OI" in layout else values.T
    return turned.reshape((*[1] * (len(layout) - 2), *turned.shape))

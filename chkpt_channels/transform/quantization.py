"""Quantized kernels: W = scale · (q - zero point), one scale for the whole tensor or one for each position of an axis.

They are read as float64, mixed, and quantized again at the finest scale that holds the new values: the zero point stays. An
integer bias, and the scale of the bias, follow the new scale.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.elements import SmallTensor
from chkpt_channels.core.tensors import Edits, FirstConv, Quantization, TensorEdit
from chkpt_channels.formats.base import TensorStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def kernel(store: TensorStore, conv: FirstConv) -> NDArray[Any] | None:
    """The kernel's values; None where they are no numbers that can be mixed. Quantized ones come as float64."""
    if conv.tensor.dtype.floating:
        return store.load_kernel(conv.tensor.name)
    if (how := store.graph.quantization(conv)) is None:
        return None
    return dequantized(store.load_kernel(conv.tensor.name), store.load(how.scale), _zero(store, how), how.axis)


def kernel_edits(store: TensorStore, conv: FirstConv, edit: TensorEdit) -> dict[str, TensorEdit]:
    """The tensors that hold the kernel, for the values of `edit`: itself, or quantized numbers, their scales, and what follows
    the scales. Raises UnsupportedError where that has fewer numbers than there are scales."""
    how = _quantization(store, conv)
    if how is None:
        return {conv.tensor.name: edit}
    scales = prod(store.tensors[how.scale].shape)
    for name in filter(None, (how.bias, how.bias_scale)):
        if (held := prod(store.tensors[name].shape)) < scales:
            what = f"has {held} number{'s' if held != 1 else ''}, and the kernel's scale {scales}: it cannot follow them"
            raise store.location.at(name).unsupported(what, hint="--method adapter")

    @cache
    def new() -> tuple[NDArray[Any], NDArray[Any]]:
        dtype = store.load_kernel(conv.tensor.name).dtype
        return requantized(edit.values(), dtype, store.load(how.scale), _zero(store, how), how.axis)

    def followed(name: str, follow: Any, part: str) -> dict[str, TensorEdit]:
        if not name:
            return {}
        values = cache(lambda: follow(store.load(name), store.load(how.scale), new()[1]))
        return {name: TensorEdit(store.tensors[name].shape, values, part)}

    return {
        conv.tensor.name: TensorEdit(edit.shape, lambda: new()[0]),
        how.scale: TensorEdit(store.tensors[how.scale].shape, lambda: new()[1], "scale"),
        **followed(how.bias, _rescale_bias, "bias"),
        **followed(how.bias_scale, _rescale_bias_scale, "bias scale"),
    }


def edited_kernel(store: TensorStore, conv: FirstConv, edits: Edits) -> NDArray[Any] | SmallTensor:
    """The kernel as it will be read back."""
    new = edits.tensors[conv.tensor.name]
    how = _quantization(store, conv)
    if how is None:
        return new.computed()
    return dequantized(new.values(), edits.tensors[how.scale].values(), _zero(store, how), how.axis)


def _quantization(store: TensorStore, conv: FirstConv) -> Quantization | None:
    return None if conv.tensor.dtype.floating else store.graph.quantization(conv)


def _zero(store: TensorStore, how: Quantization) -> NDArray[Any]:
    import numpy as np

    return store.load(how.zero) if isinstance(how.zero, str) else np.array([how.zero])


def _rescale_bias(bias: NDArray[Any], old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """An integer bias in units of the new scale. Trap: onnxruntime reports no stale one: QLinearConv is silently wrong, and a QDQ
    graph falls back to float."""
    import numpy as np

    moved = np.rint(bias.astype(np.float64) * (old.astype(np.float64) / new.astype(np.float64)).reshape(-1))
    limits = np.iinfo(bias.dtype)
    return np.clip(moved, limits.min, limits.max).astype(bias.dtype)


def _rescale_bias_scale(bias_scale: NDArray[Any], old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """The scale of the bias, which is the image's times the kernel's."""
    import numpy as np

    ratio = new.astype(np.float64).reshape(-1) / old.astype(np.float64).reshape(-1)
    return (bias_scale.astype(np.float64).reshape(-1) * ratio).reshape(bias_scale.shape).astype(bias_scale.dtype)


def broadcastable(values: NDArray[Any], rank: int, axis: int = 0) -> NDArray[np.float64]:
    """One value, or one for each position along an axis, ready to meet a tensor of that rank."""
    shape = [1] * rank
    shape[axis] = -1
    wide: NDArray[np.float64] = values.astype("float64").reshape(shape)
    return wide


def dequantized(numbers: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], axis: int = 0) -> NDArray[np.float64]:
    """The values in float64."""
    rank = numbers.ndim
    return broadcastable(scale, rank, axis) * (numbers.astype("float64") - broadcastable(zero, rank, axis))


def requantized(
    values: NDArray[Any], dtype: np.dtype[Any], old: NDArray[Any], zero: NDArray[Any], axis: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(numbers, scale): the old scale where it holds every value exactly, as it does copies; otherwise the smallest one at which
    every value of the tensor, or of its part along the axis, fits. The new scale has the old one's shape and dtype."""
    import numpy as np

    with np.errstate(all="ignore"):
        unscaled = np.rint(values / broadcastable(old, values.ndim, axis) + broadcastable(zero, values.ndim, axis))
    limits = np.iinfo(dtype)
    if ((unscaled >= limits.min) & (unscaled <= limits.max)).all() and (dequantized(unscaled, old, zero, axis) == values).all():
        return unscaled.astype(dtype), old
    lowest, highest = (-127, 127) if dtype == np.int8 else (0, 255)  # -128 is left out, as symmetric quantizers do
    rank = values.ndim
    middle = broadcastable(zero, rank, axis)
    axes = tuple(range(rank)) if old.size == 1 else tuple(i for i in range(rank) if i != axis)
    above = values.max(axis=axes, keepdims=True) / np.maximum(highest - middle, 1)
    below = -values.min(axis=axes, keepdims=True) / np.maximum(middle - lowest, 1)
    # a scale of 0, for an empty filter, would divide by 0
    needed = np.maximum(np.maximum(above, below), np.finfo(np.float32).tiny)
    needed = needed.max() if old.size == 1 else needed
    scale = np.asarray(needed).reshape(old.shape).astype(old.dtype)
    wide = np.rint(values / broadcastable(scale, rank, axis) + middle)
    return np.clip(wide, lowest, highest).astype(dtype), scale

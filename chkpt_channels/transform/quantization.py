"""Quantised kernels: W = scale · (q - zero point), one scale for the whole tensor or one for each position of an axis.

They are read as float64, mixed, and quantised again at the finest scale that holds the new values: the zero point stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Quantiser(NamedTuple):
    """What a kernel's numbers mean: `scale` and `zero` name tensors of one value, or of one for each position along `axis`;
    `zero` is empty where it is zero, and an integer where the file keeps it outside tensors."""

    scale: str
    zero: str | int = 0
    axis: int = 0


def along(values: NDArray[Any], rank: int, axis: int = 0) -> NDArray[np.float64]:
    """One value, or one for each position along an axis, ready to meet a tensor of that rank."""
    shape = [1] * rank
    shape[axis] = -1
    wide: NDArray[np.float64] = values.astype("float64").reshape(shape)
    return wide


def dequantised(numbers: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any], axis: int = 0) -> NDArray[np.float64]:
    """The values in float64."""
    rank = numbers.ndim
    return along(scale, rank, axis) * (numbers.astype("float64") - along(zero, rank, axis))


def requantised(
    values: NDArray[Any], dtype: np.dtype[Any], old: NDArray[Any], zero: NDArray[Any], axis: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(numbers, scale): the old scale where it holds every value exactly, as it does copies; otherwise the smallest one at which
    every value of the tensor, or of its part along the axis, fits. The new scale has the old one's shape and dtype."""
    import numpy as np

    with np.errstate(all="ignore"):
        kept = np.rint(values / along(old, values.ndim, axis) + along(zero, values.ndim, axis))
    limits = np.iinfo(dtype)
    if ((kept >= limits.min) & (kept <= limits.max)).all() and (dequantised(kept, old, zero, axis) == values).all():
        return kept.astype(dtype), old
    lowest, highest = (-127, 127) if dtype == np.int8 else (0, 255)  # -128 is left out, as quantisers do
    rank = values.ndim
    middle = along(zero, rank, axis)
    axes = tuple(range(rank)) if old.size == 1 else tuple(i for i in range(rank) if i != axis)
    above = values.max(axis=axes, keepdims=True) / np.maximum(highest - middle, 1)
    below = -values.min(axis=axes, keepdims=True) / np.maximum(middle - lowest, 1)
    needed = np.maximum(np.maximum(above, below), np.finfo(np.float32).tiny)
    needed = needed.max() if old.size == 1 else needed
    scale = np.asarray(needed).reshape(old.shape).astype(old.dtype)
    wide = np.rint(values / along(scale, rank, axis) + middle)
    return np.clip(wide, lowest, highest).astype(dtype), scale

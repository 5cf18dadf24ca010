"""What filters answer to one random image, and how far the answers of an old and of a new kernel lie apart."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from math import frexp, isfinite, ldexp, prod
from operator import mul
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.dtypes import BY_NAME, DType
from chkpt_channels.core.elements import SmallTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERIOD = 1 << 16
"""After so many values the noise repeats."""
_MASK = (1 << 64) - 1


def noise(shape: Sequence[int]) -> SmallTensor:
    """The same random 8-bit values in 0..1 every time: SplitMix64, because numpy.random takes 15 ms to import.
    (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014.)"""
    count, values = prod(shape), array("d")
    for k in range(1, min(count, PERIOD) + 1):
        z = k * 0x9E3779B97F4A7C15 & _MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
        values.append((z >> 56) / 255)
    return SmallTensor((values * -(-count // PERIOD))[:count].tobytes(), BY_NAME["F64"], shape)


def of_filters(kernel: NDArray[Any] | SmallTensor, image: NDArray[Any] | SmallTensor, axis: int) -> list[float]:
    """One answer for each filter, along this axis of the kernel, to an image of one filter's shape: in float64, summed from the
    first element to the last."""
    before, count, behind = prod(kernel.shape[:axis]), kernel.shape[axis], prod(kernel.shape[axis + 1 :])
    if isinstance(kernel, SmallTensor) and isinstance(image, SmallTensor):
        pixels = image.values()
        return [[*accumulate(map(mul, each, pixels))][-1] for each in kernel.rows((before, count, behind))]
    import numpy as np

    kernel, image = (each.array() if isinstance(each, SmallTensor) else each for each in (kernel, image))
    with np.errstate(over="ignore", invalid="ignore"):  # with --allow-nonfinite: NaN and infinity are copied
        apart = np.moveaxis(kernel.astype(np.float64).reshape(before, count, behind), 1, 0).reshape(count, -1)
        summed: list[float] = np.cumsum(apart * image.reshape(-1), axis=1)[:, -1].tolist()
    return summed


def difference(before: Sequence[float], after: Sequence[float], dtype: DType) -> tuple[float, float]:
    """The largest difference of answers, absolute and in ulp of the largest one; what is not finite takes no part."""
    differences, sizes = ([abs(a - b) for a, b in zip(before, after, strict=True)], map(abs, before))
    most, largest = (max((x for x in values if isfinite(x)), default=0.0) for values in (differences, sizes))
    # bits of the mantissa; other floating types are FP8 with 3 at most, and quantized kernels have 7 bits beside the sign
    bits = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}.get(dtype.name, 3 if dtype.floating else 7)
    return most, most / (ldexp(1.0, frexp(largest)[1] - 1 - bits) * (largest > 0) or 1.0)

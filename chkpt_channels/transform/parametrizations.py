"""Parametrized kernels, which the model computes from stored tensors when it runs: which tensors are mixed, and which follow.

weight_norm keeps a direction v and a length g, W = g · v / ‖v‖, the norm taken over the axes that g does not have. With
v' = mix(v) and g' = g · ‖v'‖ / ‖v‖ the weight is mixed exactly.
Scaled weight standardization (NFNet) keeps W and a gain, and convolves with gain · γ · (W - μ) / √(σ² + eps) / √n, where μ and σ²
are those of each filter and n is how many numbers it has. The standardized kernel is mixed and stored, and a new gain undoes the
second standardization: exact where the mixed filters have no mean.
Others are refused: what they compute depends on every channel.
Source: torch/nn/utils/weight_norm.py, spectral_norm.py, prune.py, parametrizations.py of torch 2.13; timm/layers/std_conv.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from math import fsum, prod, sqrt
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.dtypes import rounded
from chkpt_channels.core.elements import SmallTensor
from chkpt_channels.core.tensors import FirstConv, Tensor, TensorEdit
from chkpt_channels.formats.base import TensorStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EPS = 1e-5
"""NFNet's eps, which is in its code and not in the file. Without it the response is off by 1.6e-4."""
FLAT = 1e-6
"""The largest |mean| / deviation of a mixed filter that counts as no mean: some ulps of float32."""

LENGTHS = {"weight_v": "weight_g", "parametrizations.weight.original1": "parametrizations.weight.original0"}
"""weight_norm's names of a direction, and of the length that belongs to it: as a hook, and as a parametrization."""

_ORIGINAL, _REMOVE = "parametrizations.weight.original", "torch.nn.utils.parametrize.remove_parametrizations"
OTHERS = (
    ("weight_orig", "weight_u", "spectral-normed", "torch.nn.utils.remove_spectral_norm"),
    ("weight_orig", "weight_mask", "pruned", "torch.nn.utils.prune.remove"),
    (_ORIGINAL, "parametrizations.weight.0._u", "spectral-normed", _REMOVE),
    (_ORIGINAL, "", "parametrized", _REMOVE),
)
"""The kernel's name, that of a tensor beside it ("" for any), what such a kernel is, and what takes that off."""


class Parametrization:
    """A kernel that is stored as it convolves."""

    def mixable(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The kernel that the mixing is applied to."""
        return stored

    def weight(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The kernel that the convolution uses."""
        return stored

    def edits(self, edit: TensorEdit) -> Mapping[str, TensorEdit]:
        """The tensors that follow the new kernel."""
        return {}


PLAIN = Parametrization()


class WeightNorm(Parametrization):
    """v with its lengths g. Raises UnsupportedError where these differ from input channel to input channel."""

    def __init__(self, checkpoint: TensorStore, conv: FirstConv, lengths: Tensor) -> None:
        self._checkpoint, self._conv, self._lengths = checkpoint, conv, lengths
        self._location = checkpoint.location.at(conv.tensor.name)
        self._kept = tuple(axis for axis, size in enumerate(lengths.shape) if size != 1)
        channels = conv.layout.channel_axis if conv.layout else None
        if len(lengths.shape) not in (0, len(conv.tensor.shape)) or channels in self._kept:
            raise self._location.unsupported(f"its weight_norm lengths {lengths.name} differ between input channels")

    def weight(self, stored: NDArray[Any]) -> NDArray[Any]:
        """g · v / ‖v‖."""
        lengths = self._checkpoint.load(self._lengths.name).astype("float64")
        weight: NDArray[Any] = lengths * stored.astype("float64") / self._norms(stored)
        return weight

    def edits(self, edit: TensorEdit) -> Mapping[str, TensorEdit]:
        """The lengths."""
        return {self._lengths.name: TensorEdit(self._lengths.shape, cache(partial(self._new_lengths, edit)), "length")}

    def _new_lengths(self, edit: TensorEdit) -> NDArray[Any]:
        before, after = self._norms(self._checkpoint.load(self._conv.tensor.name)), self._norms(edit.values())
        lengths = self._checkpoint.load(self._lengths.name).astype("float64")
        return rounded(lengths * (after / before).reshape(self._lengths.shape), self._lengths.dtype)

    def _norms(self, directions: NDArray[Any]) -> NDArray[np.float64]:
        """‖v‖ over the axes that are not kept, which stay as axes of size 1."""
        axes = tuple(axis for axis in range(directions.ndim) if axis not in self._kept)
        norms: NDArray[np.float64] = (directions.astype("float64") ** 2).sum(axis=axes, keepdims=True) ** 0.5
        if not (norms > 0).all():
            raise self._location.unsupported("a weight_norm direction is or becomes zero, and has no length")
        return norms


class WeightStandardization(Parametrization):
    """A kernel with a gain for each filter, [O, I, …]."""

    def __init__(self, checkpoint: TensorStore, conv: FirstConv, gain: Tensor) -> None:
        self._checkpoint, self._gain, self._name = checkpoint, gain, conv.tensor.name
        self._location = checkpoint.location.at(conv.tensor.name)

    def mixable(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The standardized kernel."""
        mean, deviation = _statistics(stored)
        flat: NDArray[Any] = (stored.astype("float64") - mean) / deviation
        return flat

    def weight(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Raises UnsupportedError: γ is not in the file."""
        raise self._location.unsupported("is weight-standardized, and the scale of its response is in the code, not in the file")

    def edits(self, edit: TensorEdit) -> Mapping[str, TensorEdit]:
        """The gain."""
        return {self._gain.name: TensorEdit(self._gain.shape, cache(partial(self._new_gain, edit)), "gain")}

    def _new_gain(self, edit: TensorEdit) -> NDArray[Any]:
        new, numbers = edit.values(), prod(self._checkpoint.tensors[self._name].shape[1:])
        mean, deviation = _statistics(new)
        # a sum of filters without mean has none; with unequal weights (luma, repeat) each channel's mean counts differently
        wrong = (abs(mean) > FLAT * deviation).reshape(-1).nonzero()[0]
        if wrong.size:
            message = f"is weight-standardized, and filter {wrong[0]} would get a mean, which standardizing removes again"
            raise self._location.unsupported(message, hint="--method sum is exact")
        # the layer scales by its fan-in too, 1 / √n, which the channel count changes
        grown = deviation * sqrt(prod(new.shape[1:]) / numbers)
        gain = self._checkpoint.load(self._gain.name).astype("float64")
        return rounded(gain * grown.reshape(self._gain.shape), self._gain.dtype)


def _statistics(kernel: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(μ, √(σ² + eps)) of each filter."""
    wide, axes = kernel.astype("float64"), tuple(range(1, kernel.ndim))
    return wide.mean(axis=axes, keepdims=True), (wide.var(axis=axes, keepdims=True) + EPS) ** 0.5


def parametrization_of(checkpoint: TensorStore, conv: FirstConv) -> Parametrization:
    """How a kernel is stored. Raises UnsupportedError for what cannot be mixed."""
    name, tensors = conv.tensor.name, checkpoint.tensors
    for end, partner, what, remedy in OTHERS:
        if name.endswith(end) and (not partner or name.removesuffix(end) + partner in tensors):
            message = f"is {what}: its weight depends on all channels at once"
            raise checkpoint.location.at(name).unsupported(message, hint=f"{remedy}, then save again")
    for end, partner in LENGTHS.items():
        if name.endswith(end) and (lengths := tensors.get(name.removesuffix(end) + partner)):
            return WeightNorm(checkpoint, conv, lengths)
    gain = tensors.get(name.removesuffix("weight") + "gain") if name.endswith(".weight") else None
    if gain and gain.dtype.floating and gain.shape and prod(gain.shape) == gain.shape[0] == conv.tensor.shape[0]:
        return WeightStandardization(checkpoint, conv, gain)
    return PLAIN


def shrinkage(stored: NDArray[Any] | SmallTensor, new: NDArray[Any] | SmallTensor) -> tuple[float, float]:
    """(smallest, largest) factor over the filters by which the response changes if the convolution standardizes its weights,
    [O, I, …], without a gain: σ / σ'."""
    factors = [before / after for before, after in zip(_deviations(stored), _deviations(new), strict=True)]
    return min(factors), max(factors)


def _deviations(kernel: NDArray[Any] | SmallTensor) -> list[float]:
    """√(σ² + eps) of each filter."""
    if not isinstance(kernel, SmallTensor):
        deviations: list[float] = _statistics(kernel)[1].reshape(-1).tolist()
        return deviations
    filters = kernel.rows((1, kernel.shape[0], prod(kernel.shape[1:])))
    means = [fsum(each) / len(each) for each in filters]
    return [sqrt(fsum((x - mean) ** 2 for x in each) / len(each) + EPS) for each, mean in zip(filters, means, strict=True)]


def may_standardize(checkpoint: TensorStore, group: str) -> bool:
    """Whether a network's convolutions may standardize their weights, as far as its tensors show: none has a bias or a gain, and
    there is no BatchNorm, beside which nobody standardizes weights. BiT is such a network."""
    own = [t for t in checkpoint.tensors.values() if t.group == group]
    modules = {t.name.removesuffix(".weight") for t in own if len(t.shape) == 4 and t.name.endswith(".weight")}
    norms = [t for t in own if len(t.shape) == 1 and t.name.endswith(".weight")]
    named = {t.name for t in own}
    biased = sum(f"{module}.bias" in named for module in modules)
    batch = any(name.endswith((".running_mean", "._mean", ".gain")) for name in named)
    # `._mean` is Paddle's; BiT has GroupNorm, more than 8 convolutions, and a bias in its head alone
    return not batch and len(modules) > 8 and bool(norms) and biased <= 1

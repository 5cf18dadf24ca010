"""A LayerNorm over whole patches in front of a Linear patch embedding: z = W · (γ ⊙ n + β) + b, n the normalized patch.

Where the new patches have the mean and the mean square of the old ones, n follows from the new patch as from the old one. That is
so for three equal channels that become one, and for channels in another order:

    sum           W' = mix(W ⊙ γ), b' = b + W · β; γ' = 1 and β' = 0 of the new length
    permutation   W, γ and β are permuted, and keep their bits

Any other mixing changes mean or variance of a patch, and no weight undoes that. The same holds of RMSNorm, which has no β.
Networks: vit-pytorch's to_patch_embedding (Rearrange, LayerNorm, Linear).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.dtypes import numpy_dtype, rounded
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor, TensorEdit
from chkpt_channels.discovery import bias_target
from chkpt_channels.discovery.preprocessing import PatchNorm
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.parametrizations import Parametrization
from chkpt_channels.transform.quantization import broadcastable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOLERANCE = 1e-12
"""Of sums of products of a matrix's entries, which are about 1."""


class NormedPatch(Parametrization):
    """A Linear kernel whose input is normalized with γ and β. Raises UnsupportedError, which names the norm, where the mixing
    does not preserve what is normalized, or where the file has no place for what follows."""

    def __init__(self, checkpoint: TensorStore, conv: FirstConv, layout: Layout, mixing: Mixing, norm: PatchNorm) -> None:
        self._checkpoint, self._conv, self._norm, self._mixing = checkpoint, conv, norm, mixing
        self._channel_axis = layout.channel_axis
        width = conv.tensor.shape[self._channel_axis]
        pixels = width // conv.in_channels
        before, after = (pixels, 1) if layout.axes[self._channel_axis].endswith("I") else (1, pixels)
        self._view, self._length = (before, conv.in_channels, after), pixels * mixing.new
        self._permutes = mixing.old == mixing.new and all(mixing.copied(j) is not None for j in range(mixing.new))
        location = checkpoint.location.at(norm.where)
        if not preserves_moments(mixing):
            hint = "--method sum" if mixing.new == 1 else "--to gray --method sum"
            hint = "leave --norm out, and keep the preprocessing" if mixing.offset else hint
            raise location.unsupported(
                f"normalizes whole patches before {conv.tensor.name}: {mixing.method} would change what it normalizes",
                hint=hint if mixing.old > 1 else "",
            )
        if checkpoint.graph.is_in_module(norm.weight.name):
            what = "normalizes whole patches, and its module states their length, which is not edited"
            raise location.unsupported(what, hint="save model.state_dict() in place of the model")
        self._target = bias_target.find(checkpoint, conv)
        if not self._permutes and self._target is None and self._constant().any():
            raise location.unsupported(f"adds a constant to whole patches, and {conv.tensor.name} has no bias that could take it")

    def mixable(self, stored: NDArray[Any]) -> NDArray[Any]:
        """W ⊙ γ."""
        return stored if self._permutes else self.weight(stored)

    def weight(self, stored: NDArray[Any]) -> NDArray[Any]:
        """W ⊙ γ."""
        scaled: NDArray[Any] = stored.astype("float64") * self._along(self._norm.weight)
        return scaled

    def edits(self, edit: TensorEdit) -> Mapping[str, TensorEdit]:
        """γ, β and the bias."""
        vectors = [self._norm.weight, *([self._norm.bias] if self._norm.bias else [])]
        if self._permutes:
            return {t.name: TensorEdit(t.shape, cache(partial(self._permuted, t)), "norm") for t in vectors}
        shape = (self._length,)
        edits = {t.name: TensorEdit(shape, partial(_filled, t, shape, 1 - i), "norm") for i, t in enumerate(vectors)}
        if self._norm.bias and self._target:
            name = self._target[0]
            edits[name] = TensorEdit(self._checkpoint.tensors[name].shape, cache(self._shifted), "bias")
        return edits

    def _along(self, vector: Tensor) -> NDArray[Any]:
        """A vector as float64, along the kernel's channel axis."""
        return broadcastable(self._checkpoint.load(vector.name), len(self._conv.tensor.shape), self._channel_axis)

    def _constant(self) -> NDArray[Any]:
        """W · β of each filter, [O]."""
        import numpy as np

        if self._norm.bias is None:
            return np.zeros(1)
        kernel = self._checkpoint.load_kernel(self._conv.tensor.name).astype("float64")
        constant: NDArray[Any] = (kernel * self._along(self._norm.bias)).sum(axis=self._channel_axis)
        return constant

    def _shifted(self) -> NDArray[Any]:
        name, sign = self._target or ("", 0)
        old = self._checkpoint.load(name).astype("float64")
        return rounded(old + sign * self._constant(), self._checkpoint.tensors[name].dtype)

    def _permuted(self, vector: Tensor) -> NDArray[Any]:
        return self._mixing.apply(self._checkpoint.load(vector.name), self._view, vector.dtype).reshape(-1)


def preserves_moments(mixing: Mixing) -> bool:
    """Whether mean and mean square over the old channels are those over the new ones, whatever the image: the columns of A sum to
    I_old / I_new, and AᵀA is I_old / I_new times the identity."""
    share = mixing.old / mixing.new
    columns = [*zip(*mixing.matrix, strict=True)]
    products = [
        (sum(a * b for a, b in zip(x, y, strict=True)), share * (i == j))
        for i, x in enumerate(columns)
        for j, y in enumerate(columns)
    ]
    products += [(sum(column), share) for column in columns]
    return not mixing.offset and all(abs(found - wanted) < _TOLERANCE for found, wanted in products)


def _filled(vector: Tensor, shape: tuple[int, ...], value: int) -> NDArray[Any]:
    import numpy as np

    return np.full(shape, value, numpy_dtype(vector.dtype))

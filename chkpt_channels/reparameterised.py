"""Re-parameterised kernels, whose weight is computed from stored tensors whenever the model is loaded or run.

weight_norm keeps a direction v and a length g, W = g · v / ‖v‖, the norm taken over the axes that g does not have. With
v' = mix(v) and g' = g · ‖v'‖ / ‖v‖ the weight is mixed exactly. Others are refused: what they compute depends on every channel.
Source: torch/nn/utils/weight_norm.py, spectral_norm.py, prune.py, parametrizations.py of torch 2.13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .kernels import KernelChange
from .model import Checkpoint, Tensor, TensorEdit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LENGTHS = {"weight_v": "weight_g", "parametrizations.weight.original1": "parametrizations.weight.original0"}
"""How weight_norm calls a direction, and the length that goes with it."""

OTHERS = {
    "weight_orig": {
        "weight_u": ("spectral-normed", "torch.nn.utils.remove_spectral_norm"),
        "weight_mask": ("pruned", "torch.nn.utils.prune.remove"),
    },
    "parametrizations.weight.original": {
        "parametrizations.weight.0._u": ("spectral-normed", "torch.nn.utils.parametrize.remove_parametrizations"),
        "": ("parametrized", "torch.nn.utils.parametrize.remove_parametrizations"),
    },
}


class Length(NamedTuple):
    """The tensor that holds the lengths of a kernel's directions, and the kernel's axes that it keeps."""

    tensor: Tensor
    kept: tuple[int, ...]


def length(checkpoint: Checkpoint, kernel: KernelChange) -> Length | None:
    """The lengths that go with a kernel, None where it is a plain one. Raises UnsupportedError for re-parameterisations that
    cannot be mixed."""
    name = kernel.conv.tensor.name
    place = checkpoint.source.place.inside(name)
    for end, partners in OTHERS.items():
        module = name.removesuffix(end)
        for partner, (what, remedy) in partners.items():
            if module != name and (not partner or module + partner in checkpoint.tensors):
                raise place.unsupported(
                    f"is {what}: its weight depends on all channels at once", hint=f"{remedy}, then save again"
                )
    for end, partner in LENGTHS.items():
        module = name.removesuffix(end)
        found = checkpoint.tensors.get(module + partner) if module != name else None
        if found is None:
            continue
        kept = tuple(axis for axis, size in enumerate(found.shape) if size != 1)
        if len(found.shape) not in (0, len(kernel.shape)) or kernel.layout.channel_axis in kept:
            raise place.unsupported(f"its lengths {found.name} differ from input channel to input channel")
        return Length(found, kept)
    return None


def norms(directions: NDArray[Any], kept: tuple[int, ...]) -> NDArray[np.float64]:
    """‖v‖ over the axes that are not kept, which stay as axes of size 1."""
    import numpy as np

    axes = tuple(axis for axis in range(directions.ndim) if axis not in kept)
    found: NDArray[np.float64] = np.sqrt((directions.astype(np.float64) ** 2).sum(axis=axes, keepdims=True))
    return found


def new_lengths(checkpoint: Checkpoint, kernel: KernelChange, old: Length, edit: TensorEdit) -> NDArray[Any]:
    """g' = g · ‖v'‖ / ‖v‖. Raises UnsupportedError where a direction has no length."""
    import numpy as np

    from .dtypes import rounded

    name = kernel.conv.tensor.name
    before, after = norms(checkpoint.load(name), old.kept), norms(edit.values(), old.kept)
    if not (before > 0).all() or not (after > 0).all():
        raise checkpoint.source.place.inside(name).unsupported("a direction of weight_norm is or becomes zero, and has no length")
    lengths = checkpoint.load(old.tensor.name).astype(np.float64)
    return rounded(lengths * (after / before).reshape(old.tensor.shape), old.tensor.dtype)

"""Kernels that take the image joined to features, as ViTMatte's last fusion does: the image's channels come first and change,
those of the features stay. Source: transformers/models/vitmatte/modeling_vitmatte.py of 5.23, VitMatteFusionBlock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Notice
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing.matrix import Mixing


def changes(checkpoint: TensorStore, modules: Sequence[str], rule: Mixing) -> list[KernelChange]:
    """The changes of these modules' kernels [O, I_old + features, H, W] by the image's mixing. Raises UnsupportedError for
    kernels that are not there, or take too few channels."""
    found = []
    for module in modules:
        tensor = checkpoint.tensors.get(f"{module}.weight")
        if tensor is None or len(tensor.shape) != 4 or tensor.shape[1] <= rule.old:
            raise checkpoint.location.at(f"{module}.weight").unsupported("should take the image joined to features")
        filters, channels, *window = tensor.shape
        whole, layout = rule.beside(channels - rule.old), Layout("OIHW")
        shape = (filters, whole.new, *window)
        found.append(KernelChange(FirstConv(tensor, layout, channels, "sidecar"), layout, whole, shape))
    return found


def notices(joined: Sequence[KernelChange], old: int) -> Iterator[Notice]:
    """What is said of them: they are no first convs."""
    for kernel in joined:
        shapes = " → ".join("×".join(map(str, shape)) for shape in (kernel.conv.tensor.shape, kernel.shape))
        message = f"{kernel.conv.tensor.name}: takes the image joined to features, and its first {old} channels changed: {shapes}"
        yield Notice("joined", message)

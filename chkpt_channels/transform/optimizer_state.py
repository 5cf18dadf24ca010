"""Optimizer state of the kernels: moments of their shape and a step, reset to zeros of the new shape or dropped.

With zeros training resumes as if the kernel were new. `step` is reset too: with zero moments and the old step AdamW's bias
correction is missing, and its updates of the kernel are 2.5 to 4.6 times too large.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.errors import UnsupportedError
from chkpt_channels.core.tensors import OptimizerEntry, Tensor, TensorEdit
from chkpt_channels.formats.base import TensorStore

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OptimizerEdits:
    """The edits for the state of `kernels` (name → new shape): `tensors` and `numbers` to reset, or entries `dropped`.

    Raises UnsupportedError where an entry cannot be distinguished from others of its shape, or holds state of another shape.
    """

    def __init__(self, checkpoint: TensorStore, kernels: Mapping[str, tuple[int, ...]], how: str) -> None:
        self.tensors: dict[str, TensorEdit] = {}
        self.numbers: dict[str, int] = {}
        self.dropped: list[str] = []
        self._checkpoint, self._kernels = checkpoint, kernels
        optimizers: defaultdict[str, list[OptimizerEntry]] = defaultdict(list)
        for entry in checkpoint.optimizer_entries:
            optimizers[entry.where.rpartition("/")[0]].append(entry)
        for entries in optimizers.values():
            for entry, kernel in self._owners(entries):
                if how == "drop":
                    self.dropped.append(entry.where)
                else:
                    self._reset(entry, checkpoint.tensors[kernel])

    def _owners(self, entries: Sequence[OptimizerEntry]) -> list[tuple[OptimizerEntry, str]]:
        """Which entry belongs to which kernel: by name, or by shape, and among equal shapes by order."""
        tensors = {name: self._checkpoint.tensors[name] for name in self._kernels}
        named = [(e, name) for name, tensor in tensors.items() for e in entries if e.parameter == tensor.key]
        if named or not tensors:
            return named
        group = next(iter(tensors.values())).group
        model = [t for t in self._checkpoint.model_tensors() if t.group == group]
        owners: list[tuple[OptimizerEntry, str]] = []
        for shape in dict.fromkeys(t.shape for t in tensors.values()):
            owned = [e for e in entries if any(t.shape == shape for t in e.tensors.values())]
            alike = [t.name for t in model if t.shape == shape]
            # frozen layers have no entries: then only the kernels that change are matched
            if len(owned) != len(alike):
                alike = [name for name in alike if name in tensors]
            if owned and len(owned) != len(alike):
                raise UnsupportedError(
                    f"{len(owned)} entries have the shape {list(shape)} for {len(alike)} kernels: their order is ambiguous",
                    file=self._checkpoint.location.file, where=owned[0].where,
                )  # fmt: skip
            owners += [(e, name) for e, name in zip(owned, alike, strict=False) if name in tensors]
        return owners

    def _reset(self, entry: OptimizerEntry, kernel: Tensor) -> None:
        for slot, tensor in entry.tensors.items():
            if tensor.shape == kernel.shape and tensor.dtype.floating:
                shape = self._kernels[kernel.name]
            elif slot == "step" or tensor.shape == ():  # torch's Adam keeps `step` as a tensor since 1.12
                shape = tensor.shape
            else:
                raise UnsupportedError(
                    f"holds {tensor.dtype.name} of shape {list(tensor.shape)}, which cannot be reset",
                    file=self._checkpoint.location.file, where=tensor.name, hint="--optimizer drop leaves the entry out",
                )  # fmt: skip
            self.tensors[tensor.name] = TensorEdit(shape, partial(_zeros, shape, tensor), "optimizer state")
        self.numbers |= {f"{entry.where}/{slot}": 0 for slot in entry.numbers if slot == "step"}


def _zeros(shape: tuple[int, ...], tensor: Tensor) -> NDArray[Any]:
    import numpy as np

    from chkpt_channels.core.dtypes import numpy_dtype

    return np.zeros(shape, numpy_dtype(tensor.dtype))

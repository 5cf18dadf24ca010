"""Tensors in memory: what the plan works on, without any format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

from chkpt_channels.core.dtypes import BY_NAME, numpy_dtype
from chkpt_channels.core.errors import Location
from chkpt_channels.core.tensors import Declaration, FirstConv, OptimizerEntry, Tensor
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.formats.graph import ModelGraph

NAMES = {numpy_dtype(dtype): dtype for dtype in reversed(BY_NAME.values()) if dtype.numpy}
BF16 = ml_dtypes.bfloat16


class Declared(ModelGraph):
    """A graph that says these counts, and nothing else."""

    def __init__(self, declared: Mapping[str, int]) -> None:
        self.declared = declared

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        return [Declaration(where, count) for where, count in self.declared.items()]


class Memory(TensorStore):
    """Arrays by group and name: {"model": {"conv1.weight": array}}; the group "" is the root."""

    title = "memory"
    ordered = True
    graph = Declared({})

    def __init__(self, groups: Mapping[str, Mapping[str, np.ndarray]], declared: Mapping[str, int] | None = None) -> None:
        super().__init__(Location("a.pth"))
        self.arrays = {f"{g}/{n}" if g else n: array for g, named in groups.items() for n, array in named.items()}
        for group, named in groups.items():
            for name, array in named.items():
                full = f"{group}/{name}" if group else name
                self.tensors[full] = Tensor(full, NAMES[array.dtype], array.shape, group)
        self.graph = Declared(declared or {})

    def optimizer(self, where: str, entries: Mapping[str, Mapping[str, np.ndarray | int]]) -> Memory:
        """The same checkpoint with an optimizer's state by parameter and slot."""
        made = []
        for parameter, slots in entries.items():
            place, tensors, numbers = f"{where}/{parameter}", {}, {}
            for slot, value in slots.items():
                if isinstance(value, int):
                    numbers[slot] = value
                else:
                    name = f"{place}/{slot}"
                    self.arrays[name] = value
                    self.tensors[name] = tensors[slot] = Tensor(name, NAMES[value.dtype], value.shape, place)
            made.append(OptimizerEntry(place, parameter, tensors, numbers))
        self.optimizer_entries += tuple(made)
        return self

    def chunks(self, name: str) -> Iterator[bytes]:
        yield self.arrays[name].tobytes()


def kernel(*shape: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


NET = {"conv1.weight": kernel(8, 3, 7, 7), "bn1.weight": kernel(8), "conv2.weight": kernel(8, 8, 3, 3), "fc.weight": kernel(5, 8)}

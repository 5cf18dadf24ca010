"""What a pickle of arrays holds, by Python's own unpickler, which is given numpy's functions and no other."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from chkpt_channels.core.dtypes import BY_NAME

ALLOWED = ("numpy", "ml_dtypes", "_codecs", "collections", "builtins")
NAMES = {row.numpy: row.name for row in reversed(BY_NAME.values()) if row.numpy}


class Unpickler(pickle.Unpickler):
    """Resolves the names that arrays need."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")
        return super().find_class(module, name)


def loaded(path: Path) -> Any:
    """The object in a file."""
    with path.open("rb") as file:
        return Unpickler(file, encoding="latin1").load()


def theirs(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Each array's dtype, shape and elements."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    todo = [("", loaded(path))]
    assert ml_dtypes.bfloat16
    while todo:
        name, value = todo.pop()
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):  # a Tensor of Paddle's
            value = value[1]
        if isinstance(value, np.ndarray):
            found[name or "array"] = NAMES[value.dtype.name], value.shape, value.tobytes()
        elif isinstance(value, dict):
            todo += [(f"{name}/{key}" if name else str(key), child) for key, child in value.items()]
    return found

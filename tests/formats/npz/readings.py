"""What an .npz archive holds, by numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chkpt_channels.core.dtypes import BY_NAME

NAMES = {row.numpy: row.name for row in reversed(BY_NAME.values()) if row.numpy} | {"void16": "BF16"}


def theirs(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Each array's dtype, shape and elements; objects are not loaded."""
    found = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            try:
                array = arrays[name]
            except ValueError as error:
                if "Object arrays" in str(error):
                    continue
                raise
            if isinstance(array, np.ndarray) and array.dtype.name in NAMES and array.dtype.isnative:
                found[name] = NAMES[array.dtype.name], array.shape, array.tobytes()
    return found

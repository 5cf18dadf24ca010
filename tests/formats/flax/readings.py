"""What a Flax file holds, by flax."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chkpt_channels.core.dtypes import BY_NAME

NAMES = {row.numpy: row.name for row in reversed(BY_NAME.values()) if row.numpy}


def theirs(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Each array's dtype, shape and elements, by its path; of one in chunks each chunk, as this package names them."""
    import msgpack
    from flax import serialization

    def unpack(code: int, raw: bytes) -> Any:
        return serialization._msgpack_ext_unpack(code, raw)

    tree = msgpack.unpackb(path.read_bytes(), ext_hook=unpack, raw=False)
    serialization.msgpack_restore(path.read_bytes())
    found = {}
    for name, value in _leaves(tree, ""):
        if hasattr(value, "dtype") and value.dtype.name in NAMES:
            found[name] = NAMES[value.dtype.name], tuple(value.shape), value.tobytes()
    return found


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        name = f"{path}/{key}" if path else key
        yield from _leaves(value, name) if isinstance(value, dict | list) else [(name, value)]

"""The formats this package knows: every module here whose name has no leading underscore defines one Checkpoint."""

from __future__ import annotations

import importlib
from functools import cache

from chkpt_channels.core.errors import UnknownFormatError
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.formats.unknown import FOREIGN_SUFFIXES, describe
from chkpt_channels.storage.source import Source

__all__ = ["FOREIGN_SUFFIXES", "detect", "known"]


@cache
def known() -> tuple[type[Checkpoint], ...]:
    """Every format, by name of its module."""
    found: list[type[Checkpoint]] = []
    for module in ("keras.h5_file", "keras.zip_file", "onnx.checkpoint", "safetensors", "torch.legacy_file", "torch.zip_file"):
        members = vars(importlib.import_module(f"{__name__}.{module}")).values()
        # isinstance would look at __class__, which makes a lazy module run
        found += [m for m in members if issubclass(type(m), type) and issubclass(m, Checkpoint) and "format" in vars(m)]
    return tuple(dict.fromkeys(found))


def detect(source: Source) -> type[Checkpoint]:
    """The one format that claims the file. Raises UnknownFormatError or UnsupportedError that says what the file looks like."""
    claims = [kind for kind in known() if kind.sniff(source)]
    if len(claims) == 1:
        return claims[0]
    if claims:
        names = " and ".join(kind.title for kind in claims)
        raise UnknownFormatError(f"is claimed by {names} at once", file=source.name)
    raise describe(source)

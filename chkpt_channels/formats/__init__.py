"""The known formats: every module and package here that has FORMATS.

To sniff with all of them is cheap: only the format that opens a file imports its reader, for the readers of all formats take
95 to 115 ms to import.
"""

from __future__ import annotations

import importlib
import os
from functools import cache

from chkpt_channels.core.errors import UnknownFormatError, UnsupportedError
from chkpt_channels.formats import unknown
from chkpt_channels.formats.base import Checkpoint, Format
from chkpt_channels.formats.unknown import FOREIGN_SUFFIXES, LFS_POINTER, describe
from chkpt_channels.storage.source import Source

__all__ = [
    "FOREIGN_SUFFIXES", "LFS_POINTER", "detect", "foreign_weights", "is_claimed", "known", "open_checkpoint", "open_shard",
    "weights_suffixes",
]  # fmt: skip


@cache
def known() -> tuple[Format, ...]:
    """Every format, by name of its module."""
    # not pkgutil, which imports inspect
    names = sorted(filter(str.isidentifier, (name.removesuffix(".py") for name in os.listdir(__path__[0]) if name[0] != "_")))
    modules = (importlib.import_module(f"{__name__}.{name}") for name in names)
    return tuple(form for module in modules for form in getattr(module, "FORMATS", ()))


@cache
def weights_suffixes() -> frozenset[str]:
    """The file name extensions of all formats, in lower case."""
    return frozenset(suffix for form in known() for suffix in form.suffixes if suffix)


def detect(source: Source) -> Format:
    """The one format that claims the file. Raises UnknownFormatError or UnsupportedError that names what the file looks like."""
    claims = [form for form in known() if form.sniff(source)]
    if len(claims) == 1:
        return claims[0]
    if claims:
        names = " and ".join(form.title for form in claims)
        raise UnknownFormatError(f"matches several formats: {names}", file=source.name)
    families = sorted({form.title.partition(" (")[0] for form in known()}, key=str.lower)
    raise describe(source, families, weights_suffixes())


def is_claimed(source: Source) -> bool:
    """Whether a format claims the file."""
    return any(form.sniff(source) for form in known())


def foreign_weights(source: Source) -> UnsupportedError | None:
    """The error for a file that no format claims, where it holds weights all the same; None for anything else."""
    return unknown.foreign_weights(source, weights_suffixes() | FOREIGN_SUFFIXES)


def open_checkpoint(source: Source) -> Checkpoint:
    """The open file, by the format that claims it."""
    return detect(source).open(source)


def open_shard(source: Source) -> Checkpoint:
    """The same of a shard: the formats that its name says are asked first, which in a store reads nothing behind its header."""
    suffix = os.path.splitext(source.name)[1].lower()
    form = next((form for form in known() if suffix in form.suffixes and form.sniff(source)), None)
    return (form or detect(source)).open(source)

"""What a name opens: a file, standard input for "-", and for a URL an object of a store, which is read by ranges.

Nothing of a store is imported for a path.
"""

from __future__ import annotations

import os
import sys

from chkpt_channels.core.errors import Location, UnsupportedError, UsageError
from chkpt_channels.storage.source import STDIO, RangeSource, Readable, Source
from chkpt_channels.storage.urls import is_url, shown


def open_source(name: Readable) -> Source:
    """The file, standard input for "-", the object behind a URL, or one that is read by position. Raises FileSystemError;
    UsageError and UnsupportedError for URLs that are not read."""
    if not isinstance(name, str | os.PathLike):
        return RangeSource(name)
    if os.fspath(name) == STDIO:
        if sys.stdin is None:
            raise Location("standard input").system("is closed")
        return Source.spooled(sys.stdin.buffer, "standard input")
    if is_url(name):
        from chkpt_channels.storage.stores.remote import RemoteSource

        return RemoteSource(os.fspath(name))
    return Source(name)


def check_local(name: str | os.PathLike[str]) -> None:
    """Raise UnsupportedError where an output is in a store: outputs are files."""
    if is_url(name):
        from chkpt_channels.storage.stores.address import uploading

        text = os.fspath(name)
        raise UnsupportedError("outputs are written to files, not to a store", file=shown(text), hint=uploading(text))


def check_named(source: str | os.PathLike[str], output: str | os.PathLike[str] | None) -> None:
    """Raise UsageError where the output of a URL has no name, for beside its source it would be in the store; what `check_local`
    raises of a name."""
    if output is not None:
        check_local(output)
    elif is_url(source):
        hint = "-o FILE, or --output-dir DIR"
        raise UsageError("its output would lie beside it, in the store: name a file", file=shown(os.fspath(source)), hint=hint)

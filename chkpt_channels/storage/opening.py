"""What a name opens: a file, standard input for "-", and for a URL an object of a store, which is read by ranges.

Nothing of a store is imported for a path.
"""

from __future__ import annotations

import os
import sys

from chkpt_channels.core.errors import Location, UnsupportedError, UsageError
from chkpt_channels.storage.source import STDIO, RangeSource, Readable, Source
from chkpt_channels.storage.urls import is_bucket, is_url, shown


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


def check_output(name: str | os.PathLike[str]) -> None:
    """Raise UnsupportedError where an output is in a store that is not written to."""
    if is_url(name) and not is_bucket(name):
        from chkpt_channels.storage.stores.address import uploading

        text = os.fspath(name)
        raise UnsupportedError(
            "outputs are written to files and to s3://, not to this store", file=shown(text), hint=uploading(text)
        )


def check_named(source: str | os.PathLike[str], output: str | os.PathLike[str] | None) -> None:
    """Raise UsageError where an output without a name would lie beside its source in a store that is not written to; what
    `check_output` raises of a name."""
    if output is not None:
        check_output(output)
    elif is_url(source) and not is_bucket(source):
        hint = "-o FILE, or --output-dir DIR"
        what = "its output would lie beside it, in a store that is not written to: name a file"
        raise UsageError(what, file=shown(os.fspath(source)), hint=hint)

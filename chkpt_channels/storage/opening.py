"""What a name opens: a file, standard input for "-", and for a URL an object of a store, which is read by ranges.

A folder in a store is looked at as a folder of this machine that mirrors it: here is asked what its files open, and what they are
called. Nothing of a store is imported for a path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chkpt_channels.core.errors import Location, UnsupportedError, UsageError
from chkpt_channels.storage.source import REPLACED, STDIO, RangeSource, Readable, Source
from chkpt_channels.storage.urls import is_bucket, is_prefix, is_url, shown

if TYPE_CHECKING:
    from chkpt_channels.storage.stores.mirror import Mirror

_mirrors: dict[Path, Mirror] = {}
"""Those that are open, by their folders of this machine."""


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


@contextmanager
def mirrored(name: str | os.PathLike[str]) -> Iterator[str | os.PathLike[str]]:
    """The folder of this machine that stands for a folder in a store while this is open; any other name is itself. Raises what
    `Mirror` raises."""
    if not is_prefix(name):
        yield name
        return
    from chkpt_channels.storage.stores.mirror import Mirror

    with closing(Mirror(os.fspath(name))) as mirror:
        _mirrors[mirror.path] = mirror
        try:
            yield mirror.path
        finally:
            del _mirrors[mirror.path]


def is_mirrored(path: str | os.PathLike[str]) -> bool:
    """Whether a file, or a folder, stands for one in a store."""
    return _mirrored(path) is not None


def _mirrored(path: str | os.PathLike[str]) -> tuple[Mirror, str] | None:
    """The mirror that a path lies in, and its name there."""
    homes = (home for home in _mirrors if Path(path).is_relative_to(home))
    return next(((_mirrors[home], str(Path(path).relative_to(home))) for home in homes), None)


def named(path: str | os.PathLike[str]) -> str:
    """A path as people call it: what a mirror holds by its URL."""
    if not (found := _mirrored(path)):
        return os.fspath(path)
    mirror, name = found
    return mirror.url + (name if name != "." else "")


def open_file(path: str | os.PathLike[str], *, sparing: bool = False) -> Source:
    """A file of a folder, where it is; of one in a store `sparing` fetches little that nobody wants. Raises FileSystemError."""
    if not (found := _mirrored(path)):
        return Source(path)
    mirror, name = found
    return mirror.source(name, sparing=sparing)


def open_listed(path: Path, listed: os.stat_result, *, sparing: bool = False) -> Source:
    """The same of a file that had this `status`. Raises FileSystemError too where another one, or a link, is in its place now."""
    source = open_file(path, sparing=sparing)
    if not (is_mirrored(path) or source.is_same_file(listed)):
        source.close()
        raise source.location.system(REPLACED)
    return source


def contents(path: str | os.PathLike[str], limit: int) -> bytes:
    """A small file, whole. Raises FileSystemError, DamagedError for more than `limit` bytes."""
    found = _mirrored(path)
    with found[0].document(found[1], limit) if found else Source(path) as source:
        source.location.check_limit("bytes", source.size, limit)
        return source.read(0, source.size)


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

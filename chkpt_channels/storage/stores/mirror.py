"""A folder in a bucket, to be looked at like one of this machine: its JSON files are here, all others are holes of their size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chkpt_channels.core.errors import (
    AmbiguousError,
    DamagedError,
    FileSystemError,
    Location,
    UnknownFormatError,
    UnsupportedError,
    UsageError,
)
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.stores.address import Address, parsed
from chkpt_channels.storage.stores.connection import Pin
from chkpt_channels.storage.stores.parts import LEAST_BYTES
from chkpt_channels.storage.stores.remote import RemoteSource
from chkpt_channels.storage.stores.upload import Client
from chkpt_channels.storage.urls import shown

MOST_FILES = 10_000
"""Each is asked for what it is: a prefix of more objects is no model."""


def folder_address(url: str) -> Address:
    """What a URL that ends with a slash names; `name` is the prefix of its keys, with a slash too. Raises as `parsed`."""
    address = parsed(f"{url}x")
    return address._replace(url=url, name=address.name.removesuffix("x"))


class Mirror:
    """`path` is a temporary folder, `sizes` are the bytes of each file by its name there. Raises FileSystemError where nothing is
    under the prefix, UnsupportedError for keys that are no names of files."""

    def __init__(self, url: str) -> None:
        self.url, self.location, address = url, Location(shown(url)), folder_address(url)
        self._first: dict[str, tuple[Pin, bytes]] = {}
        found = Client(address, self.location).listed(address.name)
        self.sizes = {key.removeprefix(address.name): size for key, size in found.items() if not key.endswith("/")}
        if not self.sizes:
            raise self.location.system("no objects are under it in the store")
        if len(self.sizes) > MOST_FILES:
            raise self.location.unsupported(f"holds {len(self.sizes)} objects: a model has at most {MOST_FILES}")
        self._home = tempfile.TemporaryDirectory(prefix="chkpt-channels-", ignore_cleanup_errors=True)
        self.path = Path(self._home.name)
        try:
            for name, size in self.sizes.items():
                self._place(name, size)
        except BaseException:
            self.close()
            raise

    def _place(self, name: str, size: int) -> None:
        if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise self.location.at(name).unsupported("its key is no name of a file")
        path = self.path / name
        with self.location.wrapping_os_errors("cannot be mirrored in a temporary folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".json") and size <= LIMITS.index_bytes:
                with self.source(name) as source:
                    path.write_bytes(source.read(0, source.size))
                return
            with path.open("xb") as file:
                file.truncate(size)

    def source(self, name: str) -> Source:
        """A file where it is. Raises FileSystemError."""
        source = RemoteSource(self.url + name, self._first.get(name))
        if source.size >= LEAST_BYTES:  # weights are opened again
            self._first[name] = source.first
        return source

    def close(self) -> None:
        """Remove the temporary folder."""
        self._home.cleanup()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Name the URL in what is raised, in the place of the temporary folder."""
        try:
            yield
        except (AmbiguousError, DamagedError, FileSystemError, UnknownFormatError, UnsupportedError, UsageError) as error:
            error.file = error.file.replace(f"{self.path}/", self.location.file).replace(str(self.path), self.location.file)
            raise

"""A folder in a store, to be looked at like one of this machine: its files are holes of their size, read where they are."""

from __future__ import annotations

import tempfile
from pathlib import Path

from chkpt_channels.core.errors import Location
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.stores.address import Address, parsed
from chkpt_channels.storage.stores.connection import Pin
from chkpt_channels.storage.stores.parts import LEAST_BYTES
from chkpt_channels.storage.stores.remote import FIRST_BYTES, RemoteSource
from chkpt_channels.storage.urls import shown

MOST_FILES = 10_000
"""Each is asked for what it is: a prefix of more objects is no model."""
SPARING_BYTES = 1 << 10
"""Of the first request where nothing may be fetched that is not needed: it is shorter than the headers of most shards."""


def folder_address(url: str) -> Address:
    """What the URL of a folder names; `name` is the beginning of its files' names, with a slash too. Raises as `parsed`."""
    address = parsed(f"{url.removesuffix('/')}/x")
    return address._replace(url=f"{url.removesuffix('/')}/", name=address.name.removesuffix("x"))


class Mirror:
    """`path` is a temporary folder, `sizes` are the bytes of each file by its name there, `url` is the folder's.
    Raises FileSystemError where nothing is in it, UnsupportedError for names that are none of files."""

    def __init__(self, url: str) -> None:
        address = folder_address(url)
        self.url, self.location = address.url, Location(shown(url))
        self._home, found = self._listed(address)
        self.sizes = {name.removeprefix(address.name): size for name, size in found.items() if not name.endswith("/")}
        if not self.sizes:
            raise self.location.system("no objects are under it in the store")
        if len(self.sizes) > MOST_FILES:
            raise self.location.unsupported(f"holds {len(self.sizes)} objects: a model has at most {MOST_FILES}")
        self._first: dict[str, tuple[Pin, bytes]] = {}
        self._here: set[str] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="chkpt-channels-", ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        try:
            for name, size in self.sizes.items():
                self._place(name, size)
        except BaseException:
            self.close()
            raise

    def _listed(self, address: Address) -> tuple[str, dict[str, int]]:
        """The URL under which the files are read, which on the hub names one commit; and their names with their sizes."""
        if address.scheme == "hf":
            from chkpt_channels.storage.stores import hub

            commit, found = hub.listed(address, self.location)
            return f"hf://{address.home}@{commit}/{address.name}", found
        from chkpt_channels.storage.stores.upload import Client

        return self.url, Client(address, self.location).listed(address.name)

    def _place(self, name: str, size: int) -> None:
        if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise self.location.at(name).unsupported("its key is no name of a file")
        path = self.path / name
        with self.location.wrapping_os_errors("cannot be mirrored in a temporary folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.truncate(size)

    def source(self, name: str, *, sparing: bool = False) -> Source:
        """A file where it is; with `sparing` its first request is a short one. Raises FileSystemError."""
        size = SPARING_BYTES if sparing else FIRST_BYTES
        place, first = self.path / name, self._first.get(name)
        source = RemoteSource(self._home + name, first, name=self.url + name, first_bytes=size, place=place)
        if source.size >= LEAST_BYTES and not sparing:  # weights are opened again
            self._first[name] = source.first
        return source

    def document(self, name: str, limit: int) -> Source:
        """A small file, which is fetched once; a hole where it has more bytes than `limit`. Raises FileSystemError."""
        path = self.path / name
        if name in self.sizes and name not in self._here and self.sizes[name] <= limit:
            with self.source(name) as source, source.location.wrapping_os_errors("cannot be kept in a temporary folder"):
                path.write_bytes(source.read(0, source.size))
            self._here.add(name)
        return Source(path, self.url + name)

    def close(self) -> None:
        """Remove the temporary folder."""
        self._folder.cleanup()

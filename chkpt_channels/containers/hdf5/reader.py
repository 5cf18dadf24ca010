"""HDF5 files through h5py: a checked index and bounded reads. `objects` looks into objects, `editor` changes them.

The library works on an OverlayFile, so it opens no file by name and changes none. Links that leave the file, storage in other
files and virtual datasets are refused before anything is read through them; no filter plugin is looked for while the library
works.
Source: HDF5 File Format Specification, version 3.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

from chkpt_channels.containers.hdf5 import objects
from chkpt_channels.core.errors import DamagedError, Location, UnsupportedError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.isolation import run_isolated
from chkpt_channels.storage.overlay import OverlayFile
from chkpt_channels.storage.source import Source

LARGEST_DEFLATE_RATIO = 1100
"""Deflate packs at most 1032 to 1: a dataset that is larger by more than this than what is stored for it is a bomb."""
HARMLESS_BYTES = 16 << 20
"""A dataset of this size may be stored in nothing: one of zeros that was never written has no chunks."""
MOST_UNPACKED_RATIO = 16
"""To the file's size: weights, which look like noise, are packed to half their size at best."""

Texts = dict[str, str | list[str]]


class Dataset(NamedTuple):
    """An array of numbers; `dtype` is numpy's name for them. `offset`, from the first byte of the HDF5 file, is that of
    contiguous elements in C order and in this machine's encoding; None where they must be read through the library."""

    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    offset: int | None

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.itemsize


class AttributeFilter(NamedTuple):
    """Which attributes are read: those with these names, a number appended or not, of these objects."""

    names: frozenset[str]
    owners: Callable[[Hdf5], Iterable[str]]


class Hdf5:
    """The index of the HDF5 file that is `size` bytes of `source` from `start` on.

    `datasets` are the arrays of numbers by path, each under the innermost of its names, `spans` (start, bytes, path) of their
    elements; `aliases` further names; `groups` addresses of groups; `attributes` the names of the file's own;
    `texts` the wanted ones by owner, as far as they are text. Raises DamagedError where the file contradicts or leaves itself.
    """

    def __init__(
        self, source: Source, location: Location, start: int = 0, size: int | None = None, wanted: AttributeFilter | None = None
    ) -> None:
        self.source, self.location, self._start = source, location, start
        self._size = source.size - start if size is None else size
        self.datasets: dict[str, Dataset] = {}
        self.groups: dict[str, int] = {}
        self.aliases: dict[str, str] = {}
        self.texts: dict[str, Texts] = {}
        self.attributes: list[str] = []
        self._dtypes, self._name_bytes = list[tuple[Any, tuple[str, bool]]](), 0
        self._spans: dict[int, tuple[int, str]] = {}  # of elements and chunks: size and dataset by address
        import h5py  # noqa: F401 # here, so that forked workers need not import it

        index = json.loads(b"".join(self._isolated(partial(self._index, wanted), location)))
        self.groups, self.aliases, self.spans = index["groups"], index["aliases"], index["spans"]
        self.texts, self.attributes = index["texts"], index["attributes"]
        self.datasets = {path: Dataset(row[0], row[1], tuple(row[2]), row[3]) for path, row in index["datasets"].items()}

    def _take_spans(self, opened: Any, path: str) -> None:
        """Remember where a dataset has its elements. Raises DamagedError where another one has them."""
        for address, size in objects.stored_spans(opened, self._spans):
            if size and self._spans.setdefault(address, (size, path))[1] != path:
                raise self._overlap(self._spans[address][1], path, address)

    def _check_overlaps(self) -> None:
        """Raise DamagedError where two datasets share bytes: an edit of one would change the other."""
        for (start, (size, path)), (following, (_, other)) in pairwise(sorted(self._spans.items())):
            if start + size > following:
                raise self._overlap(path, other, following)

    def _overlap(self, path: str, other: str, address: int) -> DamagedError:
        return self.location.at(other).damaged(f"its elements overlap those of {path}", at=self._start + address)

    def _isolated(self, work: Callable[[], Iterator[bytes]], location: Location) -> Iterator[bytes]:
        """Run `work` in a forked worker. A file that the library has just edited is read in place: it holds nothing that the
        library has not seen, and a fork takes as long as an index."""
        return work() if self.source.made_here else run_isolated(work, location, self.source)

    def _index(self, wanted: AttributeFilter | None) -> Iterator[bytes]:
        """The index as JSON, which goes through a pipe."""
        with self.opened() as (root, _):
            self._walk(root)
            self._check_overlaps()
            self._dtypes.clear()  # handles of the library
            attributes = [name for name, _ in objects.attributes(root)]
            owners, names = (wanted.owners(self), wanted.names) if wanted else ((), frozenset())
            texts = {path: dict(objects.texts(objects.object_at(root, path), names)) for path in owners}
        index = {"datasets": self.datasets, "groups": self.groups, "aliases": self.aliases}
        yield json.dumps({**index, "texts": texts, "attributes": attributes, "spans": objects.joined(self._spans)}).encode()

    @contextmanager
    def opened(self, path: str = "", *, writable: bool = False) -> Iterator[tuple[Any, OverlayFile]]:
        """The file's root group, and the overlay that the library works on. What the library raises becomes DamagedError about
        the object at `path`."""
        import h5py

        location = self.location.at(path) if path else self.location
        overlay = OverlayFile(self.source, self._start, self._size)
        try:
            with _no_plugins(), h5py.File(overlay, "r+" if writable else "r") as file:
                yield h5py.h5g.open(file.id, b"/"), overlay
        except Exception as error:
            if overlay.error is not None:
                raise overlay.take_error() from error
            if isinstance(error, _LIBRARY_ERRORS):
                raise location.damaged(f"the HDF5 library cannot read it: {_reason(error)}") from error
            raise
        if overlay.error is not None:
            raise overlay.take_error()

    def _walk(self, root: Any) -> None:
        """Index every object that a hard link leads to; then see that no soft link dangles."""
        names: dict[int, list[str]] = {}
        soft: list[bytes] = []

        def take(name: bytes, info: Any) -> DamagedError | None:
            """Anything but None ends the visit; raising would end it badly."""
            path = name.decode("utf-8", "surrogateescape")
            if info.type == _SOFT:
                soft.append(name)
            else:
                names.setdefault(info.u, []).append(path)
            return self._link_problem(path, info.type, len(names))

        # links.visit, not objects.visit: the latter follows each object once and does not show its further names
        if problem := root.links.visit(take, info=True):
            raise problem
        around = {path.rpartition("/")[0] for paths in names.values() for path in paths}
        for address, paths in names.items():
            own = next((path for path in paths if path in around), None) or max(paths, key=lambda path: path.count("/"))
            self.aliases |= {path: own for path in paths if path != own}
            if own in around:
                self.groups[own] = address
            else:
                self._object(root, own, address)
        for name in soft:
            self._check_soft(root, name)

    def _link_problem(self, path: str, kind: int, count: int) -> DamagedError | None:
        """Why a link must not be followed."""
        location = self.location.at(path)
        if kind not in (_HARD, _SOFT):
            what = "is a link into another file" if kind == _EXTERNAL else f"is a link of the unknown kind {kind}"
            return location.damaged(what)
        try:
            location.check_limit("groups around it", path.count("/"), LIMITS.name_depth)
            self._name_bytes += len(path)
            self.location.check_limit("bytes in its names", self._name_bytes, LIMITS.name_bytes)
            self.location.check_limit("objects", count, LIMITS.hdf5_objects)
        except DamagedError as error:
            return error
        return None

    def _check_soft(self, root: Any, name: bytes) -> None:
        import h5py

        location = self.location.at(name.decode("utf-8", "replace"))
        try:
            exists = h5py.h5o.exists_by_name(root, name)
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            raise location.damaged(f"is a soft link that leads nowhere: {_reason(error)}") from error
        if not exists:
            raise location.damaged("is a soft link that leads nowhere")

    def _object(self, root: Any, path: str, address: int) -> None:
        """Index one object that holds no others."""
        import h5py

        opened = objects.object_at(root, path)
        if isinstance(opened, h5py.h5g.GroupID):
            self.groups[path] = address
        elif isinstance(opened, h5py.h5d.DatasetID):
            self._take_spans(opened, path)
            if dataset := self._dataset(opened, path):
                self.datasets[path] = dataset

    def _dtype(self, kind: Any) -> tuple[str, bool]:
        """`numpy_name` of a type, computed once for each."""
        for known, answer in self._dtypes:
            if known.equal(kind):
                return answer
        self._dtypes.append((kind, objects.numpy_name(kind)))
        return self._dtypes[-1][1]

    def _dataset(self, opened: Any, path: str) -> Dataset | None:
        """One dataset, its declared size believed only where enough is stored for it. None where it holds no numbers."""
        offset = opened.get_offset()
        if offset is None:
            objects.check_storage(opened, self.location.at(path))
        kind = opened.get_type()
        dtype, plain = self._dtype(kind)
        if not dtype and kind.get_size() == 2:
            dtype = objects.tagged_name(opened)
        shape = opened.shape
        if not dtype or shape is None:
            return None
        dataset = Dataset(dtype, kind.get_size(), shape, offset if plain or dtype == "bfloat16" else None)
        stored = opened.get_storage_size()
        if offset is not None and (stored != dataset.size or offset + stored > self._size):
            raise self.location.at(path).damaged(f"has {stored} bytes, which do not fit {list(shape)} of {dtype}", at=offset)
        # 27 TiB of shape with nothing stored is a valid file, and would be read as zeros
        if dataset.size > max(HARMLESS_BYTES, stored * LARGEST_DEFLATE_RATIO):
            raise self.location.at(path).damaged(f"declares {dataset.size} bytes and stores {stored}")
        return dataset

    def chunks(self, path: str) -> Iterator[bytes]:
        """The elements of a dataset in C order and little-endian, a few MiB at a time."""
        dataset = self.datasets[path]
        if dataset.offset is not None:
            at = self._start + dataset.offset
            yield from self.source.chunks(at, at + dataset.size)
        elif dataset.size:
            yield from self._isolated(partial(self._elements, path, dataset), self.location.at(path))

    def _elements(self, path: str, dataset: Dataset) -> Iterator[bytes]:
        with self.opened(path) as (root, _):
            opened = objects.object_at(root, path)
            objects.check_filters(opened, self.location.at(path))
            yield from objects.elements(opened, dataset.dtype, dataset.shape, dataset.itemsize)

    def check_copied(self, edited: Collection[str]) -> None:
        """Read what the library alone can read and nobody has to: a damaged chunk would be copied unseen. Raises DamagedError.

        Bombs are copied as they are: unpacking them all would take longer than a verdict may."""
        left, paths = LIMITS.inflated_bytes + MOST_UNPACKED_RATIO * self._size, []
        for path, dataset in self.datasets.items():
            if dataset.offset is None and path not in edited and 0 < dataset.size <= left:
                left -= dataset.size
                paths.append(path)
        for _ in self._isolated(partial(self._read, paths), self.location) if paths else ():
            pass

    def _read(self, paths: Iterable[str]) -> Iterator[bytes]:
        """Nothing for each piece that can be read."""
        for path in paths:
            try:
                for _ in self._elements(path, self.datasets[path]):
                    yield b""
            except UnsupportedError:  # a filter that is not built in: nobody here can read it
                continue


_HARD, _SOFT, _EXTERNAL = 0, 1, 64
"""Types of links. Source: HDF5's H5Lpublic.h, H5L_type_t."""
_LIBRARY_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@contextmanager
def _no_plugins() -> Iterator[None]:
    """The library looks for filter plugins in no folder, and afterwards in those of the host process again: for an unknown filter
    it would load code from there. HDF5_PLUGIN_PRELOAD works only before h5py is imported."""
    from h5py import h5pl

    folders = [h5pl.get(index) for index in range(h5pl.size())]
    for _ in folders:
        h5pl.remove(0)
    try:
        yield
    finally:
        for folder in folders:
            h5pl.append(folder)


def _reason(error: Exception) -> str:
    """The library's message, without the names of its functions."""
    text = str(error.args[0] if error.args else error)
    return re.sub(r"\s+", " ", re.sub(r"^[^(]*\((.*)\)$", r"\1", text))[:160] or type(error).__name__

"""PyTorch's format before 1.6, and torch.save(…, _use_new_zipfile_serialization=False).

    pickle of the magic number · of the protocol version 1001 · of the system's integer sizes · of the object ·
    of the list of storage keys; then for each key, in that order, an int64 element count and the raw elements

Source: torch/serialization.py, `_legacy_save` and `_legacy_load`. torch does not compare the pickle's element counts with
those before the elements; this reader does. A persistent id has a sixth element, a view's metadata, which is None but in very
old files; modules add ids ("module", class, file, source). Before 0.1.10 torch wrote a tar: unknown.py names it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from chkpt_channels.containers.pickle.editor import edited
from chkpt_channels.containers.pickle.reader import Kind, OutOfData, Tree, plain
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import Edits
from chkpt_channels.formats.base import Format
from chkpt_channels.formats.torch import LEGACY_MAGIC
from chkpt_channels.formats.torch.checkpoint import MAIN, TorchCheckpoint
from chkpt_channels.formats.torch.edits import TorchEdits
from chkpt_channels.formats.torch.object_tree import TorchObject
from chkpt_channels.formats.torch.rebuild import Storage
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice

VERSION = 1001
FIRST_READ_BYTES = 1 << 20
"""Holds the pickles of most files; four times as much is read where they are longer."""
COUNT_BYTES = 8
"""The int64 element count before each storage's elements."""


def _is_tar(source: Source) -> bool:
    """Whether the first block is a tar header, which torch looks for before anything else: text in a pickle can be one."""
    import tarfile

    try:
        tarfile.TarInfo.frombuf(source.read(0, min(tarfile.BLOCKSIZE, source.size)), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class TorchLegacy(TorchCheckpoint):
    """Five pickles, then the storages."""

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        if _is_tar(source):
            raise source.location.unsupported("is a tar archive too, and torch would read that")
        magic, version, system, self._tree, keys = self._pickles()
        if magic.root.target.value != LEGACY_MAGIC or plain(version.root) != VERSION:
            raise source.location.damaged(f"is not a torch file of protocol {VERSION}", at=0)
        little = system.root.lookup("little_endian")
        self._little = little is None or little.target.value is not False
        self.index({MAIN: TorchObject(self._tree, source.location)})
        self._keys = keys
        self._counts = self._index_storages(keys)

    def _pickles(self) -> list[Tree]:
        """The five pickles. Nothing says how long they are: read on until they end."""
        size = FIRST_READ_BYTES
        while True:
            data = self.source.read(0, min(size, self.source.size))
            trees: list[Tree] = []
            try:
                for _ in range(5):
                    trees.append(Tree(data, self.source.location, start=trees[-1].stop if trees else 0))
                return trees
            except OutOfData:
                if size >= self.source.size:
                    raise self.source.location.damaged("is cut off inside its pickles", at=self.source.size) from None
                size *= 4
                self.source.location.check_limit("bytes of pickles, or more", size, LIMITS.pickle_bytes)

    def _index_storages(self, keys: Tree) -> dict[str, int]:
        """The offset of each storage's element count."""
        listed = [child.target for child in keys.root.target.children]
        text = Kind.TEXT
        if any(key.kind is not text for key in listed) or {key.value for key in listed} != set(self.main.storages):
            raise self.source.location.damaged("its list of storages does not match its tensors", at=keys.start)
        at, offsets = keys.stop, {}
        for key in listed:
            storage = self.main.storages[key.value]
            location = self.source.location.at(f"storage {key.value}")
            if at + COUNT_BYTES + storage.size > self.source.size:
                raise location.damaged(f"is cut off inside the {storage.size} bytes of its {storage.count} elements", at=at)
            (count,) = struct.unpack("<q" if self._little else ">q", self.source.read(at, at + COUNT_BYTES))
            if key.value in offsets:
                raise location.damaged("is listed twice among the storages", at=at)
            if count != storage.count:
                raise location.damaged(f"element count {count} in the file, {storage.count} in the pickle", at=at)
            offsets[key.value] = at
            at += COUNT_BYTES + storage.size
        if at != self.source.size:
            raise self.source.location.damaged(f"{self.source.size - at} bytes follow the last storage", at=at)
        return offsets

    def read_storage(self, part: str, storage: Storage, start: int, stop: int) -> Iterator[bytes]:
        begin = self._counts[storage.key] + COUNT_BYTES
        return self.source.chunks(begin + start, begin + stop)

    def splices(self, edits: Edits) -> list[Splice]:
        self.check_kept(edits)
        if not self._little:
            raise self.source.location.unsupported("was written on a big-endian machine, which is not converted")
        torch_edits = TorchEdits(self.main, edits)
        splices = []
        if torch_edits.pickle is not None:
            splices.append(Splice.of(self._tree.start, self._tree.stop, torch_edits.pickle))
        for key, change in torch_edits.changes.items():
            storage, at = self.main.storages[key], self._counts[key]
            count = (change.keep + change.size) // storage.unit
            begin = at + COUNT_BYTES
            splices.append(Splice.of(at, begin, struct.pack("<q", count)))
            splices.append(Splice(begin + change.keep, begin + storage.size, change.size, change.data))
        if torch_edits.removed:
            splices += self._without(torch_edits.removed)
        return splices

    def _without(self, removed: frozenset[str]) -> Iterable[Splice]:
        """The splices that remove storages: their elements, and their keys from the list."""
        for key in removed:
            at = self._counts[key]
            yield Splice.of(at, at + COUNT_BYTES + self.main.storages[key].size, b"")
        spans = []
        for child in self._keys.root.target.children:
            if child.target.value in removed:
                put = child.target.put  # the PUT that memoizes the key goes with it
                spans.append((child.start, put[2] if put and child.target is child else child.stop))
        yield Splice.of(self._keys.start, self._keys.stop, edited(self._keys, {}, spans))

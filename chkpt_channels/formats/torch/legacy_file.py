"""PyTorch's format before 1.6, and torch.save(…, _use_new_zipfile_serialization=False).

    pickle of the magic number · of the protocol version 1001 · of the system's integer sizes · of the object ·
    of the list of storage keys; then for each key, in that order, an int64 element count and the raw elements

Source: torch/serialization.py, `_legacy_save` and `_legacy_load`. torch does not compare the pickle's element counts with
those in front of the elements; this reader does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from chkpt_channels.core import lazy
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.formats.base import Checkpoint, Declaration, Edits, FirstConv
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice
from chkpt_channels.transform.quantization import Quantiser

if TYPE_CHECKING:
    from chkpt_channels.containers.pickle import editor as pickleedit
    from chkpt_channels.containers.pickle import reader as pickletree
    from chkpt_channels.formats.torch import edits as _torch_edits
    from chkpt_channels.formats.torch import object_tree as _torch_tree
    from chkpt_channels.formats.torch import safe_globals as _torch_globals
else:
    pickleedit = lazy.module("chkpt_channels.containers.pickle.editor", __package__)
    pickletree = lazy.module("chkpt_channels.containers.pickle.reader", __package__)
    _torch_edits = lazy.module("chkpt_channels.formats.torch.edits", __package__)
    _torch_globals = lazy.module("chkpt_channels.formats.torch.safe_globals", __package__)
    _torch_tree = lazy.module("chkpt_channels.formats.torch.object_tree", __package__)

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
HEAD = 64
FIRST_READ = 1 << 20
CHUNK = 4 << 20


class TorchLegacy(Checkpoint):
    """Five pickles, then the storages."""

    format = "torch_legacy"
    title = "PyTorch (legacy)"
    suffixes = frozenset({"", ".pth", ".pt", ".bin", ".ckpt", ".tar"})
    ordered = True
    flat = True

    @classmethod
    def sniff(cls, source: Source) -> bool:
        """The magic number as protocols 0 and 1 spell it, or as the others do."""
        head = source.read(0, min(HEAD, source.size))
        return head.startswith(b"L%dL\n" % MAGIC) or (head[:1] == b"\x80" and MAGIC.to_bytes(10, "little") in head)

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        magic, version, system, self._tree, keys = self._pickles()
        if magic.root.target.value != MAGIC or pickletree.plain(version.root) != VERSION:
            raise source.place.damaged(f"is no torch file of protocol {VERSION}", at=0)
        little = system.root.lookup("little_endian")
        self._little = little is None or little.target.value is not False
        self._object = _torch_tree.TorchObject(self._tree, source.place)
        self._keys = keys
        self._counts = self._index_storages(keys)
        self.tensors = _torch_edits.tensors_of(self._object)
        self.optimizer_entries = _torch_edits.optimizer_entries(self._object, self.tensors)
        self.globals = _torch_globals.foreign(self._tree.globals, scripted=False)

    def _pickles(self) -> list[pickletree.Tree]:
        """The five pickles. Nothing says how long they are: read on until they end."""
        size = FIRST_READ
        while True:
            data = self.source.read(0, min(size, self.source.size))
            trees: list[pickletree.Tree] = []
            try:
                for _ in range(5):
                    trees.append(pickletree.Tree(data, self.source.place, start=trees[-1].stop if trees else 0))
                return trees
            except pickletree.OutOfData:
                if size >= self.source.size:
                    raise self.source.place.damaged("is cut off inside its pickles", at=self.source.size) from None
                size *= 4
                self.source.place.within("bytes of pickles, or more", size, LIMITS.pickle_bytes)

    def _index_storages(self, keys: pickletree.Tree) -> dict[str, int]:
        """The offset of each storage's element count."""
        listed = [child.target for child in keys.root.target.children]
        text = pickletree.Kind.TEXT
        if any(key.kind is not text for key in listed) or {key.value for key in listed} != set(self._object.storages):
            raise self.source.place.damaged("its list of storages is not that of its tensors", at=keys.start)
        at, found = keys.stop, {}
        for key in listed:
            storage = self._object.storages[key.value]
            place = self.source.place.inside(f"storage {key.value}")
            if at + 8 + storage.size > self.source.size:
                raise place.damaged(f"is cut off: the {storage.size} bytes of its {storage.count} elements are not there", at=at)
            (count,) = struct.unpack("<q" if self._little else ">q", self.source.read(at, at + 8))
            if count != storage.count or key.value in found:
                raise place.damaged(f"is said to have {storage.count} elements and {count}", at=at)
            found[key.value] = at
            at += 8 + storage.size
        if at != self.source.size:
            raise self.source.place.damaged(f"{self.source.size - at} bytes stand behind the last storage", at=at)
        return found

    def _read(self, storage: _torch_tree.Storage, start: int, stop: int) -> Iterator[bytes]:
        begin = self._counts[storage.key] + 8
        for at in range(start, stop, CHUNK):
            yield self.source.read(begin + at, begin + min(at + CHUNK, stop))

    def chunks(self, name: str) -> Iterator[bytes]:
        yield from _torch_edits.chunks_of(self._object, name, self._read)

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        return _torch_edits.declarations(self._object, first_convs)

    def hyper_parameters(self, channels: int) -> Sequence[Declaration]:
        return _torch_edits.hyper_parameters(self._object, channels)

    def others(self, group: str) -> list[str]:
        return _torch_edits.others(self._object, group)

    def shared(self, names: Sequence[str]) -> tuple[str, str] | None:
        return _torch_edits.shared(self._object, names)

    def quantiser(self, conv: FirstConv) -> Quantiser | None:
        return _torch_edits.quantiser(self._object, conv.tensor.name)

    def refined(self, conv: FirstConv) -> FirstConv:
        return _torch_edits.refined(self._object, conv)

    def load_line(self, path: str) -> str:
        return _torch_edits.load_line(self._object, path, safe=not self.globals)

    def splices(self, edits: Edits) -> list[Splice]:
        if not self._little:
            raise self.source.place.unsupported("was written on a big-endian machine, which is not converted")
        made = _torch_edits.TorchEdits(self._object, edits)
        splices = []
        if made.pickle is not None:
            splices.append(Splice.of(self._tree.start, self._tree.stop, made.pickle))
        for key, change in made.changes.items():
            storage, at = self._object.storages[key], self._counts[key]
            count = (change.keep + change.size) // storage.unit
            splices.append(Splice.of(at, at + 8, struct.pack("<q", count)))
            splices.append(Splice(at + 8 + change.keep, at + 8 + storage.size, change.size, change.data))
        if made.removed:
            splices += self._without(made.removed)
        return splices

    def _without(self, removed: frozenset[str]) -> Iterable[Splice]:
        """Take storages out: their elements, and their keys from the list."""
        for key in removed:
            at = self._counts[key]
            yield Splice.of(at, at + 8 + self._object.storages[key].size, b"")
        spans = []
        for child in self._keys.root.target.children:
            if child.target.value in removed:
                put = child.target.put
                spans.append((child.start, put[2] if put and child.target is child else child.stop))
        yield Splice.of(self._keys.start, self._keys.stop, pickleedit.edited(self._keys, {}, spans))

"""PyTorch's zip archives: torch.save since 1.6 (.pth, .pt, .bin, .ckpt) and TorchScript.

    <top>/data.pkl              the pickled object, tensors as calls over persistent ids
    <top>/data/<key>            one member a storage
    <top>/constants.pkl         TorchScript only: a tuple of tensors over <top>/constants/<key>; frozen models keep all there
    <top>/byteorder, version, .format_version, .storage_alignment, .data/serialization_id

Source: torch/serialization.py and caffe2/serialize/inline_container.cc of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from chkpt_channels.core import lazy
from chkpt_channels.formats.base import Checkpoint, Declaration, Edits, FirstConv, FlatWriter, Notice
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Check, Splice
from chkpt_channels.transform.quantization import Quantiser

if TYPE_CHECKING:
    from chkpt_channels.containers.pickle import reader as pickletree
    from chkpt_channels.containers.zip import editor as zipedit
    from chkpt_channels.containers.zip import reader as zipmembers
    from chkpt_channels.formats.torch import edits as _torch_edits
    from chkpt_channels.formats.torch import object_tree as _torch_tree
    from chkpt_channels.formats.torch import safe_globals as _torch_globals
    from chkpt_channels.formats.torch import writer as _torch_writing
else:
    pickletree = lazy.module("chkpt_channels.containers.pickle.reader", __package__)
    zipedit = lazy.module("chkpt_channels.containers.zip.editor", __package__)
    zipmembers = lazy.module("chkpt_channels.containers.zip.reader", __package__)
    _torch_edits = lazy.module("chkpt_channels.formats.torch.edits", __package__)
    _torch_globals = lazy.module("chkpt_channels.formats.torch.safe_globals", __package__)
    _torch_tree = lazy.module("chkpt_channels.formats.torch.object_tree", __package__)
    _torch_writing = lazy.module("chkpt_channels.formats.torch.writer", __package__)

SERIALIZATION_ID = ".data/serialization_id"
TAIL = 1 << 16


class TorchZip(Checkpoint):
    """A zip archive with a data.pkl."""

    format = "torch_zip"
    title = "PyTorch (zip)"
    suffixes = frozenset({"", ".pth", ".pt", ".bin", ".ckpt", ".tar"})
    ordered = True
    flat = True

    @classmethod
    def sniff(cls, source: Source) -> bool:
        """A zip whose first member, or whose directory, names a data.pkl."""
        if source.size < 4 or source.read(0, 4) != b"PK\x03\x04":
            return False
        head, tail = source.read(0, min(TAIL, source.size)), source.read(max(0, source.size - TAIL), source.size)
        return b"data.pkl" in head or b"data.pkl" in tail or b".data/serialization_id" in tail

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._archive = zipmembers.Archive(source)
        pickles = [name for name in self._archive.members if name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1]
        if len(pickles) != 1:
            raise source.place.damaged(f"holds {len(pickles)} members named data.pkl instead of one")
        self._top = pickles[0].removesuffix("data.pkl")
        self._check_version()
        self.scripted = self._top + "constants.pkl" in self._archive.members
        self.title = "TorchScript (zip)" if self.scripted else self.title
        self._objects = {"data": self._parse("data")}
        if self.scripted:
            self._objects["constants"] = self._parse("constants")
        for torch_object in self._objects.values():
            self.tensors |= _torch_edits.tensors_of(torch_object)
        self.optimizer_entries = _torch_edits.optimizer_entries(self._objects["data"], self.tensors)
        self.globals = _torch_globals.foreign((g for o in self._objects.values() for g in o.tree.globals), scripted=self.scripted)
        if not self._archive.has_crcs:
            self.warnings.append(Notice("no_checksums", "the archive was written without checksums: damage in it cannot be seen"))

    def _check_version(self) -> None:
        """torch reads no archive without one."""
        names = [f"{self._top}{name}" for name in (".data/version", "version")]
        found = next((name for name in names if name in self._archive.members), None)
        if found is None:
            raise self.source.place.inside(names[-1]).damaged("is missing from the archive")
        if not self._archive.read(found, 64).strip().isdigit():
            raise self.source.place.inside(found).damaged("is no number")

    def _parse(self, part: str) -> _torch_tree.TorchObject:
        name = f"{self._top}{part}.pkl"
        place = self.source.place.inside(name)
        tree = pickletree.Tree.whole(self._archive.read(name), place)
        torch_object = _torch_tree.TorchObject(tree, place, "" if part == "data" else part)
        for storage in torch_object.storages.values():
            member = self._archive.members.get(self._member(part, storage))
            if member is None:
                raise self.source.place.inside(self._member(part, storage)).damaged("the storage is missing from the archive")
            if member.size != storage.size:
                raise self.source.place.inside(member.name).damaged(
                    f"the storage holds {member.size} bytes, its {storage.count} elements need {storage.size}", at=member.data
                )
        return torch_object

    def _member(self, part: str, storage: _torch_tree.Storage) -> str:
        return f"{self._top}{part}/{storage.key}"

    def _home(self, name: str) -> tuple[str, _torch_tree.TorchObject]:
        return next((part, o) for part, o in self._objects.items() if name in o.groups)

    def chunks(self, name: str) -> Iterator[bytes]:
        part, torch_object = self._home(name)

        def read(storage: _torch_tree.Storage, start: int, stop: int) -> Iterable[bytes]:
            return self._archive.chunks(self._member(part, storage), start, stop)

        yield from _torch_edits.chunks_of(torch_object, name, read)

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        return _torch_edits.declarations(self._objects["data"], first_convs)

    def contradictions(self, first_convs: Sequence[FirstConv]) -> Sequence[tuple[Declaration, int]]:
        return _torch_edits.contradictions(self._objects["data"], first_convs)

    def hyper_parameters(self, channels: int) -> Sequence[Declaration]:
        return _torch_edits.hyper_parameters(self._objects["data"], channels)

    @classmethod
    def flat_writer(cls) -> FlatWriter:
        return FlatWriter(_torch_writing.keeps, _torch_writing.write)

    def others(self, group: str) -> list[str]:
        return ["code"] if self.scripted else _torch_edits.others(self._objects["data"], group)

    def shared(self, names: Sequence[str]) -> tuple[str, str] | None:
        return _torch_edits.shared(self._objects["data"], names)

    def quantiser(self, conv: FirstConv) -> Quantiser | None:
        _, torch_object = self._home(conv.tensor.name)
        return _torch_edits.quantiser(torch_object, conv.tensor.name)

    def refined(self, conv: FirstConv) -> FirstConv:
        return _torch_edits.refined(self._objects["data"], conv)

    def load_line(self, path: str) -> str:
        if self.scripted:
            return f"model = torch.jit.load({path!r})"
        return _torch_edits.load_line(self._objects["data"], path, safe=not self.globals)

    def splices(self, edits: Edits) -> list[Splice]:
        changes: dict[str, zipedit.MemberEdit] = {}
        removed: set[str] = set()
        self._check_byteorder()
        for part, torch_object in self._objects.items():
            made = _torch_edits.TorchEdits(torch_object, edits)
            if made.pickle is not None:
                changes[f"{self._top}{part}.pkl"] = zipedit.MemberEdit.of(made.pickle)
            for key, change in made.changes.items():
                changes[f"{self._top}{part}/{key}"] = zipedit.MemberEdit(change.size, change.data, change.keep)
            removed |= {f"{self._top}{part}/{key}" for key in made.removed}
            if "0" in made.removed and set(torch_object.storages) - made.removed:
                # torch computes offsets (map_location="meta") from the storage named 0, which it expects to meet first
                raise self.source.place.inside(f"{self._top}{part}/0").unsupported(
                    "the optimizer's entry for the kernel owns the archive's first storage, which cannot go",
                    hint="--optimizer reset keeps the entry and zeroes it",
                )
        if changes:
            changes |= self._serialization_id(changes, removed)
        return zipedit.splices(self._archive, changes, frozenset(removed))

    def _check_byteorder(self) -> None:
        name = self._top + "byteorder"
        if name in self._archive.members and self._archive.read(name, 64) != b"little":
            raise self.source.place.unsupported("was written on a big-endian machine, which is not converted")

    def _serialization_id(self, changes: dict[str, zipedit.MemberEdit], removed: set[str]) -> dict[str, zipedit.MemberEdit]:
        """The identity that torch derives from names and CRCs, kept right if it was right."""
        member = self._archive.members.get(self._top + SERIALIZATION_ID)
        if member is None or member.size != 40:
            return {}
        old = self._archive.read(member.name, 64)
        if old[20:] != self._hash({}, set()):
            return {}
        return {member.name: zipedit.MemberEdit(40, lambda: old[:20] + self._hash(changes, removed))}

    def _hash(self, changes: dict[str, zipedit.MemberEdit], removed: set[str]) -> bytes:
        """boost's hash_combine over the CRCs of all non-empty members in file order (PyTorchStreamWriter::writeEndOfFile)."""
        digest = 0
        for name, member in self._archive.members.items():
            change = changes.get(name)
            size = change.keep + change.size if change else member.size
            if name in removed or not size or name.endswith(SERIALIZATION_ID):
                continue
            crc = zipedit.new_crc(self._archive, name, change) if change else member.crc
            digest ^= (crc + 0x9E3779B9 + (digest << 6) + (digest >> 2)) & 0xFFFFFFFFFFFFFFFF
            digest &= 0xFFFFFFFFFFFFFFFF
        return b"%020d" % digest

    def checks(self) -> Sequence[Check]:
        return self._archive.checks()

"""PyTorch's zip archives: torch.save since 1.6 (.pth, .pt, .bin, .ckpt) and TorchScript.

    <top>/data.pkl              the pickled object, tensors as calls over persistent ids
    <top>/data/<key>            one member a storage
    <top>/constants.pkl         TorchScript only: a tuple of tensors over <top>/constants/<key>; frozen models keep all there
    <top>/byteorder, version, .format_version, .storage_alignment, .data/serialization_id

Source: torch/serialization.py and caffe2/serialize/inline_container.cc of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chkpt_channels.containers.zip import editor
from chkpt_channels.containers.zip.reader import Archive
from chkpt_channels.core.tensors import Edits, Notice
from chkpt_channels.formats.base import Format
from chkpt_channels.formats.torch.checkpoint import MAIN, TorchCheckpoint
from chkpt_channels.formats.torch.edits import TorchEdits
from chkpt_channels.formats.torch.object_tree import TorchObject
from chkpt_channels.formats.torch.rebuild import Storage
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Checksum, Splice

SERIALIZATION_ID = ".data/serialization_id"
_KNOWN = ("constants.pkl", "byteorder", "version", ".data/version", ".format_version", ".storage_alignment", SERIALIZATION_ID)
"""What an archive may hold besides the pickle and the storages, which are missed where their case is another."""
SERIALIZATION_ID_BYTES = 40
"""Two numbers of 20 digits: a hash of the members' names, and one of their CRCs."""


class TorchZip(TorchCheckpoint):
    """A zip archive with a data.pkl."""

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        self._archive = Archive(source)
        pickles = [name for name in self._archive.members if name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1]
        if len(pickles) != 1:
            raise source.location.damaged(f"holds {len(pickles)} members named data.pkl instead of one")
        self._top = pickles[0].removesuffix("data.pkl")
        self._check_case()
        self._check_version()
        self.scripted = self._top + "constants.pkl" in self._archive.members
        self.title = "TorchScript (zip)" if self.scripted else self.title
        self.index({part: self._parse(part) for part in ((MAIN, "constants") if self.scripted else (MAIN,))})
        if not self._archive.has_crcs:
            self.warnings.append(Notice("no_checksums", "the archive was written without checksums: damage in it cannot be seen"))

    def _check_case(self) -> None:
        """torch finds its members without regard to case: one that it would find, and that is not looked for here, is refused."""
        for name in self._archive.members:
            known = name.lower().removeprefix(self._top.lower())
            if known in _KNOWN and name != self._top + known:
                raise self.source.location.at(name).damaged(f"is {known} in letters of another case, which torch reads as it")

    def _check_version(self) -> None:
        """torch refuses an archive without a version, and looks for it in both places."""
        names = [f"{self._top}{name}" for name in (".data/version", "version")]
        present = next((name for name in names if name in self._archive.members), None)
        if present is None:
            raise self.source.location.at(names[-1]).damaged("is missing from the archive")
        if not self._archive.read(present, 64).strip().isdigit():
            raise self.source.location.at(present).damaged("must be a number")

    def _parse(self, part: str) -> TorchObject:
        name = f"{self._top}{part}.pkl"
        torch_object = TorchObject.of(self._archive.read(name), self.source.location.at(name), "" if part == MAIN else part)
        for storage in torch_object.storages.values():
            member = self._archive.members.get(self._member(part, storage))
            if member is None:
                raise self.source.location.at(self._member(part, storage)).damaged("the storage is missing from the archive")
            if member.size != storage.size:
                raise self.source.location.at(member.name).damaged(
                    f"the storage holds {member.size} bytes, its {storage.count} elements need {storage.size}", at=member.data
                )
        return torch_object

    def _member(self, part: str, storage: Storage) -> str:
        return f"{self._top}{part}/{storage.key}"

    def read_storage(self, part: str, storage: Storage, start: int, stop: int) -> Iterable[bytes]:
        return self._archive.chunks(self._member(part, storage), start, stop)

    def splices(self, edits: Edits) -> list[Splice]:
        self.check_kept(edits)
        changes: dict[str, editor.MemberEdit] = {}
        removed: set[str] = set()
        self._check_byteorder()
        for part, torch_object in self.objects.items():
            torch_edits = TorchEdits(torch_object, edits)
            if torch_edits.pickle is not None:
                changes[f"{self._top}{part}.pkl"] = editor.MemberEdit.of(torch_edits.pickle)
            for key, change in torch_edits.changes.items():
                changes[f"{self._top}{part}/{key}"] = editor.MemberEdit(change.size, change.data, change.keep)
            removed |= {f"{self._top}{part}/{key}" for key in torch_edits.removed}
            if "0" in torch_edits.removed and set(torch_object.storages) - torch_edits.removed:
                # torch computes offsets (map_location="meta") from the storage named 0, which it expects to meet first
                raise self.source.location.at(f"{self._top}{part}/0").unsupported(
                    "the optimizer's entry for the kernel owns the archive's first storage, which must stay",
                    hint="--optimizer reset keeps the entry and zeroes it",
                )
        if changes:
            changes |= self._serialization_id(changes, removed)
        return editor.splices(self._archive, changes, frozenset(removed))

    def _check_byteorder(self) -> None:
        name = self._top + "byteorder"
        if name in self._archive.members and self._archive.read(name, 64) != b"little":
            raise self.source.location.unsupported("was written on a big-endian machine, which is not converted")

    def _serialization_id(self, changes: dict[str, editor.MemberEdit], removed: set[str]) -> dict[str, editor.MemberEdit]:
        """The identity that torch derives from names and CRCs: 20 digits each. Nothing refuses a stale one; it is
        recomputed if it matched before."""
        member = self._archive.members.get(self._top + SERIALIZATION_ID)
        if member is None or member.size != SERIALIZATION_ID_BYTES:
            return {}
        old = self._archive.read(member.name, 64)
        if old[20:] != self._hash({}, set()):
            return {}
        return {member.name: editor.MemberEdit(SERIALIZATION_ID_BYTES, lambda: old[:20] + self._hash(changes, removed))}

    def _hash(self, changes: dict[str, editor.MemberEdit], removed: set[str]) -> bytes:
        """boost's hash_combine over the CRCs of all non-empty members in file order (PyTorchStreamWriter::writeEndOfFile)."""
        digest = 0
        for name, member in self._archive.members.items():
            change = changes.get(name)
            size = change.keep + change.size if change else member.size
            if name in removed or not size or name.endswith(SERIALIZATION_ID):
                continue
            crc = editor.new_crc(self._archive, name, change) if change else member.crc
            digest ^= (crc + 0x9E3779B9 + (digest << 6) + (digest >> 2)) & 0xFFFFFFFFFFFFFFFF
            digest &= 0xFFFFFFFFFFFFFFFF
        return b"%020d" % digest

    def checks(self) -> Sequence[Checksum]:
        return self._archive.checks()

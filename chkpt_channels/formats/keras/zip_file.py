"""Keras 3's own format (.keras): a zip archive of a configuration and an HDF5 file.

    metadata.json        keras_version, date_saved
    config.json          the model: classes, settings, the shapes that layers were built on
    model.weights.h5     /layers/<class>[_n]/vars/<i>, /optimizer/vars/<i>

The archive is spliced, and so is the HDF5 file inside of it. Source: keras/src/saving/saving_lib.py of Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from chkpt_channels.core import lazy
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.formats.keras.checkpoint import KerasCheckpoint
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Check, Splice

if TYPE_CHECKING:
    from chkpt_channels.containers.hdf5 import editor as hdf5edit
    from chkpt_channels.containers.hdf5 import reader as hdf5
    from chkpt_channels.containers.zip import editor as zipedit
    from chkpt_channels.containers.zip import reader as zipmembers
    from chkpt_channels.formats.keras import weights as _keras_weights
else:
    hdf5 = lazy.module("chkpt_channels.containers.hdf5.reader", __package__)
    hdf5edit = lazy.module("chkpt_channels.containers.hdf5.editor", __package__)
    zipedit = lazy.module("chkpt_channels.containers.zip.editor", __package__)
    zipmembers = lazy.module("chkpt_channels.containers.zip.reader", __package__)
    _keras_weights = lazy.module("chkpt_channels.formats.keras.weights", __package__)

WEIGHTS = "model.weights.h5"
TAIL = 1 << 16


class KerasZip(KerasCheckpoint):
    """One .keras file."""

    format = "keras_zip"
    title = "Keras"
    suffixes = frozenset({".keras"})
    document = "config.json"

    @classmethod
    def sniff(cls, source: Source) -> bool:
        """A zip whose directory names a configuration, and weights or what else belongs to it."""
        if source.size < 4 or source.read(0, 4) != b"PK\x03\x04":
            return False
        tail = source.read(max(0, source.size - TAIL), source.size)
        return cls.document.encode() in tail and (WEIGHTS.encode() in tail or b"metadata.json" in tail)

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._archive = zipmembers.Archive(source)
        for name in (self.document, WEIGHTS):
            if name not in self._archive.members:
                raise source.place.inside(name).damaged("is missing from the archive")
        if not self._archive.has_crcs:
            raise source.place.damaged("was written without checksums, and so Keras cannot load it")
        self._member = self._archive.members[WEIGHTS]
        self._packed = self._member.method != zipmembers.STORED
        self.file = self._open_weights()
        self.configure(self._decoded())
        weights = _keras_weights.Stored(self.file, self.model) if self.model else _keras_weights.Numbered(self.file)
        self.index(weights, weights.order)

    def _open_weights(self) -> hdf5.Hdf5:
        place = self.source.place.inside(WEIGHTS)
        if not self._packed:
            return hdf5.Hdf5(self.source, place, self._member.data, self._member.size)
        if self._member.size > LIMITS.inflated_bytes:
            raise place.unsupported(
                f"is deflated and larger than {LIMITS.inflated_bytes >> 20} MiB", hint="zip it without compression"
            )
        import tempfile

        with place.trying("cannot be inflated"), tempfile.TemporaryFile() as spool:
            for piece in self._archive.chunks(WEIGHTS):
                spool.write(piece)
            spool.flush()
            inflated = Source.of_descriptor(spool.fileno(), self.source.name, made_here=self.source.made_here)
        return hdf5.Hdf5(self.source.keep(inflated), place)

    def _decoded(self) -> str:
        try:
            return self._archive.read(self.document).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.source.place.inside(self.document).damaged("is not UTF-8") from error

    def load_line(self, path: str) -> str:
        return f"model = keras.models.load_model({path!r})"

    def composed(self, datasets: Mapping[str, hdf5edit.NewDataset], text: str | None) -> list[Splice]:
        changes = {}
        if text is not None:
            changes[self.document] = zipedit.MemberEdit.of(text.encode())
        if inner := hdf5edit.splices(self.file, datasets, {}):
            changes[WEIGHTS] = zipedit.MemberEdit.patch(self._member, inner)
        return zipedit.splices(self._archive, changes)

    def checks(self) -> Sequence[Check]:
        return self._archive.checks()

"""Keras 3's own format (.keras): a zip archive of a configuration and an HDF5 file.

    metadata.json        keras_version, date_saved
    config.json          the model: classes, settings, the shapes on which layers were built (Keras fails to load stale ones)
    model.weights.h5     /layers/<class>[_n]/vars/<i>, /optimizer/vars/<i>

Three stored members without extra fields, the weights last. The archive is spliced, and so is the HDF5 file inside of it: it is
edited in place, and the member's CRC and headers follow. Source: keras/src/saving/saving_lib.py of Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.containers.hdf5 import editor as hdf5_editor
from chkpt_channels.containers.hdf5.reader import Hdf5
from chkpt_channels.containers.zip import editor as zip_editor
from chkpt_channels.containers.zip.member import STORED
from chkpt_channels.containers.zip.reader import Archive
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.formats.base import Format
from chkpt_channels.formats.keras import CONFIG, WEIGHTS
from chkpt_channels.formats.keras.checkpoint import KerasCheckpoint
from chkpt_channels.formats.keras.weights import Numbered, Stored
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Checksum, Splice


class KerasZip(KerasCheckpoint):
    """One .keras file."""

    document, endings = CONFIG, (".keras",)

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        self._archive = Archive(source)
        for name in (self.document, WEIGHTS):
            if name not in self._archive.members:
                raise source.location.at(name).damaged("is missing from the archive")
        if not self._archive.has_crcs:
            raise source.location.damaged("was written without checksums: Keras cannot load it")
        self._member = self._archive.members[WEIGHTS]
        self.file = self._open_weights()
        self.configure(self._decoded())
        self.index(Stored(self.file, self.model) if self.model else Numbered(self.file))

    def _open_weights(self) -> Hdf5:
        location = self.source.location.at(WEIGHTS)
        if self._member.method == STORED:
            return Hdf5(self.source, location, self._member.data, self._member.size)
        if self._member.size > LIMITS.inflated_bytes:
            raise location.unsupported(
                f"is deflated and larger than {LIMITS.inflated_bytes >> 20} MiB", hint="zip it without compression"
            )
        import tempfile

        with location.wrapping_os_errors("cannot be inflated"), tempfile.TemporaryFile() as spool:
            for piece in self._archive.chunks(WEIGHTS):
                spool.write(piece)
            spool.flush()
            inflated = Source.of_descriptor(spool.fileno(), self.source.name, made_here=self.source.made_here)
        return Hdf5(self.source.keep(inflated), location)

    def _decoded(self) -> str:
        try:
            return self._archive.read(self.document).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.source.location.at(self.document).damaged("is not UTF-8") from error

    def composed(self, datasets: hdf5_editor.Datasets, text: str | None, lists: hdf5_editor.Texts) -> list[Splice]:
        changes = {}
        if text is not None:
            changes[self.document] = zip_editor.MemberEdit.of(text.encode())
        if inner := hdf5_editor.splices(self.file, datasets, lists):
            changes[WEIGHTS] = zip_editor.MemberEdit.patch(self._member, inner)
        return zip_editor.splices(self._archive, changes)

    def checks(self) -> Sequence[Checksum]:
        return self._archive.checks()

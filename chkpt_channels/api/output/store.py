"""Output of one file in a store: it is planned, checked, assembled there, and published, or not at all."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from chkpt_channels.api.output.naming import Path_, Progress, beside_source, other_container, output_path
from chkpt_channels.api.output.patch import composed
from chkpt_channels.api.output.target import Settings, Target, Written, status_of
from chkpt_channels.api.report import FileInfo
from chkpt_channels.core.errors import OutputExistsError, UnsupportedError, UsageError
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.folders.planning import PlannedModel
from chkpt_channels.formats.base import Loading
from chkpt_channels.storage.source import RangeSource
from chkpt_channels.storage.splice import Composed, passing_checks
from chkpt_channels.storage.stores.address import parsed
from chkpt_channels.storage.stores.output import StoreOutput
from chkpt_channels.storage.stores.remote import RemoteSource
from chkpt_channels.storage.urls import file_name, shown
from chkpt_channels.transform.options import Options


class StoreTarget(Target):
    """The output of one file in a store, by default beside its source there."""

    def __init__(
        self, model: ModelFile, dst: Path_ | None, options: Options, settings: Settings, progress: Progress | None
    ) -> None:
        super().__init__(progress)
        self._model, self._settings = model, settings
        if dst is not None:
            self._url, name = os.fspath(dst), output_path(model, file_name(dst), options).name
        elif isinstance(model.source, RemoteSource):
            self._url = beside_source(model.source.address.url, options.word)
            name = file_name(self._url)
        else:
            raise TypeError(f"{model.source.name} is no object, and the output has no name")
        self.path: str = shown(self._url)
        if other := other_container(model.format, Path(name)):
            what = f"the output {name} is named like {other.title}, and a store gets files of the source's format"
            raise UsageError(what, file=self.path, hint=f"-o {name}, and aws s3 cp {name} {shlex.quote(self.path)}")
        self._out: StoreOutput | None = None

    def prepare(self, planned: PlannedModel) -> None:
        """Raise UnsupportedError for a file that others go with."""
        if names := self._model.checkpoint.companions(Path(file_name(self._url)), edited=bool(planned.first.edits)):
            what = f"its data files {', '.join(names)} go beside it, which is not done in a store"
            raise UnsupportedError(what, file=self._model.source.name, hint=f"-o FILE, and aws s3 cp for each: {self.path}")

    def fill(self, planned: PlannedModel) -> None:
        """Check it, and put its parts into the store; it has no name yet."""
        model = self._model
        output, splices = composed(model.checkpoint, planned.first, self.path)
        self._size = output.size
        try:
            self._out = self.enter_context(StoreOutput(self._url, model.source, force=self._settings.force))
        except OutputExistsError:
            if not self._is_there(output):
                raise
            return
        self._out.fill(output, passing_checks(model.checkpoint.checks(), splices), self._told(output.size))
        model.source.check_unchanged()

    def _is_there(self, output: Composed) -> bool:
        """Whether an object of the name, which is not the source itself, holds this output."""
        source = self._model.source
        if isinstance(source, RemoteSource) and source.address[1:4] == parsed(self._url)[1:4]:
            return False
        planned = RangeSource(output, made_here=True)
        with RemoteSource(self._url) as there:
            return there.size == planned.size and all(a == b for a, b in zip(there.chunks(), planned.chunks(), strict=True))

    def publish(self, planned: PlannedModel) -> Written:
        """Give it its name, unless it was there already."""
        out, info = self._out, FileInfo(self.path, self._model.format.name, self._size)
        if out is None:
            return Written(info, status_of(is_new=False, is_changed=bool(planned.first.edits)))
        out.publish()
        return Written(info, status_of(is_new=True, is_changed=bool(planned.first.edits)), transfer=out.transfer())

    def loading(self, group: str | None) -> Loading:
        """How the output is loaded, once it was fetched."""
        return self._model.loading(file_name(self._url), group)

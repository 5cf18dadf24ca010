"""Output of one file: it is written, checked, and published together with its data files and configurations, or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from chkpt_channels.api.output.check import check
from chkpt_channels.api.output.naming import Path_, Progress, other_container, output_path, with_hash
from chkpt_channels.api.output.target import Settings, Target, Written, status_of
from chkpt_channels.api.report import FileInfo
from chkpt_channels.core.errors import DamagedError, Location, OutputExistsError, UsageError
from chkpt_channels.core.tensors import Notice
from chkpt_channels.folders.config_edits import without_channels
from chkpt_channels.folders.config_files import ConfigFile, read
from chkpt_channels.folders.describing import weights_in
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.folders.planning import PlannedModel
from chkpt_channels.formats.base import Checkpoint, Loading
from chkpt_channels.storage.atomic import Output
from chkpt_channels.storage.source import STDIO, Source, check_link, resolved
from chkpt_channels.storage.standard_output import StandardOutput
from chkpt_channels.storage.stream_copy import apply, write_at
from chkpt_channels.transform.options import Options
from chkpt_channels.transform.plan import Plan


class FileTarget(Target):
    """The output of one file."""

    def __init__(
        self, model: ModelFile, dst: Path_ | None, options: Options, settings: Settings, progress: Progress | None
    ) -> None:
        super().__init__(progress)
        self._model, self._options, self._settings = model, options, settings
        self.path: Path = output_path(model, dst, options)
        self._other = other_container(model.format, self.path)
        if settings.state_dict is not None and not self._other:
            raise UsageError("--state-dict needs an output in another format: -o x.safetensors")
        self._out: Output | StandardOutput | None = None
        self._companions: Mapping[str, str] = {}
        self._documents: Mapping[str, bytes] = {}
        self._kept: tuple[Notice, ...] = ()
        self._converted: Checkpoint | None = None

    def _open(self) -> Output | StandardOutput:
        if self._out is None:
            if os.fspath(self.path) == STDIO:
                self._out = self.enter_context(StandardOutput())
            else:
                out = Output(self.path, self._model.source, force=self._settings.force, or_same=True)
                self._out = self.enter_context(out)
        return self._out

    def prepare(self, planned: PlannedModel) -> None:
        """Decide on the files that go with it. Raises what `_sidecars` raises."""
        self._documents = self._sidecars(planned) if self._settings.with_sidecars else {}
        why = self._model.described(self._model.parts[0]).why if self._settings.with_sidecars else ""
        self._kept = (Notice("sidecar_kept", f"the configuration beside it {why}: it is not written"),) if why else ()
        self._companions = self._model.checkpoint.companions(self.path, edited=bool(planned.first.edits))

    @property
    def beside(self) -> tuple[str, ...]:
        """The files that go with it: named from its own name and its configurations', never by what a file holds."""
        return tuple(str(self.path.parent / name) for name in (*self._companions.values(), *self._documents))

    def fill(self, planned: PlannedModel) -> None:
        """Write and check it; it has no name yet."""
        checkpoint, plan, source = self._model.checkpoint, planned.first, self._model.source
        plan = plan._replace(edits=plan.edits._replace(companions=self._companions))
        out, report = self._open(), self._told(source.size)
        if self._other:
            from chkpt_channels.api.output import cross_format

            key = self._settings.state_dict
            self._converted = cross_format.write(checkpoint, plan.edits, key, self._other, out.fd, out.location, report)
        else:
            write_checked(checkpoint, plan, out.fd, out.location, report)

    def publish(self, planned: PlannedModel) -> Written:
        """Give the file its name, after its data files and configurations got theirs."""
        edits, out = planned.first.edits, self._open()
        digest = ""
        with Source.of_descriptor(out.fd, str(self.path), made_here=True) as written:
            size = written.size
            if self._settings.sha256 or self._settings.hash_name:
                digest = sha256_of(written)
        if self._settings.hash_name and isinstance(out, Output):
            self.path = with_hash(self.path, digest)
            out.rename(self.path)
        home = Path(self._model.source.name).parent
        opened = self._model.checkpoint.companion
        is_new = publish(out, home, self._companions, self._documents, force=self._settings.force, opened=opened)
        info = FileInfo(str(self.path), (self._other or self._model.format).name, size, sha256=digest)
        notices = (*(() if edits else _renamed(self._companions)), *self._kept)
        return Written(info, status_of(is_new=is_new, is_changed=bool(edits or self._other)), notices)

    def loading(self, group: str | None) -> Loading:
        """How the output is loaded, of several state dicts the one called so; in another format there is only one."""
        if self._other:
            return self._converted.loading(str(self.path)) if self._converted else Loading()
        return self._model.loading(str(self.path), group)

    def _sidecars(self, planned: PlannedModel) -> dict[str, bytes]:
        """The configurations beside the source, as they are to be beside the output. Raises UsageError where they would replace
        those of the source, OutputExistsError where they would replace another model's."""
        home, folder = Path(self._model.source.name).parent, self.path.parent
        if resolved(folder) == resolved(home):
            raise UsageError("--sidecars would replace the configurations of the source: -o names an output in another folder")
        edited = planned.edited_documents()
        documents = {config.name: edited.get(config.name) or config.document.edited({}) for config in self._model.configs}
        for config in self._model.configs:
            if not self._options.plain["follow_links"]:
                check_link(Location(str(home / config.name)), home / config.name, home, "is")
            there = folder / config.name
            if os.path.lexists(there) and (owner := self._owner(there, config, documents[config.name])):
                what, hint = f"is the configuration of {owner}, and is not replaced", "-o names an output in another folder"
                raise OutputExistsError(what, file=str(there), hint=hint)
        return documents

    def _owner(self, there: Path, config: ConfigFile, new: bytes) -> str:
        """Whose configuration an existing file is, where not that of the output alone: another model's, or that of weights beside
        it, which take other channels; "" where it may be replaced."""
        try:
            document = read(there)
        except DamagedError:
            return "another model"
        if without_channels(document.plain) != without_channels(config.document.plain):
            return "another model"
        others = [] if document.edited({}) == new else [file.name for file in weights_in(there.parent)]
        return next((name for name in others if name != self.path.name), "")


def _renamed(companions: Mapping[str, str]) -> tuple[Notice, ...]:
    """The warnings that an unchanged copy has data files of other names."""
    changed = {old: new for old, new in companions.items() if old != new}
    return tuple(Notice("renamed_data", f"its data file {old} is written as {new}") for old, new in changed.items())


def write_checked(
    checkpoint: Checkpoint, plan: Plan, fd: int, location: Location, progress: Callable[[int], None] | None
) -> None:
    """Write one edited file to `fd` and check it. Raises FileSystemError, also where the source was changed meanwhile, and what
    the check raises."""
    with checkpoint.writing(plan.edits, fd, location, progress):  # the disk is at work while the output is checked
        checkpoint.source.check_unchanged()
        check(checkpoint, plan, fd, location.file)


def write_bytes(fd: int, content: bytes, location: Location) -> None:
    """Write a small file and fsync it."""
    with location.wrapping_os_errors("cannot be written"):
        write_at(fd, memoryview(content), 0)
        os.fsync(fd)


def publish(
    out: Output | StandardOutput,
    folder: Path,
    names: Mapping[str, str],
    documents: Mapping[str, bytes],
    *,
    force: bool,
    opened: Callable[[Path], Source] = Source,
) -> bool:
    """Give the output its name; False where all files were there already, with the same content. Copies of its data files in
    `folder`, which are `opened`, under their new `names`, and the `documents` are published before it, and rolled back if it
    fails."""
    if names and isinstance(out, StandardOutput):
        raise UsageError(
            f"its data files {', '.join(names)} cannot go to standard output: -o names an output beside which they can"
        )
    with contextlib.ExitStack() as stack:
        others = [_copy(opened(folder / old), out.path.parent / new, stack, force=force) for old, new in names.items()]
        for name, content in documents.items():
            others.append(stack.enter_context(Output(out.path.parent / name, None, force=force, or_same=True)))
            write_bytes(others[-1].fd, content, others[-1].location)
        try:
            # the output comes last: whoever sees it finds its data files too
            new = [other.publish(first=True) for other in others]
            return any([out.publish(), *new])
        except BaseException:  # an interrupt too
            if not out.is_shown():  # with its name given, the others belong to it
                for other in reversed(others):
                    other.roll_back()
            raise


def _copy(opened: Source, new: Path, stack: contextlib.ExitStack, *, force: bool) -> Output:
    with opened as source:
        out = stack.enter_context(Output(new, source, force=force, or_same=True))
        apply(source, [], out.fd, out.location)
        source.check_unchanged()
    return out


def sha256_of(source: Source) -> str:
    """The SHA-256 of an open file."""
    import hashlib

    digest = hashlib.sha256()
    for piece in source.chunks():
        digest.update(piece)
    return digest.hexdigest()

"""Output of a model folder: weights, configurations and all other files go to a draft, which is published by one rename."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from chkpt_channels.api.output.naming import Path_, Progress, default_output
from chkpt_channels.api.output.publish import write_bytes, write_checked
from chkpt_channels.api.output.target import Settings, Target, Written, status_of
from chkpt_channels.api.report import FileInfo
from chkpt_channels.core.errors import Location, UsageError
from chkpt_channels.folders.model_folder import ModelFolder
from chkpt_channels.folders.planning import PlannedModel
from chkpt_channels.formats import weights_suffixes
from chkpt_channels.formats.base import Loading
from chkpt_channels.storage.atomic import OutputFolder
from chkpt_channels.storage.source import REPLACED, Source, is_same_content
from chkpt_channels.storage.stream_copy import apply
from chkpt_channels.transform.options import Options

FICLONE = 0x40049409
"""Linux's ioctl that shares the blocks of two files. Source: linux/fs.h."""


class FolderTarget(Target):
    """The output of a model folder, which must not exist yet. Raises UsageError where it is named like a file of weights."""

    def __init__(
        self, model: ModelFolder, dst: Path_ | None, options: Options, settings: Settings, progress: Progress | None
    ) -> None:
        super().__init__(progress)
        self._model, self._hard_link = model, settings.hard_link
        self.path: Path = Path(dst) if dst is not None else default_output(model.path, options.word)
        if dst is not None and self.path.suffix.lower() in weights_suffixes():
            what = f"the output {self.path.name} is named like a file, and the input is a folder, which becomes a new one"
            raise UsageError(what, hint=f"name it {self.path.stem}, or convert one of the files in {model.named()}")
        self._out: OutputFolder | None = None
        self._size = 0

    @property
    def beside(self) -> tuple[str, ...]:
        """The files in it."""
        return tuple(str(self.path / name) for name in self._model.files)

    def publish(self, planned: PlannedModel) -> Written:
        """Give the complete folder its name."""
        if self._out:
            self._out.publish()
        status = status_of(is_new=self._out is not None, is_changed=planned.changed)
        return Written(FileInfo(str(self.path), "folder", self._size), status)

    def loading(self, group: str | None) -> Loading:
        """How the output is loaded."""
        return self._model.loading(str(self.path), group)

    def fill(self, planned: PlannedModel) -> None:
        """Write and check every file; the folder has no name yet. Raises FileSystemError, and what a check raises."""
        is_there = os.path.isdir(self.path) and not os.path.islink(self.path)
        if is_there and not self._model.is_remote and self._is_current(planned):
            return
        self._out = self.enter_context(OutputFolder(self.path, self._model.path))
        edits, documents = dict(planned.edited_files()), planned.edited_documents()
        told = self._told(self._model.size)
        for name in self._model.files:
            target, untouched = self._out.draft / name, name not in edits and name not in documents
            location = Location(str(target))
            with location.wrapping_os_errors("cannot be written"):
                target.parent.mkdir(parents=True, exist_ok=True)
                if not (untouched and self._hard_link and self._linked(name, target)):
                    with open(target, "x+b", buffering=0) as new:
                        fd = new.fileno()
                        if name in edits:
                            write_checked(*edits[name], fd, location, told)
                        elif name in documents:
                            write_bytes(fd, documents[name], location)
                        else:
                            _copy(self._model.source(name), fd, target)
                size = target.stat().st_size
            self._size += size
            if told and name not in edits:
                told(size)

    def _is_current(self, planned: PlannedModel) -> bool:
        """Whether the folder is there, with the files that this conversion gives and no other."""
        import tempfile

        edits, documents = dict(planned.edited_files()), planned.edited_documents()
        with Location(str(self.path)).wrapping_os_errors("cannot be compared"):
            there = {str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir()}
        if there != set(self._model.files):
            return False
        for name in sorted(there, key=lambda name: (name in edits, name not in documents)):
            location = Location(str(self.path / name))
            with contextlib.ExitStack() as stack, location.wrapping_os_errors("cannot be compared"):
                if name in edits or name in documents:
                    fd = stack.enter_context(tempfile.TemporaryFile(dir=self.path.parent)).fileno()
                if name in edits:
                    write_checked(*edits[name], fd, location, None)
                elif name in documents:
                    write_bytes(fd, documents[name], location)
                else:
                    fd = stack.enter_context(self._model.source(name)).fd
                if not is_same_content(fd, self.path / name):
                    return False
                self._size += (self.path / name).stat().st_size
        return True

    def _linked(self, name: str, target: Path) -> bool:
        """Whether a file has become a hard link; not where the file system cannot, or where it is a symbolic link: its file is
        shared (a download cache's blob), and writing to the output later would change it. Raises FileSystemError where another
        file was in its place by then."""
        path = self._model.path / name
        with self._model.source(name) as opened:
            if path.is_symlink():
                return False
            try:
                os.link(path, target)
            except OSError:
                return False
            if not opened.is_same_file(target.lstat()):
                raise opened.location.system(REPLACED)
            return True


def _copy(source: Source, fd: int, target: Path) -> None:
    """The same bytes, in shared blocks where the file system can do that."""
    with source as opened:
        if not _reflink(opened.fd, fd):
            apply(opened, [], fd, Location(str(target)))
        opened.check_unchanged()


def _reflink(source: int, target: int) -> bool:
    """Whether the file system could share the blocks (ioctl FICLONE of Linux)."""
    try:
        import fcntl

        fcntl.ioctl(target, FICLONE, source)  # Btrfs and XFS; ext4 refuses
        os.fsync(target)
        return True
    except (ImportError, OSError):
        return False

"""What every output is: a file or a folder, here or in a store. How it is written, its steps, and what is reported of it."""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from chkpt_channels.api.output.naming import Path_, Progress
from chkpt_channels.api.report import FileInfo
from chkpt_channels.core.errors import UsageError
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Notice
from chkpt_channels.folders.model_folder import is_folder
from chkpt_channels.folders.planning import PlannedModel
from chkpt_channels.formats.base import Loading
from chkpt_channels.storage.opening import check_named
from chkpt_channels.storage.source import STDIO
from chkpt_channels.storage.urls import is_bucket, is_prefix, is_url, shown

if TYPE_CHECKING:
    from chkpt_channels.storage.stores.parts import Transfer


def to_store(src: Path_, dst: Path_ | None) -> bool:
    """Whether an output goes into a store: it is named so, or lies beside a source there."""
    return is_bucket(dst if dst is not None else src)


class Settings(NamedTuple):
    """How outputs are written, not what is in them."""

    force: bool = False
    dry_run: bool = False
    hard_link: bool = False
    with_sidecars: bool = False
    sha256: bool = False
    hash_name: bool = False
    state_dict: str | None = None

    def validated(self, src: Path_, dst: Path_ | None) -> Settings:
        """The same settings. Raises UsageError where they do not apply to this source or this output."""
        check_named(src, dst)
        source = shown(os.fspath(src))
        if self.with_sidecars and is_url(src):
            raise UsageError("--sidecars reads the configurations in a file's folder, and not in a store", file=source)
        if to_store(src, dst):
            if self.sha256 or self.hash_name:
                what = "--sha256 and --hash-name need the whole content, which the store copies unread"
                raise UsageError(what, file=shown(os.fspath(dst or src)), hint="-o FILE, and aws s3 cp FILE s3://…")
            if self.state_dict is not None:
                raise UsageError("--state-dict needs an output in another format, and that is a file", hint="-o FILE.safetensors")
            if is_folder(src) and dst is not None and not is_prefix(dst):
                url = shown(os.fspath(dst))
                raise UsageError("a model folder becomes a folder: its URL ends with a slash", file=url, hint=f"-o {url}/")
        if self.hard_link and (is_prefix(src) or to_store(src, dst)):
            raise UsageError("--hard-link is for folders of this machine", file=source)
        named = dst is None or os.fspath(dst) != STDIO
        if not named and (self.hash_name or self.with_sidecars):
            raise UsageError("standard output has neither a name nor a folder: --hash-name and --sidecars need both")
        if is_folder(src):
            if not named:
                raise UsageError("a model folder cannot be written to standard output: -o names an output folder", file=source)
            if self.sha256 or self.hash_name or self.state_dict is not None:
                raise UsageError("--sha256, --hash-name and --state-dict apply to files, not to model folders", file=source)
        return self


class Written(NamedTuple):
    """An output: its record, its status (converted, unchanged, or current where it was there already), and warnings."""

    output: FileInfo
    status: str
    notices: tuple[Notice, ...] = ()
    transfer: Transfer | None = None


def status_of(*, is_new: bool, is_changed: bool) -> str:
    """The status of a report: "current" where every file of the output was there already, as it was to be written."""
    return "current" if not is_new else "converted" if is_changed else "unchanged"


class Target(contextlib.ExitStack):
    """An output, which has no name until it is published. A context: on exit everything unpublished is removed."""

    path: Path | str
    """Where it will be, as reports show it."""

    def __init__(self, progress: Progress | None) -> None:
        super().__init__()
        self._progress = progress

    def _told(self, total: int) -> Callable[[int], None] | None:
        """What is called with the bytes that are done, of so many."""
        progress = self._progress
        return (lambda done: progress(done, total)) if progress else None

    @property
    def beside(self) -> tuple[str, ...]:
        """The files that go with it, or in it."""
        return ()

    def prepare(self, planned: PlannedModel) -> None:
        """Decide on the files that go with it."""

    @abstractmethod
    def fill(self, planned: PlannedModel) -> None:
        """Write and check it; it has no name yet."""

    @abstractmethod
    def publish(self, planned: PlannedModel) -> Written:
        """Give it its name, after all that goes with it got theirs."""

    @abstractmethod
    def loading(self, group: str | None) -> Loading:
        """How the output is loaded, of several state dicts the one called so."""

"""All or nothing: an output name shows the old file or the complete, checked new one.

On Linux the new file has no name until it is published (O_TMPFILE and linkat), so that even SIGKILL leaves no litter.
Elsewhere, and while an old file is replaced, which linkat cannot do, it has a recognizable name beside the output and is locked
while in use; the next run into that folder removes those that no process holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from chkpt_channels.core import interrupts
from chkpt_channels.core.errors import FileSystemError, Location, OutputExistsError, PostPublishError, reason
from chkpt_channels.core.records import pattern
from chkpt_channels.storage.source import BROWSER, Source, is_same_content, resolved

_LEFTOVER = pattern(r"\.chkpt-channels-[0-9a-f]{16}\.tmp")
"""Names of files beside an output while it is replaced: 64 random bits, so that two runs never collide."""
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS}
"""How file systems and kernels without unnamed files fail. Source: open(2), O_TMPFILE."""
UNNAMED = getattr(os, "O_TMPFILE", 0)


class Output:
    """A new file for `path`: write to `fd`, then `publish()`. Used as a context, it vanishes unless published.

    Raises OutputExistsError where the name is taken and `force` is not given, or is that of `source` or of anything but a regular
    file; FileSystemError where the folder is missing or may not be written to. With `or_same` a file of that name is judged when
    this one is complete: it stays where it has the same content.
    """

    def __init__(self, path: Path, source: Source | None, *, force: bool = False, or_same: bool = False) -> None:
        self._folder, self._force, self._or_same = path.parent, force, or_same
        self.rename(path, source)
        self._temporary: Path | None = None
        self._backup: Path | None = None
        self.fd = -1
        try:
            sweep(self._folder)
            ahead = source.ahead if source and source.ahead and source.ahead.folder == self._folder else None
            self.fd = os.dup(ahead.fd) if ahead else self._unnamed() if UNNAMED else self._named()
            if self._temporary:
                fcntl.flock(self.fd, fcntl.LOCK_EX)
            if self._old:
                os.fchmod(self.fd, stat.S_IMODE(self._old.st_mode))  # a new file has 0666 & ~umask
        except OSError as error:
            self.__exit__()
            raise _unwritable(self.location, self._folder, error) from error

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self._temporary, self._backup):
            with contextlib.suppress(OSError):
                if name:
                    name.unlink()
        if self.fd >= 0:
            os.close(self.fd)

    def _unnamed(self) -> int:
        try:
            return os.open(self._folder, os.O_RDWR | UNNAMED | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in _NO_TMPFILE or not self._folder.is_dir():  # ENOENT also means that the folder is missing
                raise
        return self._named()

    def _named(self) -> int:
        self._temporary = _new_name(self._folder)
        return os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def rename(self, path: Path, source: Source | None = None) -> None:
        """Take another name in the same folder."""
        old = _replaced_file(path, source, force=self._force or self._or_same)
        self.path, self.location, self._old = path, Location(str(path)), old if self._force else None

    def publish(self, *, first: bool = False) -> bool:
        """Give the complete, synced file its name, and sync the folder; False where the name shows the same content already.
        Raises PostPublishError where the folder cannot be synced: the name shows the file then. Where it is the `first` of
        several the last one syncs the folder, and until then `roll_back` undoes it."""
        interrupts.check()
        is_new = self._publish(keep_old=first)
        if not first:
            _sync_after_publish(self.path)
        return is_new

    def _publish(self, *, keep_old: bool) -> bool:
        try:
            if keep_old and self._old:
                self._keep_old()
            if not self._old:
                self._link(self.path)
            else:
                if self._temporary is None:
                    fcntl.flock(self.fd, fcntl.LOCK_EX)
                    name = _new_name(self._folder)
                    self._link(name)
                    self._temporary = name
                # once more: in the meantime a link or a folder may have taken the name
                _replaced_file(self.path, None, force=True)
                os.replace(self._temporary, self.path)
                self._temporary = None
        except FileExistsError as error:
            if self._or_same and is_same_content(self.fd, self.path):
                return False
            raise exists_error(self.location, "is not what this conversion gives" if self._or_same else "") from error
        except OSError as error:
            raise self.location.system(f"cannot be published: {reason(error)}") from error
        return True

    def is_shown(self) -> bool:
        """Whether the name shows this file."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self.fd), os.lstat(self.path))
        return False

    def _keep_old(self) -> None:
        """Give the old file a second name, where the file system knows such."""
        kept = _new_name(self._folder)
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: a browser has no hard links
            os.link(self.path, kept, follow_symlinks=False)
            self._backup = kept

    def roll_back(self) -> None:
        """Roll back: restore the previous file under this name, if it was kept."""
        with contextlib.suppress(OSError):
            if self.is_shown() and self._backup:
                os.replace(self._backup, self.path)
            elif self.is_shown() and not self._old:
                self.path.unlink()

    def _link(self, name: Path) -> None:
        """Give the file this name. FileExistsError if the name is taken, even if only since it was checked."""
        if self._temporary:
            if sys.platform != BROWSER:
                os.link(self._temporary, name, follow_symlinks=False)
                return
            if os.path.lexists(name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(self._temporary, name)  # there are no hard links, and nobody else writes
            return
        # through /proc, because AT_EMPTY_PATH needs a capability; os.link follows the symlink only with a src_dir_fd
        proc = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.link(str(self.fd), name, src_dir_fd=proc, follow_symlinks=True)
        finally:
            os.close(proc)


def _new_name(folder: Path) -> Path:
    return folder / f".chkpt-channels-{os.urandom(8).hex()}.tmp"


def _replaced_file(path: Path, source: Source | None, *, force: bool) -> os.stat_result | None:
    """The file that would be replaced, or None. Raises OutputExistsError unless it may be."""
    location = Location(str(path))
    try:
        old = os.lstat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise location.system(f"cannot be written: {reason(error)}") from error
    if source and any(source.is_same_file(s) for s in (old, *_followed(path))):
        raise OutputExistsError("is the input itself", file=location.file, hint="-o names another output")
    # through a link, or into a device, the output would land elsewhere than its name says
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFREG: ""}
    if kind := kinds.get(stat.S_IFMT(old.st_mode), "a device"):
        hint = f"-o {location.file}/ or --output-dir {location.file}" if stat.S_ISDIR(old.st_mode) else ""
        raise OutputExistsError(f"is {kind}, and only regular files are written", file=location.file, hint=hint)
    if not force:
        raise exists_error(location)
    return old


def _followed(path: Path) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):
        yield os.stat(path)


def exists_error(location: Location, why: str = "") -> OutputExistsError:
    """The error for a name that is taken."""
    what = "exists already" + (f", and {why}" if why else "")
    return OutputExistsError(what, file=location.file, hint="--force replaces it, -o names another output")


def _unwritable(location: Location, folder: Path, error: OSError) -> FileSystemError:
    """The error for an output that cannot be begun in `folder`, which may be missing."""
    hint = f"mkdir -p {shlex.quote(str(folder))}" if not os.path.lexists(folder) else ""
    return location.system(f"cannot be written: {reason(error)}", hint=hint)


def sweep(folder: Path) -> None:
    """Remove what a killed run left in `folder`: files and folders of our name that no process holds locked."""
    with os.scandir(folder) as entries:
        leftovers = [entry.path for entry in entries if _LEFTOVER.fullmatch(entry.name) and _may_be_ours(entry)]
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            # O_NONBLOCK: whoever put a FIFO in its place since must not make this wait for a writer
            fd = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where a run that is alive holds it
                if os.path.isdir(leftover):
                    import shutil

                    shutil.rmtree(leftover)
                else:
                    os.unlink(leftover)
            finally:
                os.close(fd)


def _may_be_ours(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or a folder: this package leaves no FIFO, socket, device or link, and opening one may never end."""
    with contextlib.suppress(OSError):
        return entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
    return False


def _sync_after_publish(path: Path) -> None:
    """Sync the folder that shows `path` now. The old file is gone, so a failure here is reported, not rolled back."""
    try:
        sync_folder(path.parent)
    except OSError as error:
        message = "is complete, but its folder cannot be synced: a power failure may lose its name"
        raise PostPublishError(f"{message}: {reason(error)}", file=str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems cannot sync folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


class OutputFolder:
    """A new folder for `path`: fill `draft`, then `publish()`. Used as a context, it vanishes unless published.

    Raises OutputExistsError where the name is taken or inside `source`, FileSystemError where no folder can be created.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self.path, self.location = path, Location(str(path))
        if os.path.lexists(path):
            raise OutputExistsError("exists already", file=str(path), hint="-o names another output, or remove it first")
        if resolved(source) in resolved(path).parents:
            raise OutputExistsError("is inside the folder that is converted", file=str(path), hint="-o names another output")
        self.draft = _new_name(path.parent)
        self._lock = -1
        try:
            sweep(path.parent)
            self.draft.mkdir()
            self._lock = os.open(self.draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            self.__exit__()
            raise _unwritable(self.location, path.parent, error) from error

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *_: object) -> None:
        import shutil

        shutil.rmtree(self.draft, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)

    def publish(self) -> None:
        """Give the complete folder its name. Raises PostPublishError as a file does."""
        interrupts.check()
        try:
            for folder, _, _ in os.walk(self.draft):
                sync_folder(Path(folder))
            os.rename(self.draft, self.path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise exists_error(self.location) from error
            raise self.location.system(f"cannot be published: {reason(error)}") from error
        _sync_after_publish(self.path)

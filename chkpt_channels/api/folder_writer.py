"""A planned model folder is written file by file: parts as a file is, configurations as planned, and all else as it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from chkpt_channels.api.output import check as readback
from chkpt_channels.api.output.naming import Progress, write_bytes
from chkpt_channels.core.errors import Place
from chkpt_channels.folders.model_folder import ModelFolder
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.stream_copy import apply
from chkpt_channels.transform.plan import Plan


def write(
    folder: ModelFolder,
    edits: Mapping[str, tuple[Checkpoint, Plan]],
    documents: Mapping[str, bytes],
    draft: Path,
    progress: Progress | None,
    *,
    hard_link: bool,
) -> int:
    """Fill the new folder `draft`, and return how many bytes are in it: these files are edited, these are new, all others as they
    are. Raises SystemProblem, and what a check raises."""
    total, written = folder.size, 0
    for name in folder.files:
        source, target = folder.path / name, draft / name
        untouched = name not in edits and name not in documents
        with Place(str(target)).trying("cannot be written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (untouched and hard_link and _linked(source, target)):
                with _new(target) as fd:
                    if name in edits:
                        _write_part(*edits[name], fd, target, (lambda more: progress(more, total)) if progress else None)
                    elif name in documents:
                        write_bytes(fd, documents[name], Place(str(target)))
                    else:
                        _copy(source, fd, target)
            written += target.stat().st_size
        if progress and name not in edits:
            progress(source.stat().st_size, total)
    return written


@contextlib.contextmanager
def _new(target: Path) -> Iterator[int]:
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_part(checkpoint: Checkpoint, made: Plan, fd: int, target: Path, progress: Callable[[int], None] | None) -> None:
    checkpoint.write(made.edits, fd, Place(str(target)), progress)
    checkpoint.source.check_unchanged()
    readback.check(checkpoint, made, fd, str(target))


def _linked(source: Path, target: Path) -> bool:
    """Whether `target` could become another name of the same file. What a link shows belongs to somebody else: whoever writes
    into the output must not write there."""
    if source.is_symlink():
        return False
    try:
        os.link(source, target)
        return True
    except OSError:
        return False


def _copy(source: Path, fd: int, target: Path) -> None:
    """The same bytes, in shared blocks where the file system can do that."""
    with Source(source) as opened:
        if not _reflinked(opened.fd, fd):
            apply(opened, [], fd, Place(str(target)))
        opened.check_unchanged()


def _reflinked(source: int, target: int) -> bool:
    """Whether the file system could share the blocks (ioctl FICLONE of Linux)."""
    try:
        import fcntl

        fcntl.ioctl(target, 0x40049409, source)
        os.fsync(target)
        return True
    except (ImportError, OSError):
        return False

"""The memory of a run: a file of JSON lines, one for each result, appended and synced by the one process that drives the run.

The first line lists the rows. What is cut off at the end, as a crash leaves it, is dropped; a row counts by its last line. A row
is skipped later where that line is final and source and output have the size and the time that it states.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from chkpt_channels import __version__
from chkpt_channels.api.report import FileInfo, failure_record, record
from chkpt_channels.core.errors import (
    AmbiguousError,
    ChkptChannelsError,
    DamagedError,
    FileSystemError,
    Location,
    OutputExistsError,
    PostPublishError,
    UnknownFormatError,
    UnsupportedError,
    UsageError,
    reason,
)
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.atomic import sync_folder
from chkpt_channels.storage.urls import is_url

_BEGINNING = b'{"ledger": 1, '
_FINAL = (UsageError, DamagedError, UnknownFormatError, UnsupportedError, AmbiguousError, OutputExistsError)
_KINDS = {kind.code: kind for kind in _FINAL}
"""Errors that the same files give again. The system's, and the death of a process, may be over."""


class Line(NamedTuple):
    """A result. `status` and `exit` are as in a report, the stamps those of before and after; `error` has the parts of an error
    and its code. Without a `source_stamp` the result hangs on more files than the source, and is not to be relied on."""

    id: str
    src: str
    dst: str | None
    status: str
    exit: int
    source_stamp: str | None
    target_stamp: str | None
    size: int
    error: dict[str, Any] | None
    host: str
    seconds: float
    version: str

    def holds(self, *, force: bool) -> bool:
        """Whether the row need not be done again: two stats. With `force` failures are tried again."""
        if self.source_stamp is None or (self.error and (force or self.error.get("code") not in _KINDS)):
            return False
        there = stamp(self.dst) if self.dst is not None else None
        return stamp(self.src) == self.source_stamp and there == self.target_stamp and bool(self.error or there)

    def result(self) -> dict[str, Any]:
        """The JSON record, as far as the ledger has it."""
        if error := self.failure():
            return failure_record(self.src, error)
        output = {"path": self.dst, "bytes": self.size, "sha256": None} if self.dst else None
        return record(self.status, FileInfo(self.src, "", 0), output=output)

    def failure(self) -> ChkptChannelsError | None:
        """Its error, if it has one."""
        if self.error is None:
            return None
        parts = {name: self.error[name] for name in ("file", "where", "at", "hint")}
        return _KINDS.get(self.error["code"], FileSystemError)(self.error["what"], **parts)


def error_record(error: ChkptChannelsError) -> dict[str, Any]:
    """The parts of an error, from which `Line.failure` makes it again."""
    return {"code": error.code} | {name: getattr(error, name) for name in ("what", "file", "where", "at", "hint")}


class Contents(NamedTuple):
    """What a ledger says: its rows by their ids (source names), its shard (None for all), the last line of each row, and how many
    of its bytes are whole lines."""

    rows: dict[str, str]
    shard: str | None
    lines: dict[str, Line]
    whole: int


def read(path: str | os.PathLike[str]) -> Contents:
    """A ledger. Raises FileSystemError, DamagedError where it is none."""
    location = Location(os.fspath(path))
    with location.wrapping_os_errors("cannot be read"):
        data = Path(path).read_bytes()
    if data and not (data.startswith(_BEGINNING) or _BEGINNING.startswith(data)):
        raise location.damaged("is no ledger of chkpt-channels", hint="--ledger names another file")
    found, start = Contents({}, None, {}, 0), 0
    for number, raw in enumerate(data.splitlines(keepends=True), 1):
        end = start + len(raw)
        try:
            if not raw.endswith(b"\n"):
                break
            record = json.loads(raw)
            if "ledger" in record:
                found = found._replace(rows=dict(record["rows"]), shard=record["shard"])
            else:
                line = Line(**record)
                line.failure()
                found.lines[line.id] = line
        except (ValueError, TypeError, KeyError, RecursionError):
            if end == len(data):  # written, and not yet synced when the machine went down
                break
            raise location.damaged(f"line {number} is no line of a ledger", at=start) from None
        start = end
    return found._replace(whole=start)


def merged(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Line], list[str]]:
    """Every row of several ledgers once: as it was done, or as it failed, or of the status "left"; and the shards of which there
    is no ledger. Raises what `read` raises."""
    rows: dict[str, Line] = {}
    shards: set[str] = set()
    for found in map(read, paths):
        shards |= {found.shard} if found.shard else set()
        for key, src in found.rows.items():
            line = found.lines.get(key) or Line(key, src, None, "left", 0, None, None, 0, None, "", 0.0, "")
            rows[key] = min(line, rows.get(key, line), key=lambda line: (line.status == "left", line.exit))
    counts = {int(shard.partition("/")[2]) for shard in shards}
    return [*rows.values()], [f"{i}/{n}" for n in sorted(counts) for i in range(1, n + 1) if f"{i}/{n}" not in shards]


class Ledger:
    """An open ledger: `lines` are those of earlier runs, `add` appends one. A context.

    Raises OutputExistsError where it is there and `resume` is not given, FileSystemError where another run writes it or the
    system refuses, DamagedError where the file is no ledger."""

    def __init__(self, path: str, rows: Sequence[tuple[str, str]], shard: str | None, *, resume: bool) -> None:
        self._location = Location(path)
        with self._location.wrapping_os_errors("cannot be opened"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        try:
            found = self._taken(resume=resume)
            self.lines = found.lines
            if found.rows != dict(rows) or found.shard != shard:
                head = {"ledger": 1, "version": __version__, "shard": shard, "rows": rows}
                self._append(head)
            with self._location.wrapping_os_errors("cannot be synced"):
                sync_folder(Path(path).absolute().parent)
        except BaseException:
            os.close(self._fd)
            raise

    def _taken(self, *, resume: bool) -> Contents:
        """What it holds, whole lines only, once it is this process's own."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._location.system("is being written by another run") from None
        except OSError as error:
            raise self._location.system(f"cannot be locked: {reason(error)}") from error
        if os.fstat(self._fd).st_size and not resume:
            raise OutputExistsError("exists already", file=self._location.file, hint="--resume goes on with it")
        found = read(self._location.file)
        with self._location.wrapping_os_errors("cannot be written"):
            os.ftruncate(self._fd, found.whole)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def add(self, line: Line) -> None:
        """Append a result; it is on the disk when this returns. Raises PostPublishError: the output is there all the same."""
        try:
            self._append(line._asdict())
        except FileSystemError as error:
            raise PostPublishError(error.what, file=error.file) from error

    def _append(self, record: dict[str, Any]) -> None:
        data = memoryview((json.dumps(record) + "\n").encode())
        with self._location.wrapping_os_errors("cannot be written"):
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)


def stamp(path: str | os.PathLike[str]) -> str | None:
    """Size and time of a file, of a folder those of all files in it, the version of an object in a store; None where there is
    none, or the store does not answer."""
    if is_url(path):
        from chkpt_channels.storage.stores.remote import version_of

        with suppress(FileSystemError, UnsupportedError, UsageError):
            return version_of(os.fspath(path))
        return None
    with suppress(OSError, ValueError):
        if not os.path.isdir(path):
            found = os.stat(path)
            return f"{found.st_size} {found.st_mtime_ns}"
        import hashlib

        files = sorted(file for file in Path(path).rglob("*") if not file.is_dir())
        text = "".join(f"{file.relative_to(path)} {stamp(file)}\n" for file in files)
        return f"{len(files)} files {hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    return None

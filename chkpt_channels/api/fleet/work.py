"""One row of a run as a worker does it, and what a ledger keeps of it."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from chkpt_channels import __version__
from chkpt_channels.api.convert import convert
from chkpt_channels.api.fleet.ledger import Line, error_record, stamp
from chkpt_channels.api.fleet.row import placed
from chkpt_channels.api.manifest import Job
from chkpt_channels.api.output.naming import Progress, derived_path
from chkpt_channels.api.output.target import Settings
from chkpt_channels.api.report import Report
from chkpt_channels.core.errors import ChkptChannelsError, DamagedError, FileSystemError, UnsupportedError, UsageError
from chkpt_channels.core.records import NamedTuple


class Answer(NamedTuple):
    """What a worker sends back: a report or an error, the stamps of the source before and of the output after, and where."""

    result: Report | Exception
    source_stamp: str | None
    target_stamp: str | None
    host: str
    seconds: float
    version: str


def task(job: Job, call: str, settings: Settings, progress: Progress | None = None, *, stamped: bool = True) -> Answer:
    """One conversion, as a worker does it, `stamped` for a ledger. Every error is an answer: what is raised here is the end of
    the worker. No two calls have the same name, `call`: Dask answers equal ones from memory, though the output may be gone."""
    began, before = time.time(), stamp(job.src) if stamped else None
    result: Report | Exception
    try:
        result = convert(job.src, job.dst, job.to, progress=progress, **settings._asdict(), **job.options)
    except Exception as error:
        result = error
    there = result.target if isinstance(result, Report) else _named(job)
    after = stamp(there) if stamped and there is not None else None
    return Answer(result, before, after, os.uname().nodename, round(time.time() - began, 3), __version__)


def line_of(key: str, job: Job, answer: Answer) -> Line:
    """What a ledger keeps of an answer. It is relied on later where all that it hangs on is the source and the options."""
    result, size = answer.result, 0
    error: ChkptChannelsError | None = None
    target: str | None
    if isinstance(result, Report):
        status, target, size = result.status, result.target, result.output.bytes if result.output else 0
        with_others = result.beside or any(kernel.conv.found_by == "sidecar" for kernel in result.kernels)
        relied = os.path.isdir(job.src) or not (with_others or job.options.get("norm") == "auto")
    else:
        status, target, error = "failed", _named(job), _known(result)
        relied = error.file in ("", job.src, target)
    return Line(
        id=key,
        src=placed(job.src),
        dst=placed(target) if target is not None else None,
        status=status,
        exit=error.exit_code if error else 0,
        source_stamp=answer.source_stamp if relied else None,
        target_stamp=answer.target_stamp,
        size=size,
        error=error_record(error) if error else None,
        host=answer.host,
        seconds=answer.seconds,
        version=answer.version,
    )


def _known(error: Exception) -> ChkptChannelsError:
    """An error that is none of this package's: missing memory and missing libraries are the system's."""
    if isinstance(error, ChkptChannelsError):
        return error
    return (FileSystemError if isinstance(error, MemoryError | ImportError) else ChkptChannelsError)(first_line(error))


def _named(job: Job) -> str | None:
    """The output's name, before --hash-name changes it; None where a look into the source names it, or nothing does."""
    if job.dst is not None or (job.to is None and job.options.get("like") is not None):
        return job.dst
    with suppress(UsageError, DamagedError, FileSystemError, UnsupportedError):  # of options that make no sense
        return os.fspath(derived_path(job.src, job.to, job.options))
    return None


def first_line(error: Exception) -> str:
    """The class of an error, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"

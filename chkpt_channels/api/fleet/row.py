"""What a run converts: its rows, which outputs they get, which of them are a shard's, and by what a ledger knows one again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chkpt_channels import __version__
from chkpt_channels.api import manifest
from chkpt_channels.api.fleet.ledger import stamp
from chkpt_channels.api.manifest import Job
from chkpt_channels.api.output.naming import derived_path
from chkpt_channels.api.output.target import Settings
from chkpt_channels.core.errors import UnsupportedError, UsageError
from chkpt_channels.storage.source import STDIO
from chkpt_channels.storage.urls import file_name, is_prefix, is_url, shown

_PATHS = ("like", "matrix")
"""The options that name files."""


def rows(path: str | os.PathLike[str], *, output_dir: str | None = None, part: str | None = None) -> list[Job]:
    """The conversions of a manifest; their outputs in one folder with `output_dir`, those of the shard `part` ("3/64") alone.
    Raises UsageError for what is not understood."""
    jobs = manifest.read(os.fspath(path))
    jobs = with_output_dir(output_dir, jobs) if output_dir is not None else jobs
    return shard(jobs, part) if part is not None else jobs


def with_output_dir(folder: str, jobs: Sequence[Job]) -> list[Job]:
    """The same conversions with outputs in one folder. Raises UsageError where two would get the same name, or where names need a
    target that only a look into each source gives."""
    named = []
    for job in jobs:
        if len(jobs) > 1 and job.dst is None and job.to is None and job.options.get("like") is not None:
            raise UsageError("--output-dir names outputs by their target: --to is needed beside --like", hint="--to gray")
        name = file_name(derived_path(job.src, job.to, job.options))
        end = "/" if is_prefix(job.src) else ""
        path = f"{folder.rstrip('/')}/{name}{end}" if is_url(folder) else str(Path(folder) / name)
        named.append(job._replace(dst=path, makes_folder=not is_url(folder)))
    manifest.check_distinct(named, "--manifest FILE, in which dst names each")
    return named


def shard(jobs: Sequence[Job], part: str) -> list[Job]:
    """The share `i/n` of the conversions, i from 1 to n. Raises UsageError for anything else.

    A row's share follows from its source's name alone, never from its place in the list: while one shard writes, another may find
    more files under a pattern, and yet no row is lost or done twice."""
    match = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", part)
    if not match or int(match[1]) > int(match[2]):
        raise UsageError(f"--shard takes i/n, and i is from 1 to n; not {part[:40]!r}", hint="--shard 1/4")
    number, count = int(match[1]), int(match[2])
    return [job for job in jobs if int(_digest(job.src), 16) % count == number - 1]


def absolute(job: Job) -> Job:
    """The same conversion for a process that works in another folder. Raises UsageError for standard input or output, for folders
    in stores, and for options that are no text or numbers: names alone leave this process."""
    if url := next((name for name in (job.src, job.dst) if is_prefix(name)), ""):
        what = "a ledger and a cluster take files and objects, and this is a folder in a store"
        raise UsageError(what, file=shown(url), hint="chkpt-channels convert without --ledger and --on")
    for url in filter(is_url, filter(None, (job.src, job.dst))):
        from chkpt_channels.storage.stores.address import parsed

        with suppress(UnsupportedError):  # which is told of the row
            parsed(url)  # one that holds credentials is written nowhere
    if STDIO in (job.src, job.dst):
        raise UsageError("standard input and output are of this process alone: a ledger and a cluster take files", file=job.src)
    options = {name: placed(v) if name in _PATHS and isinstance(v, str) else v for name, v in job.options.items()}
    try:
        json.dumps(options)
    except (TypeError, ValueError):
        raise UsageError("a ledger and a cluster take options in words, not objects in memory", file=job.src) from None
    src, dst = placed(job.src), placed(job.dst) if job.dst is not None else None
    return job._replace(src=src, dst=dst, options=options)  # type: ignore[arg-type] # the same keys


def identity(job: Job, settings: Settings) -> str:
    """By what a ledger knows a conversion again: 16 hex digits of its paths, its options, the files that these name, and the
    version of this package. Raises what `absolute` raises."""
    here = absolute(job)
    files = [stamp(value) for name, value in here.options.items() if name in _PATHS and isinstance(value, str)]
    how = settings._replace(force=False, dry_run=False)
    return _digest(json.dumps([here.src, here.dst, job.to, here.options, files, how, __version__], sort_keys=True))[:16]


def placed(path: str) -> str:
    """A path from the root of the file system, a URL as it is."""
    return path if is_url(path) else os.path.abspath(path) + (os.sep if path.endswith(os.sep) else "")


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

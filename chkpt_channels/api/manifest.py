"""Conversions in a TOML file: [[convert]] tables of src, dst, to and options by their long names; src may be a glob."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from chkpt_channels.api.output.naming import derived_path
from chkpt_channels.core.errors import DamagedError, FileSystemError, UnsupportedError, UsageError, did_you_mean
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.folders.model_folder import is_folder
from chkpt_channels.storage.opening import contents
from chkpt_channels.storage.urls import file_name, is_url
from chkpt_channels.transform.option_spec import by_long_name
from chkpt_channels.transform.option_table import OPTIONS, ConvertOptions

NAME = "chkpt-channels.toml"
_OWN = ("src", "dst", "to")
_KNOWN = by_long_name(OPTIONS)
_MOST_DOTS = 1000
"""In a line: Python takes quadratic time to read keys with so many parts."""


class Job(NamedTuple):
    """One conversion: paths as they are opened, the target, and the options."""

    src: str
    dst: str | None
    to: str | int | None
    options: ConvertOptions
    makes_folder: bool = False
    """Whether the folder of the output is made where it is missing."""
    stated: str = ""
    """The file that states it, and the place in it; empty for the command line."""


def read(path: str | Path) -> list[Job]:
    """The conversions of a manifest; their paths are relative to it. Raises UsageError for what it does not understand."""
    import tomllib

    file = Path(path)
    raw = contents(file, LIMITS.sidecar_bytes)
    if any(line.count(b".") > _MOST_DOTS for line in raw.split(b"\n")):
        raise UsageError("is nested too deeply", file=str(path))
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise UsageError(f"is not TOML: {str(error).splitlines()[0][:200]}", file=str(path)) from None
    except RecursionError:
        raise UsageError("is nested too deeply", file=str(path)) from None
    tables = document.get("convert")
    if set(document) != {"convert"} or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError("must hold [[convert]] tables and nothing else", file=str(path))
    jobs = [job for i, table in enumerate(tables, 1) for job in _jobs(table, file, f"[[convert]] {i}")]
    check_distinct({(job.src, job.dst): job for job in jobs if job.makes_folder}.values())
    return jobs


def check_distinct(jobs: Iterable[Job], hint: str = "") -> None:
    """Raise UsageError where two conversions would have one output."""
    sources: dict[str | None, str] = {}
    for job in jobs:
        if job.dst in sources:
            raise UsageError(f"{sources[job.dst]} and {job.src} would both become {job.dst}", file=job.stated, hint=hint)
        sources[job.dst] = job.src


def _each(job: Job, file: str, where: str) -> list[Job]:
    """A conversion of each file that a pattern means, or of the one that is named; a `dst` that ends with / is the folder for
    what becomes of files. Raises UsageError where a pattern means none, or its outputs could not have names of their own."""
    import glob

    is_pattern = not is_url(job.src) and glob.has_magic(job.src) and not os.path.lexists(job.src)
    found = sorted(glob.glob(job.src, recursive=True)) if is_pattern else [job.src]
    if not found:
        raise UsageError(f"no file is called like src, {job.src}", file=file, where=where)
    home = job.dst
    if home is None:
        return [job._replace(src=src) for src in found]
    if not home.endswith(os.sep) and is_pattern:
        hint = f'dst = "{os.path.basename(home)}/" is the folder for them'
        raise UsageError(f"src means {len(found)} files, and dst names one", file=file, where=where, hint=hint)
    if not home.endswith(os.sep) or (not is_pattern and is_folder(job.src)):
        return [job]
    return [_inside(job._replace(src=src), home) for src in found]


def _inside(job: Job, home: str) -> Job:
    """The conversion into a folder; as it stands where its name cannot be told, for what is wrong then is told of it."""
    with suppress(UsageError, DamagedError, FileSystemError, UnsupportedError):
        name = file_name(derived_path(job.src, job.to, job.options))
        return job._replace(dst=os.path.join(home, name), makes_folder=not is_url(home))
    return job


def _jobs(table: dict[str, Any], file: Path, where: str) -> list[Job]:
    if not isinstance(table.get("src"), str) or not isinstance(table.get("dst", ""), str):
        raise UsageError("src and dst must be paths", file=str(file), where=where)
    values = dict(_option(key, value, file, where) for key, value in table.items() if key not in _OWN)
    values |= {name: _placed(values[name], file) for name in ("matrix", "like") if isinstance(values.get(name), str)}
    dst = _placed(table["dst"], file) if "dst" in table else None
    options = cast("ConvertOptions", values)
    job = Job(src=_placed(table["src"], file), dst=dst, to=table.get("to"), options=options, stated=f"{file}: {where}")
    return _each(job, str(file), where)


def _placed(name: str, file: Path) -> str:
    """A path as seen from the manifest, with the / at the end of a folder; a URL as it is."""
    return name if is_url(name) else os.path.join(file.parent, name)


def _meant(key: str) -> str:
    """The key that was meant: the command line calls `dst` otherwise."""
    return 'dst = "FILE", or "FOLDER/"' if key.startswith("output") else did_you_mean(key, [*_KNOWN, *_OWN])


def _option(key: str, value: Any, file: Path, where: str) -> tuple[str, Any]:
    """The library's keyword, and its value, for a key of a table."""
    option = _KNOWN.get(key.replace("_", "-"))
    if option is None:
        raise UsageError(f"{key!r} is not an option", file=str(file), where=where, hint=_meant(key))
    listed = option.as_listed(value)
    if not option.takes(listed):
        raise UsageError(f"{key} does not take {listed!r}", file=str(file), where=where)
    return option.name, listed

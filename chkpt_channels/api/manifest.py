"""A list of conversions in a TOML file: [[convert]] tables with src, dst, to and any option by its long name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple

from chkpt_channels.core.errors import UsageError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage.source import contents
from chkpt_channels.transform.options import KINDS, Words, fits

NAME = "chkpt-channels.toml"
_OWN = ("src", "dst", "to")
_SPELLED = {"from": "from_channels", "layer": "layers", "input": "inputs"}
"""Options whose long name is not that of the library's parameter."""


class Job(NamedTuple):
    """One conversion: paths as they are opened, and the options as words."""

    src: str
    dst: str | None
    to: str | int | None
    words: Words


def read(path: str | Path) -> list[Job]:
    """The conversions of a manifest; their paths are relative to it. Raises UsageError for what it does not understand."""
    import tomllib

    file = Path(path)
    try:
        document = tomllib.loads(contents(file, LIMITS.sidecar_bytes).decode("utf-8"))
    except ValueError as error:
        raise UsageError(f"is no TOML: {str(error).splitlines()[0][:200]}", file=str(path)) from None
    tables = document.get("convert")
    if set(document) != {"convert"} or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError("is a list of [[convert]] tables and nothing else", file=str(path))
    return [_job(table, file, i) for i, table in enumerate(tables)]


def _listed(name: str, value: Any) -> Any:
    """A lone value where an option takes a list."""
    kinds = KINDS[name]
    lone = list in kinds and not isinstance(value, list | bool) and (str not in kinds or isinstance(value, int | float))
    return [value] if lone else value


def _job(table: dict[str, Any], file: Path, number: int) -> Job:
    where = f"[[convert]] {number + 1}"
    if not isinstance(table.get("src"), str) or not isinstance(table.get("dst", ""), str):
        raise UsageError("src and dst are paths", file=str(file), where=where)
    known = {name.replace("_", "-"): name for name in Words.__annotations__} | _SPELLED
    words: dict[str, Any] = {}
    for key, value in table.items():
        if key in _OWN:
            continue
        name = known.get(key) or (key if key in Words.__annotations__ else "")
        if not name:
            close = difflib.get_close_matches(key, [*known, *_OWN], 1)
            raise UsageError(f"{key!r} is no option", file=str(file), where=where, hint=close[0] if close else "")
        words[name] = _listed(name, value)
        if not fits(name, words[name]):
            raise UsageError(f"{key} does not take {value!r}", file=str(file), where=where)
    if isinstance(words.get("matrix"), str):
        words["matrix"] = str(file.parent / words["matrix"])
    dst = str(file.parent / table["dst"]) if "dst" in table else None
    return Job(str(file.parent / table["src"]), dst, table.get("to"), Words(**words))  # type: ignore[typeddict-item]

"""Strict JSON (RFC 8259): what Python's reader accepts beyond it, or resolves silently, is refused.

That is: a key twice in one object (the last one would win; safetensors 0.8 accepts it), NaN and Infinity, endless numbers,
lone surrogates, and bytes that are not UTF-8. The number of values is checked before any of them is built.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from chkpt_channels.core.errors import Location, printable
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import pattern

LONGEST_INTEGER_DIGITS = 20
"""-2^63 and 2^64 - 1 have as many. Python's own integers have any length, and reading them takes quadratic time."""
_LONG_INTEGER = pattern(rb"[0-9]{20}")
_SURROGATE = pattern(rb"\\u[dD][89a-fA-F]")


def loads(raw: bytes, location: Location, base: int | None = None, most: int | None = None) -> Any:
    """The document of at most so many values. Raises DamagedError about `location`; `base` is the document's offset in the file,
    None if it has none."""
    check_count(raw, location, base, most)

    def pairs(pair_list: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pair_list)
        if len(entries) != len(pair_list):
            twice = Counter(name for name, _ in pair_list).most_common(1)[0][0]
            raise location.damaged(f"the key {printable(twice)!r} occurs twice in its JSON", at=base)
        return entries

    def refuse(text: str) -> NoReturn:
        raise location.damaged(f"holds {text[:40]}, which is not a JSON number", at=base)

    def integer(text: str) -> int:
        return int(text) if len(text) <= LONGEST_INTEGER_DIGITS else refuse(text)

    def number(text: str) -> float:
        value = float(text)
        return value if abs(value) != float("inf") else refuse(text)

    count = integer if _LONG_INTEGER.search(raw) else None  # a call for every number takes long
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse, parse_int=count, parse_float=number)
    except UnicodeDecodeError as error:
        raise location.damaged("is not UTF-8", at=_at(base, error.start)) from error
    except json.JSONDecodeError as error:
        where = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        raise location.damaged(f"is not JSON: {error.msg.lower()}", at=_at(base, where)) from error
    except RecursionError:
        raise location.damaged("its JSON is nested too deeply", at=base) from None
    if _SURROGATE.search(raw):
        _check_surrogates(value, location, base)
    return value


def check_count(raw: bytes, location: Location, base: int | None = None, most: int | None = None) -> None:
    """Raise DamagedError for a document of more values."""
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    location.check_limit("values in its JSON", values, most or LIMITS.json_values, at=base)


def document(
    raw: bytes, location: Location, base: int | None = None, most: int | None = None, deepest: int = LIMITS.json_depth
) -> Any:
    """The same, for a document of any format: its depth is checked too."""
    value = loads(raw, location, base, most)
    _check_depth(value, location, base, deepest)
    return value


def _at(base: int | None, offset: int) -> int | None:
    return None if base is None else base + offset


def _check_depth(value: Any, location: Location, base: int | None, deepest: int) -> None:
    """Raise DamagedError for a document that is nested too deeply. Python's own limit depends on how deep the call stack is: what
    could be read there might not be written elsewhere."""
    level, depth = [value], 0
    while level := [outer for outer in level if isinstance(outer, dict | list)]:
        depth += 1
        location.check_limit("levels in its JSON", depth, deepest, at=base)
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]


def _check_surrogates(value: Any, location: Location, base: int | None) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        lone = error.object[error.start]
        raise location.damaged(f"holds the lone surrogate \\u{ord(lone):x}, which no text may hold", at=base) from error

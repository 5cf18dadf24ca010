"""JSON that is edited in place: every value knows the characters that encode it, and all others stay as they are.

Source: RFC 8259. What is not strictly that is refused (`reader`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from chkpt_channels.containers.json.reader import document
from chkpt_channels.core.errors import Location
from chkpt_channels.core.gc_pause import gc_paused
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.storage.splice import spliced

Path = tuple[str | int, ...]

_TOKEN = pattern(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|[^\s\[\]{}:,"]+')
"""A text, a bracket, or a number or word: between these strict JSON has nothing but commas, colons and spaces."""
_SPACE = " \t\n\r"


class Value(NamedTuple):
    """A scalar, or the children of an object or a list by key or index, and the characters [start, stop) that encode it."""

    value: Any
    start: int
    stop: int
    keys: Mapping[str, tuple[int, int]] = {}

    @property
    def text(self) -> str:
        """The value where it is a text, "" where it is not: what tables are asked for."""
        return self.value if isinstance(self.value, str) else ""

    @property
    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: child.plain for key, child in self.value.items()}
        return [child.plain for child in self.value] if isinstance(self.value, list) else self.value


class Json:
    """A document; `plain` is it without its places. Raises DamagedError for what is no strict JSON."""

    @gc_paused()
    def __init__(self, raw: bytes, location: Location) -> None:
        self.plain = document(raw, location, 0, LIMITS.sidecar_values, LIMITS.sidecar_depth)
        self.location, self.text = location, raw.decode("utf-8")
        tokens = _TOKEN.finditer(self.text)
        self.root = _read(next(tokens), tokens)

    @cached_property
    def values(self) -> list[tuple[Path, Value]]:
        """Every value with its path, from the outside in."""
        found: list[tuple[Path, Value]] = []
        todo: list[tuple[Path, Value]] = [((), self.root)]
        while todo:
            path, value = todo.pop()
            found.append((path, value))
            if isinstance(value.value, dict | list):
                children = value.value.items() if isinstance(value.value, dict) else enumerate(value.value)
                todo += [((*path, key), child) for key, child in children][::-1]
        return found

    def at(self, path: Path) -> Value:
        """The value where `path` leads. KeyError or IndexError where it leads nowhere."""
        value = self.root
        for step in path:
            value = value.value[step]
        return value

    def edited(self, changes: Mapping[Path, Any]) -> bytes:
        """The text with other values at these paths. A key that its object does not have is added as the last one. Lists keep
        their spacing."""
        edits = []
        for path, value in changes.items():
            parent = self.at(path[:-1]).value if path else {}
            if path and isinstance(parent, dict) and path[-1] not in parent:
                edits.append(self._addition(path, value))
            else:
                old = self.at(path)
                edits.append((old.start, old.stop, self._encoded(value, old)))
        encoded = [(self._byte(start), self._byte(stop), new.encode()) for start, stop, new in edits]
        return spliced(self.text.encode(), encoded)

    def _byte(self, at: int) -> int:
        return at if self.text.isascii() else len(self.text[:at].encode())  # spans count characters, splices bytes

    def _encoded(self, value: Any, old: Value) -> str:
        if not isinstance(value, list) or not isinstance(old.value, list) or not old.value:
            return json.dumps(value, ensure_ascii=self.text.isascii())
        first, last = old.value[0], old.value[-1]
        between = self.text[first.stop : old.value[1].start] if len(old.value) > 1 else ", "
        inside = between.join(json.dumps(item) for item in value)
        return self.text[old.start : first.start] + inside + self.text[last.stop : old.stop]

    def _addition(self, path: Path, value: Any) -> tuple[int, int, str]:
        """A new pair at the end of an object, spaced as the last one is."""
        home = self.at(path[:-1])
        key, new = json.dumps(path[-1]), json.dumps(value)
        if not home.value:
            return home.start + 1, home.start + 1, f"{key}: {new}"
        before, last = list(home.value.items())[-1]
        begin, end = home.keys[before]
        colon = self.text[end : last.start]
        space = self.text[len(self.text[:begin].rstrip(_SPACE)) : begin] or colon.lstrip(_SPACE)[1:]
        return last.stop, last.stop, f",{space}{key}{colon}{new}"


def _read(token: re.Match[str], tokens: Iterator[re.Match[str]]) -> Value:
    """The value that begins with a token, of a document that is known to be strict: nothing is checked again."""
    begin = token.start()
    if token[0] == "[":
        items = []
        while (token := next(tokens))[0] != "]":
            items.append(_read(token, tokens))
        return Value(items, begin, token.end())
    if token[0] == "{":
        children, keys = {}, {}
        while (token := next(tokens))[0] != "}":
            key = _scalar(token[0])
            keys[key] = token.span()
            children[key] = _read(next(tokens), tokens)
        return Value(children, begin, token.end(), keys)
    return Value(_scalar(token[0]), begin, token.end())


def _scalar(text: str) -> Any:
    return text[1:-1] if text[0] == '"' and "\\" not in text else json.loads(text)

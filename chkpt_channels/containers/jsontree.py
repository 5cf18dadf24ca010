"""JSON that is edited in place: every value knows the text that spells it, and all other text stays.

Read strictly: no key twice, no NaN, no lone surrogate, no depth that only an attack needs. Source: RFC 8259.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import Place
from ..limits import LIMITS
from ..splice import spliced

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r'[ \t\n\r]*(?:(?P<text>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")'
    r"|(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<word>true|false|null)|(?P<mark>[\[\]{}:,]))"
)
_SPACE = " \t\n\r"


class Value(NamedTuple):
    """A scalar, or the children of an object or a list by key or index, and the characters [start, stop) that spell it."""

    value: Any
    start: int
    stop: int
    keys: Mapping[str, tuple[int, int]] = {}

    @property
    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: child.plain for key, child in self.value.items()}
        return [child.plain for child in self.value] if isinstance(self.value, list) else self.value


class Json:
    """A document. Raises DamagedError for what is no strict JSON."""

    def __init__(self, raw: bytes, place: Place) -> None:
        self.place = place
        try:
            self.text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise place.damaged("is no UTF-8 text", at=error.start) from None
        self._at = 0
        self.root = self._read(0)
        if self.text[self._at :].strip(_SPACE):
            raise place.damaged("goes on behind its JSON", at=self._at)

    def _next(self) -> re.Match[str]:
        found = _TOKEN.match(self.text, self._at)
        if found is None:
            raise self.place.damaged("is no JSON", at=len(self.text[: self._at].encode()))
        self._at = found.end()
        return found

    def _read(self, depth: int) -> Value:
        token = self._next()
        kind, text = token.lastgroup, token[token.lastgroup or 0]
        start = token.end() - len(text)
        if kind == "text":
            return Value(self._text(text), start, self._at)
        if kind == "number":
            if len(text) > LIMITS.json_digits:
                raise self.place.damaged(f"holds a number of {len(text)} digits", at=start)
            return Value(json.loads(text), start, self._at)
        if kind == "word":
            return Value({"true": True, "false": False, "null": None}[text], start, self._at)
        if depth > LIMITS.json_depth:
            raise self.place.damaged(f"is nested more than {LIMITS.json_depth} levels deep", at=start)
        if text == "[":
            return Value(list(self._items(depth)), start, self._at)
        if text == "{":
            pairs = list(self._pairs(depth))
            keys = {key: span for key, span, _ in pairs}
            if len(keys) != len(pairs):
                twice = next(key for i, (key, _, _) in enumerate(pairs) if any(key == k for k, _, _ in pairs[:i]))
                raise self.place.inside(twice).damaged("stands twice in one object", at=start)
            return Value({key: value for key, _, value in pairs}, start, self._at, keys)
        raise self.place.damaged(f"holds {text!r} where a value should stand", at=start)

    def _items(self, depth: int) -> Iterator[Value]:
        if self._ends("]"):
            return
        while True:
            yield self._read(depth + 1)
            if self._mark("]"):
                return

    def _pairs(self, depth: int) -> Iterator[tuple[str, tuple[int, int], Value]]:
        if self._ends("}"):
            return
        while True:
            token = self._next()
            if token.lastgroup != "text":
                raise self.place.damaged("holds a key that is no text", at=token.start())
            span = token.start("text"), token.end()
            if self._next()["mark"] != ":":
                raise self.place.damaged("holds a key without a value", at=token.start())
            yield self._text(token["text"]), span, self._read(depth + 1)
            if self._mark("}"):
                return

    def _ends(self, closing: str) -> bool:
        found = _TOKEN.match(self.text, self._at)
        if found is not None and found["mark"] == closing:
            self._at = found.end()
            return True
        return False

    def _mark(self, closing: str) -> bool:
        """Whether the object or the list ends here; otherwise a comma follows."""
        token = self._next()
        if token["mark"] not in (closing, ","):
            raise self.place.damaged(f"misses a {closing!r} or a comma", at=token.start())
        return token["mark"] == closing

    def _text(self, token: str) -> str:
        text: str = json.loads(token)
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise self.place.damaged("holds half of a surrogate pair, which is no text", at=self._at)
        return text

    def walk(self) -> Iterator[tuple[Path, Value]]:
        """Every value with its path, from the outside in."""
        todo: list[tuple[Path, Value]] = [((), self.root)]
        while todo:
            path, value = todo.pop()
            yield path, value
            if isinstance(value.value, dict | list):
                children = value.value.items() if isinstance(value.value, dict) else enumerate(value.value)
                todo += [((*path, key), child) for key, child in children][::-1]

    def at(self, path: Path) -> Value:
        """The value where `path` leads. KeyError or IndexError where it leads nowhere."""
        found = self.root
        for step in path:
            found = found.value[step]
        return found

    def edited(self, changes: Mapping[Path, Any]) -> bytes:
        """The text with other values at these paths. A path may lead to a key that its object has not got: it is added behind
        the others. Lists are spelled as they were, item by item."""
        edits = []
        for path, value in changes.items():
            parent = self.at(path[:-1]).value if path else {}
            if path and isinstance(parent, dict) and path[-1] not in parent:
                edits.append(self._addition(path, value))
            else:
                old = self.at(path)
                edits.append((old.start, old.stop, self._spelled(value, old)))
        encoded = [(self._byte(start), self._byte(stop), new.encode()) for start, stop, new in edits]
        return spliced(self.text.encode(), encoded)

    def _byte(self, at: int) -> int:
        return at if self.text.isascii() else len(self.text[:at].encode())

    def _spelled(self, value: Any, old: Value) -> str:
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

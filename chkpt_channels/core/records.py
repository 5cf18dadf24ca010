"""Named tuples and patterns that cost little to define: a command defines some 100 and 80 of them, and then uses few.

`typing.NamedTuple` compiles each annotation of each field, 0.3 ms a class; `re.compile` takes as long for one pattern.
"""

from __future__ import annotations

import re
from collections import namedtuple
from typing import TYPE_CHECKING, Any, AnyStr, cast

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Definition(type):
        """Makes a class of `class Name(NamedTuple)`: what `typing.NamedTuple` makes, its annotations unread."""

        def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, namespace)
            types = namespace["__annotations__"]
            defaults = [namespace[field] for field in types if field in namespace]
            made = namedtuple(name, types, defaults=defaults, module=namespace["__module__"])
            for key, value in namespace.items():
                if key not in types:
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Definition):
        """`typing.NamedTuple`, for classes whose bases are this one alone."""


def pattern(source: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """`re.compile` at the first use of what it returns."""
    return cast("re.Pattern[AnyStr]", _Pattern(source, flags))


class _Pattern:
    """A pattern that is compiled when the first of its attributes is asked for; `_WAYS` are its own from then on."""

    def __init__(self, source: str | bytes, flags: int) -> None:
        self._source, self._flags = source, flags

    def __getattr__(self, name: str) -> Any:
        compiled = re.compile(self._source, self._flags)
        self.__dict__.update({way: getattr(compiled, way) for way in _WAYS})
        return getattr(compiled, name)


_WAYS = ("match", "fullmatch", "search", "finditer", "findall", "split", "sub")

"""Modules that are imported when something of theirs is first used.

Detecting a format asks every format whether a file is its own; only the one that says yes needs the rest of its code.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import resolve_name
from types import ModuleType
from typing import Any


class _Waiting(ModuleType):
    """Stands for a module, and asks it for everything.

    Not importlib's LazyLoader: that puts a module which runs when it is asked for its `__spec__` where every import statement
    asks for it, and the interpreter throws away what is raised then: Ctrl-C, or that memory is short.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def module(name: str, package: str) -> ModuleType:
    """The module `name` (relative to `package`), not yet imported unless somebody has."""
    return _Waiting(resolve_name(name, package))

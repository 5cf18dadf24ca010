"""Modules that are executed when something of theirs is first used.

Detecting a format asks every format whether a file is its own; only the one that says yes needs the rest of its code.
"""

from __future__ import annotations

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec, resolve_name
from types import ModuleType


def module(name: str, package: str) -> ModuleType:
    """The module `name` (relative to `package`), not yet executed unless somebody has."""
    full = resolve_name(name, package)
    if full in sys.modules:
        return sys.modules[full]
    spec = find_spec(full)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module named {full}")
    spec.loader = LazyLoader(spec.loader)
    made = module_from_spec(spec)
    sys.modules[full] = made
    spec.loader.exec_module(made)
    return made

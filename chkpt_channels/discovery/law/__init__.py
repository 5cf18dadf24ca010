"""The search by names and shapes. Its modules are imported when they are asked for: where a graph decides, none is."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chkpt_channels.discovery.law import after, copies, places, search

    __all__ = ["after", "copies", "places", "search"]


def __getattr__(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"no module {name} in {__name__}") from None

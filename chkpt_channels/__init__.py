"""Change the input channels of a trained checkpoint, without the framework that wrote it.

from chkpt_channels import convert, inspect, verify

convert("resnet50.pth", "resnet50_gray.pth", to="gray")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checking import check
    from .errors import (
        AmbiguousError,
        Candidate,
        ChkptChannelsError,
        DamagedError,
        LateProblem,
        OutputExistsError,
        SystemProblem,
        UnknownFormatError,
        UnsupportedError,
        UsageError,
    )
    from .flow import convert, inspect
    from .inmemory import convert_state_dict
    from .model import Declaration, FirstConv, Notice, Tensor
    from .plotting import plot
    from .report import Check, Inspection, Report, Verification
    from .verification import verify

__version__ = "0.1.0"

__all__ = [
    "AmbiguousError",
    "Candidate",
    "Check",
    "ChkptChannelsError",
    "DamagedError",
    "Declaration",
    "FirstConv",
    "Inspection",
    "LateProblem",
    "Notice",
    "OutputExistsError",
    "Report",
    "SystemProblem",
    "Tensor",
    "UnknownFormatError",
    "UnsupportedError",
    "UsageError",
    "Verification",
    "check",
    "convert",
    "convert_state_dict",
    "inspect",
    "plot",
    "verify",
]

# no module has the name of a public function: importing a submodule would put it in the function's place
_HOMES = {"convert": "flow", "inspect": "flow", "verify": "verification", "check": "checking"}
_HOMES |= {"convert_state_dict": "inmemory", "plot": "plotting"}
_HOMES |= dict.fromkeys(("Declaration", "FirstConv", "Notice", "Tensor"), "model")
_HOMES |= dict.fromkeys(("Check", "Inspection", "Report", "Verification"), "report")


def __getattr__(name: str) -> object:
    """Public names are loaded when they are first used: `chkpt-channels --help` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value

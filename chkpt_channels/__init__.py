"""Change the input channels of a trained checkpoint, without the framework that wrote it.

from chkpt_channels import convert, inspect, verify

convert("resnet50.pth", "resnet50_gray.pth", to="gray")
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chkpt_channels.api import fleet
    from chkpt_channels.api.check import check
    from chkpt_channels.api.convert import convert
    from chkpt_channels.api.inspect import inspect
    from chkpt_channels.api.output.patch import Patch, patch
    from chkpt_channels.api.plot import plot
    from chkpt_channels.api.report import Check, Inspection, Report, Verification
    from chkpt_channels.api.state_dict import convert_state_dict
    from chkpt_channels.api.verify import verify
    from chkpt_channels.core.errors import (
        AmbiguousError,
        Candidate,
        ChkptChannelsError,
        DamagedError,
        FileSystemError,
        OutputExistsError,
        PostPublishError,
        UnknownFormatError,
        UnsupportedError,
        UsageError,
    )
    from chkpt_channels.core.tensors import Declaration, FirstConv, Notice, Tensor

if sys.platform == "win32":  # files are locked, published and isolated by what POSIX has
    raise ImportError("chkpt-channels runs on Linux and macOS; on Windows install it inside WSL, which `wsl --install` sets up")

__version__ = "0.1.0"

__all__ = [
    "AmbiguousError",
    "Candidate",
    "Check",
    "ChkptChannelsError",
    "DamagedError",
    "Declaration",
    "FileSystemError",
    "FirstConv",
    "Inspection",
    "Notice",
    "OutputExistsError",
    "Patch",
    "PostPublishError",
    "Report",
    "Tensor",
    "UnknownFormatError",
    "UnsupportedError",
    "UsageError",
    "Verification",
    "check",
    "convert",
    "convert_state_dict",
    "fleet",
    "inspect",
    "patch",
    "plot",
    "verify",
]

# no module has the name of a public function: importing a submodule would put it in the function's place
_HOMES = {"convert": "api.convert", "inspect": "api.inspect", "verify": "api.verify", "check": "api.check"}
_HOMES |= {"convert_state_dict": "api.state_dict", "plot": "api.plot", "fleet": "api.fleet"}
_HOMES |= dict.fromkeys(("Patch", "patch"), "api.output.patch")
_HOMES |= dict.fromkeys(("Declaration", "FirstConv", "Notice", "Tensor"), "core.tensors")
_HOMES |= dict.fromkeys(("Check", "Inspection", "Report", "Verification"), "api.report")


def __getattr__(name: str) -> object:
    """Public names are loaded when they are first used: `chkpt-channels --help` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'core.errors')}")
    value = home if name == "fleet" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What completion offers: the public names, whichever modules are loaded."""
    return [*__all__, "__version__"]

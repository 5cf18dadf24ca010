"""Change the input channels of a trained checkpoint, without the framework that wrote it.

    from chkpt_channels import convert, inspect, verify

    convert("resnet50.pth", "resnet50_gray.pth", to="gray")
"""

from __future__ import annotations

from .convert import convert, inspect
from .errors import (
    AmbiguousError,
    Candidate,
    ChkptChannelsError,
    DamagedError,
    OutputExistsError,
    SystemProblem,
    UnknownFormatError,
    UnsupportedError,
    UsageError,
)
from .model import Declaration, FirstConv, Notice, Tensor
from .report import Inspection, Report, Verification
from .verify import verify

__version__ = "0.1.0"

__all__ = [
    "AmbiguousError",
    "Candidate",
    "ChkptChannelsError",
    "DamagedError",
    "Declaration",
    "FirstConv",
    "Inspection",
    "Notice",
    "OutputExistsError",
    "Report",
    "SystemProblem",
    "Tensor",
    "UnknownFormatError",
    "UnsupportedError",
    "UsageError",
    "Verification",
    "convert",
    "inspect",
    "verify",
]

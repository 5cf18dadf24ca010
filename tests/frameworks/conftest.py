"""Tests against real frameworks, in an environment of their own: torch, transformers and safetensors are the judges.

Run with `python -m pytest tests/frameworks`; `-m "not slow"` leaves out the files beyond 4 GiB.
"""

import importlib

import pytest
import torch


def _torchvision():
    """torchvision, which timm and others import where it is installed. Its compiled operators fit one build of torch: where they
    do not load, those that it describes to torch on import are declared, and never called."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return None
    except RuntimeError:
        declared = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
        return declared
    return None


TORCHVISION = _torchvision()


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes tens of seconds and gigabytes of disk; runs unless deselected")
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:Detected pickle protocol:UserWarning")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)

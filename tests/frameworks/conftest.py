"""Tests against real frameworks, in an environment of their own: torch, transformers and safetensors are the judges.

Run with `python -m pytest tests/frameworks`; `-m "not slow"` leaves out the files beyond 4 GiB.
"""

import pytest
import torch

from fixtures.catalogue.libraries import torchvision_operators

TORCHVISION = torchvision_operators()


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes tens of seconds and gigabytes of disk; runs unless deselected")
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:Detected pickle protocol:UserWarning")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)

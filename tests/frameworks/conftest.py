"""Tests against real frameworks, in an environment of their own: torch, transformers and safetensors are the judges.

Run with `python -m pytest tests/frameworks`; `-m "not slow"` leaves out the files beyond 4 GiB.
"""

import pytest
import torch

from fixtures.catalogue.libraries import torchvision_operators

TORCHVISION = torchvision_operators()
LONG = [
    "keras", "differential", "medical", "pre_commit", "hostile_reload", "sharing", "bytes", "fold_adapter", "known_networks",
    "dask", "random_graphs", "networks", "random_keras", "big",
]  # fmt: skip
"""The files that take a minute or more: they begin first, or one processor waits at the end for a file that is on the other."""


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes tens of seconds and gigabytes of disk; runs unless deselected")
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:Detected pickle protocol:UserWarning")


def pytest_collection_modifyitems(items):
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)

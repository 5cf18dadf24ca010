"""Tests against real frameworks, in an environment of their own: torch, transformers and safetensors are the judges.

    python -m pytest tests/frameworks
"""

import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
sys.path.insert(0, str(FIXTURES))  # the small networks and training checkpoints that the fixtures are made of

import torch  # noqa: E402  after sys.path, as everything that needs it


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes tens of seconds and gigabytes of disk; runs unless deselected")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)

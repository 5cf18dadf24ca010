"""The limits that files are held to: what real checkpoints need is below each."""

from __future__ import annotations

import sys

import pytest

from chkpt_channels.core.limits import LIMITS


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("pickle_opcodes", 1_000_000),  # some 20 a tensor, of the 50,000 that the largest models have
        ("zip_members", 100_000),
        ("header_bytes", 100_000_000),  # what safetensors itself reads
        ("axes", 64),  # what torch and numpy can make
        ("edited_tensor_bytes", 64 * 4096 * 14 * 14 * 4),
    ],
)
def test_real_files_are_below(name: str, needed: int):
    assert getattr(LIMITS, name) >= needed


def test_no_document_is_nested_deeper_than_python_recurses():
    """json reads and writes by recursion, from wherever on the stack it is called."""
    assert LIMITS.json_depth < sys.getrecursionlimit() - 200

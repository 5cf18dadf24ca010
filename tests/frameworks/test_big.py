"""Beyond 4 GiB, where zip headers hold their own offsets and descriptors grow."""

import shutil

import pytest
import torch

from chkpt_channels import convert
from tests.frameworks.oracle import ZIP, become_, mixed

NEEDED = 20 << 30
CHUNK = 16 << 20


def differs_at(a, b):
    """The first chunk in which two files differ, None if there is none."""
    with a.open("rb") as first, b.open("rb") as second:
        for number in range(max(a.stat().st_size, b.stat().st_size) // CHUNK + 1):
            if first.read(CHUNK) != second.read(CHUNK):
                return number
    return None


@pytest.mark.slow
@pytest.mark.parametrize("to", [1, 4])
def test_more_than_4_gib_equal_torch_save_of_the_converted_object(tmp_path, to):
    if shutil.disk_usage(tmp_path).free < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of free disk for files beyond 4 GiB")
    state = {
        "conv1.weight": torch.randn(64, 3, 7, 7),
        "big": torch.zeros(2**30 + 5),
        "after": torch.randn(1000),
        "end": torch.ones(3),
    }
    try:
        original = ZIP.save(state, tmp_path / "before" / "net.pth")
        convert(original, tmp_path / "net.pth", to)
        original.unlink()
        become_(state["conv1.weight"], mixed(state["conv1.weight"], to))
        expected = ZIP.save(state, tmp_path / "expected" / "net.pth")
        assert differs_at(tmp_path / "net.pth", expected) is None
    finally:
        for path in tmp_path.rglob("net.pth"):
            path.unlink()

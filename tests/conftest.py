"""The profile of the property tests, and the fixtures that several files use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chkpt_channels.source import Source

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # the tests in frameworks/ share this file, and their environment has none
    pass
else:
    # the same examples on every machine, however slow it is
    ignored = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=ignored)
    settings.load_profile("steady")


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write bytes to a file in the test's own folder."""

    def write(data: bytes, name: str = "a.pth") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def source(put: Callable[..., Path]) -> Iterator[Callable[..., Source]]:
    """Bytes as an open Source."""
    opened: list[Source] = []

    def open_(data: bytes, name: str = "a.bin") -> Source:
        opened.append(Source(put(data, name), name))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()

"""What several test files share: the fixtures' truths, open checkpoints, and a look at a folder before and after."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chkpt_channels.formats import detect
from chkpt_channels.model import Checkpoint
from chkpt_channels.source import Source
from hypothesis import HealthCheck, settings

# without a deadline and derandomised: the same examples on every machine, however slow it is
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("steady")

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


@dataclass(frozen=True)
class Truth:
    """One fixture file, and what its expected.json says about it."""

    path: Path
    said: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"


def truths() -> list[Truth]:
    """Every file that an expected.json names."""
    return [
        Truth(listing.parent / name, said)
        for listing in sorted(FIXTURES.glob("*/expected.json"))
        for name, said in json.loads(listing.read_text()).items()
    ]


@contextmanager
def opened(path: Path) -> Iterator[Checkpoint]:
    """The checkpoint in a file, by the one format that claims it."""
    with Source(path) as source:
        yield detect(source)(source)


def contents(path: Path) -> dict[str, bytes]:
    """Every tensor's elements in C order."""
    with opened(path) as checkpoint:
        return {name: b"".join(checkpoint.chunks(name)) for name in checkpoint.tensors}


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Each entry of a folder: its mode, and a hash of its content or its target."""
    return {entry.name: (entry.lstat().st_mode, _digest(entry)) for entry in folder.iterdir()}


def _digest(entry: Path) -> str:
    if entry.is_symlink():
        return str(entry.readlink())
    return hashlib.sha256(entry.read_bytes()).hexdigest() if entry.is_file() else ""


def fail_at(k: int, failure: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, whose k-th call (from 0) is `failure` instead; `.calls` counts."""

    def call(*args: Any, **kwargs: Any) -> Any:
        call.calls += 1
        return (failure if call.calls == k + 1 else real)(*args, **kwargs)

    call.calls = 0
    return call


def raising(number: int) -> Callable[..., Any]:
    """A system call that fails with this errno."""

    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


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
    opened_: list[Source] = []

    def open_(data: bytes, name: str = "a.bin") -> Source:
        opened_.append(Source(put(data, name), name))
        return opened_[-1]

    yield open_
    for one in opened_:
        one.close()

"""What several test files need: the fixtures' truths, a look into a file or a folder, and faults on demand."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chkpt_channels.api.convert import convert
from chkpt_channels.core.tensors import Edits, TensorEdit
from chkpt_channels.formats import open_checkpoint
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import spliced

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


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


def smallest(form: str) -> Path:
    """The smallest fixture of a format that can be converted to one channel: what is tried thousands of times."""
    paths = [truth.path for truth in truths() if truth.path.parent.name == form and truth.said["in_channels"] == 3]
    return min(paths, key=lambda path: path.stat().st_size)


def brought(form: str, module: str, name: str) -> Any:
    """What a format brings to a table of the tests: `name` of the module tests/formats/<format>/<module>.py."""
    return getattr(importlib.import_module(f"tests.formats.{form}.{module}"), name)


@contextmanager
def opened(path: Path) -> Iterator[Checkpoint]:
    """The checkpoint in a file, by the one format that claims it."""
    with Source(path) as source:
        yield open_checkpoint(source)


def contents(path: Path) -> dict[str, bytes]:
    """Every tensor's elements in C order."""
    with opened(path) as checkpoint:
        return {name: b"".join(checkpoint.chunks(name)) for name in checkpoint.tensors}


def there_and_back(path: Path, out: Path, to: int) -> bytes:
    """The file converted to `to` channels, and then given its old kernels, moments and declarations back, bit for bit."""
    report = convert(path, out, to=to)
    with opened(path) as before, opened(out) as after:
        values = {name: before.load(name) for name in report.changed}
        tensors = {name: TensorEdit(old.shape, lambda old=old: old) for name, old in values.items()}
        numbers = {d.where: d.before for d in report.declarations}
        convs = [k.conv._replace(tensor=after.tensors[k.conv.tensor.name], in_channels=to) for k in report.kernels]
        assert {d.where for d in after.graph.declarations(convs)} == numbers.keys()
        edits = Edits(tensors, numbers)
        return spliced(out.read_bytes(), [(s.start, s.stop, s.data()) for s in after.splices(edits)])


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done here takes no more processor time than this, however busy the machine is."""
    began = time.process_time()
    yield
    assert time.process_time() - began < seconds


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Each entry of a folder: its mode, and a hash of its content or its target."""
    return {entry.name: (entry.lstat().st_mode, _digest(entry)) for entry in folder.iterdir()}


def _digest(entry: Path) -> str:
    if entry.is_symlink():
        return str(entry.readlink())
    return hashlib.sha256(entry.read_bytes()).hexdigest() if entry.is_file() else ""


class Failing:
    """A function that stands in for another and fails at its k-th call (from 0), or only counts the calls."""

    def __init__(self, real: Callable[..., Any], k: int | None = None, failure: Callable[..., Any] | int = 0) -> None:
        self.real, self.k, self.failure, self.calls = real, k, failure, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls - 1 != self.k:
            return self.real(*args, **kwargs)
        if isinstance(self.failure, int):
            raise OSError(self.failure, os.strerror(self.failure))
        return self.failure(*args, **kwargs)

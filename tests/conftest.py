"""The profile of the property tests, and the fixtures that several files use."""

from __future__ import annotations

import gc
import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import chkpt_channels
from chkpt_channels.storage import isolation
from chkpt_channels.storage.source import Source

KINDS = ("unexpected exit", "traceback", "hang", "leftover", "changed input", "marker", "memory", "mode", "message")
"""How a row of test_hostile.py can break a promise: what each problem begins with."""

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # the tests in frameworks/ share this file, and their environment has none
    pass
else:
    # the same examples on every machine, however slow it is
    ignored = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=ignored)
    settings.load_profile("steady")
    # hypothesis also draws on the constants of the modules that are loaded: let these be the same in every run
    for module in pkgutil.walk_packages(chkpt_channels.__path__, "chkpt_channels."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """The collector and forks leave the 14,000 tests of a whole run alone: half a GB."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of hostile files: rows tried and passed per format, and how often each promise was broken."""
    rows = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "hostile" and report.when == "call"
    ]
    if not rows:
        return
    tried, passed = (Counter(form for form, found in rows if all_ or not found) for all_ in (True, False))
    broken = Counter(problem.partition(":")[0] for _, found in rows for problem in found)
    terminalreporter.section("hostile files")
    for form in sorted(tried):
        terminalreporter.write_line(f"{form:14} {tried[form]:4} tried {passed[form]:4} passed")
    terminalreporter.write_line(f"{'all':14} {len(rows):4} tried {passed.total():4} passed")
    terminalreporter.write_line(", ".join(f"{broken[kind]} {kind}" for kind in KINDS))


@pytest.fixture
def unforked(monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 files are read in the tests' own process, of which a fork takes longer than a conversion. That forks say the same
    test_contract.py asks of every fixture, where it inspects, dry-runs and cuts it."""
    monkeypatch.setattr(isolation, "may_fork", lambda: False)


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

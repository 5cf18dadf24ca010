"""Whole processes side by side: they run in turn, A B A B …, and what counts is the ratio of two neighbors.

This module imports nothing large: a child's peak memory counts what its parent held when it forked.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.lowest import ROOT

OURS = [sys.executable, "-m", "chkpt_channels"]
TINY = ROOT / "fixtures" / "safetensors" / "model.safetensors"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Installed code is compiled."""


class Figure(NamedTuple):
    """What one process took: seconds of the clock, seconds of the processor, MiB at the peak; and how it ended."""

    wall: float
    processor: float
    peak: float
    code: int


def run(command: Sequence[str], codes: Sequence[int] = (0,)) -> Figure:
    """One process, which must end in one of `codes`."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in codes:
        raise SystemExit(f"{command} ended in {child.returncode}")
    return Figure(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, child.returncode)


def in_turn(ways: Mapping[str, Sequence[str]], output: Path, runs: int) -> dict[str, list[Figure]]:
    """So many runs of each, in turn, each writing `output` anew. One more goes before, to warm up. What one has left to the disk,
    to write or to discard, is done before the next begins: it would wait for it where it syncs."""
    figures: dict[str, list[Figure]] = {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, command in ways.items():
            output.unlink(missing_ok=True)
            os.sync()
            figures[name].append(run(command))
    output.unlink(missing_ok=True)
    return {name: taken[1:] for name, taken in figures.items()}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The median between the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return low, middle, high


def load() -> str:
    """How busy the machine is: a figure is worth what this allows."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


def pair(name: str, ours: Sequence[str], theirs: Sequence[str], output: Path, runs: int, wanted: str) -> None:
    """One row: ours against theirs."""
    mine, other = in_turn({"ours": ours, "theirs": theirs}, output, runs).values()
    low, middle, high = quartiles([a.wall / b.wall for a, b in zip(mine, other, strict=True)])
    seconds = (statistics.median(figure.wall for figure in figures) for figures in (mine, other))
    print(
        f"{name:44}  ratio {middle:5.2f} (quartiles {low:.2f} to {high:.2f} of {runs} pairs; wanted {wanted})   "
        + "ours {:6.2f} s, theirs {:6.2f} s".format(*seconds)
        + f"   peak {max(m.peak for m in mine):4.0f} MiB against {max(o.peak for o in other):.0f}   {load()}",
        flush=True,
    )

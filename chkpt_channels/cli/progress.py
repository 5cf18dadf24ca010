"""The progress bar: rich, and only once a second has passed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

DELAY_SECONDS = 1.0
"""Shorter work shows no bar: it would only flicker, and rich has to be imported for it."""


class Bar:
    """Shows how many of `total` bytes are done; imports nothing before there is something to show."""

    def __init__(self) -> None:
        self._began, self._done = time.monotonic(), 0
        self._shown: Progress | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._shown.stop()

    def update(self, count: int, total: int) -> None:
        """`count` more bytes are done."""
        self._done += count
        if self._shown is None:
            if time.monotonic() - self._began < DELAY_SECONDS:
                return
            self._shown = self._start(total)
        self._shown.update(self._shown.task_ids[0], completed=self._done)

    def _start(self, total: int) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        bar.add_task("", total=total)
        bar.start()
        return bar

"""An object of a store as a source: what was fetched is kept in a sparse, unnamed file, each byte in its own place.

Memory does not grow with the object. A read that nobody announced fetches more than it needs, twice as much each time where reads
go forward; an object of moderate size that is read here and there is fetched whole, since round trips take longer than bytes.
"""

from __future__ import annotations

import bisect
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chkpt_channels.core.errors import Location
from chkpt_channels.core.interrupts import left_to_main_thread
from chkpt_channels.storage.source import RangeSource
from chkpt_channels.storage.stores import hub
from chkpt_channels.storage.stores.address import parsed
from chkpt_channels.storage.stores.connection import Connection, Pin
from chkpt_channels.storage.stream_copy import write_at
from chkpt_channels.storage.threads import submit
from chkpt_channels.storage.urls import shown

FIRST_BYTES = 256 << 10
"""Of the first request: the header of nearly every safetensors file, and the pickle of nearly every PyTorch file, are in it."""
LEAST_BYTES, MOST_BYTES = 64 << 10, 4 << 20
"""Of a request that nobody announced. Announced ones have the length that is needed."""
DIRECT_BYTES = 1 << 20
"""Reads from this size on are payload: they are not kept."""
NEAR_BYTES = 32 << 10
"""Between two announced ranges: nearer ones are fetched by one request."""
WHOLE_BYTES = 128 << 20
"""Up to this size an object is fetched whole once MOST_JUMPS requests were not announced. 50 round trips take as long as this
many bytes at 30 ms and 80 MB a second; HDF5 and ONNX files of 100 MB would need 50 to 180."""
MOST_JUMPS = 3
SIDE_BY_SIDE = 16


def version_of(url: str) -> str:
    """What tells the versions of an object apart: size and entity tag, of a file on the hub its address in a commit. Raises
    FileSystemError."""
    address, location = parsed(url), Location(shown(url))
    if address.scheme == "hf":
        return hub.resolved(address, location)[0]
    pin, _ = Connection(address, location).first(1)
    return f"{pin.size} {pin.tag}"


class Spans:
    """Which bytes of a file are there: disjoint spans in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that are not there."""
        gaps = []
        index = max(bisect.bisect_right(self._starts, start) - 1, 0)
        for known_start, known_stop in zip(self._starts[index:], self._stops[index:], strict=True):
            if known_start >= stop:
                break
            if start < known_start:
                gaps.append((start, known_start))
            start = max(start, known_stop)
        if start < stop:
            gaps.append((start, stop))
        return gaps

    def add(self, start: int, stop: int) -> None:
        """Bytes that are there now."""
        first = bisect.bisect_left(self._stops, start)
        last = bisect.bisect_right(self._starts, stop)
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last], self._stops[first:last] = [start], [stop]


class RemoteSource(RangeSource):
    """An object of a store, in the version `pin` that the first request saw; `connection` counts the requests. Raises as Source
    does; FileSystemError too where its server fails, or the object is another one than at the first request."""

    is_remote = True

    def __init__(
        self,
        url: str,
        first: tuple[Pin, bytes] | None = None,
        *,
        name: str = "",
        first_bytes: int = FIRST_BYTES,
        place: Path | None = None,
    ) -> None:
        """`first` is what the first request of another one gave, else it is for `first_bytes`; messages call it `name`. `place`
        is where a mirror of its folder has it: otherwise it is alone."""
        self.is_alone, self._place = place is None, place
        self.name, self.made_here, self.fd = shown(name or url), False, -1
        self.location = Location(self.name)
        self.address = parsed(url)
        self.connection = Connection(self.address, self.location)
        self._ask: Callable[[int, int], tuple[int, int]] = self._fetch_around
        self._spans, self._lock = Spans(), threading.Lock()
        self._jumps, self._length, self._last = 0, LEAST_BYTES, 0
        self.first = first or self.connection.first(first_bytes)
        self.pin, head = self.first
        self.size = self.pin.size
        with self.location.wrapping_os_errors("cannot be buffered in a temporary file"):
            self._kept_bytes = tempfile.TemporaryFile()  # noqa: SIM115 # closed by close
        self._write(0, head)
        self._spans.add(0, len(head))

    @property
    def folder(self) -> Path:
        """In the mirror."""
        return self._place.parent if self._place else super().folder

    def close(self) -> None:
        """Give the temporary file back."""
        super().close()
        self._kept_bytes.close()

    def _read_some(self, buffer: memoryview, start: int) -> int:
        stop = start + len(buffer)
        with self._lock:
            missing = self._spans.missing(start, stop)
            if missing and len(buffer) < DIRECT_BYTES:
                while missing:
                    self._spans.add(*self._ask(*missing[0]))
                    missing = self._spans.missing(start, stop)
        if missing:
            at = 0
            for piece in self.connection.pieces(start, stop, self.pin):
                buffer[at : at + len(piece)] = piece
                at += len(piece)
            return at
        with self.location.wrapping_os_errors("its temporary file cannot be read"):
            return os.preadv(self._kept_bytes.fileno(), [buffer], start)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges that will be read, side by side."""
        near: list[tuple[int, int]] = []
        for start, stop in sorted(ranges):
            for gap_start, gap_stop in self._spans.missing(max(start, 0), min(stop, self.size)):
                if near and gap_start - near[-1][1] <= NEAR_BYTES:
                    near[-1] = (near[-1][0], max(near[-1][1], gap_stop))
                else:
                    near.append((gap_start, gap_stop))
        if not near:
            return
        with ThreadPoolExecutor(min(len(near), SIDE_BY_SIDE), initializer=left_to_main_thread) as pool:
            fetched = [submit(pool, self._fetch, *gap) for gap in near]
        for future in fetched:
            self._spans.add(*future.result())

    def read_through(self, ask: Callable[[int, int], tuple[int, int]]) -> None:
        """From now on let `ask` fetch a span, as `fetch` of the process that this one was forked from does: the library that
        reads stores does not work in two."""
        self._ask = ask

    def fetch(self, start: int, stop: int) -> tuple[int, int]:
        """Fetch a span, or one around it, and return which."""
        with self._lock:
            span = self._fetch_around(start, stop)
            self._spans.add(*span)
        return span

    def _fetch_around(self, start: int, stop: int) -> tuple[int, int]:
        """The span, and what is likely to be read next."""
        self._jumps += 1
        if self._jumps > MOST_JUMPS and self.size <= WHOLE_BYTES:
            missing = self._spans.missing(0, self.size)
            return self._fetch(missing[0][0], missing[-1][1])
        is_forward = 0 <= start - self._last <= self._length
        self._length = min(self._length * 2, MOST_BYTES) if is_forward else LEAST_BYTES
        stop = min(max(stop, start + self._length), self.size)
        stop = self._spans.missing(start, stop)[0][1]
        self._last = stop
        return self._fetch(start, stop)

    def _fetch(self, start: int, stop: int) -> tuple[int, int]:
        at = start
        for piece in self.connection.pieces(start, stop, self.pin):
            self._write(at, piece)
            at += len(piece)
        return start, stop

    def _write(self, start: int, data: bytes) -> None:
        with self.location.wrapping_os_errors("cannot be buffered in a temporary file"):
            write_at(self._kept_bytes.fileno(), memoryview(data), start)

"""A copy-on-write view of a span of a source: writes go to pages in memory, which become splices.

A library that edits files in place works on the view; the file itself is copied afterwards, streamed like every other.
"""

from __future__ import annotations

import io

from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice

PAGE_BYTES = 4096
"""libhdf5 changes about 20 bytes of a file and appends the rest: small pages keep little in memory."""


class OverlayFile:
    """Bytes [start, start + size) of `source`, read and written by position.

    `error` is the first read that failed: a library that calls a file object loses the reason, and does not expect a write to
    raise at all.
    """

    def __init__(self, source: Source, start: int = 0, size: int | None = None) -> None:
        self._source, self._start = source, start
        self._old = self.size = source.size - start if size is None else size
        self._at = 0
        self._pages: dict[int, bytearray] = {}
        self.error: BaseException | None = None

    def take_error(self) -> BaseException:
        """`error`, which is forgotten here: its traceback holds frames with this overlay and with handles of the library. libhdf5
        crashes on a handle that is closed after the interpreter has ended."""
        error, self.error = self.error, None
        return error or RuntimeError("nothing has failed")

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of every file."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        """As of every file."""
        return self._at

    def read(self, size: int) -> bytes:
        """As of every file."""
        out = bytearray(max(0, min(size, self.size - self._at)))
        self.readinto(memoryview(out))
        return bytes(out)

    def readinto(self, buffer: memoryview) -> int:
        """Fill all of `buffer`, with zeros after the end."""
        view, at = memoryview(buffer).cast("B"), self._at
        self._at += len(view)
        self._read(view, at)
        if self.error is not None:
            raise self.error
        return len(view)

    def _read(self, view: memoryview, at: int) -> None:
        stored = max(0, min(len(view), self._old - at))
        if stored:
            try:
                self._source.readinto(view[:stored], self._start + at)
            except BaseException as error:
                self.error, stored = self.error or error, 0
        if stored < len(view):
            view[stored:] = bytes(len(view) - stored)
        if self._pages:
            for number in range(at // PAGE_BYTES, -(-(at + len(view)) // PAGE_BYTES)):
                if page := self._pages.get(number):
                    first, last = max(at, number * PAGE_BYTES), min(at + len(view), (number + 1) * PAGE_BYTES)
                    view[first - at : last - at] = page[first - number * PAGE_BYTES : last - number * PAGE_BYTES]

    def write(self, data: bytes) -> int:
        """As of every file; nothing is written anywhere."""
        view, done = memoryview(data).cast("B"), 0
        while done < len(view):
            number, within = divmod(self._at + done, PAGE_BYTES)
            count = min(PAGE_BYTES - within, len(view) - done)
            self._page(number)[within : within + count] = view[done : done + count]
            done += count
        self._at += done
        self.size = max(self.size, self._at)
        return done

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            page = bytearray(PAGE_BYTES)
            self._read(memoryview(page), number * PAGE_BYTES)
            self._pages[number] = page
        return self._pages[number]

    def truncate(self, size: int) -> int:
        """As of every file."""
        self.size = size
        return size

    def flush(self) -> None:
        """Nothing is kept back."""

    def is_changed(self, start: int, stop: int) -> bool:
        """Whether bytes of [start, stop), in the old file, are no longer what they were."""
        for number, page in self._pages.items():
            at = number * PAGE_BYTES
            first, last = max(start, at), min(stop, at + len(page))
            if first < last and page[first - at : last - at] != self._source.read(self._start + first, self._start + last):
                return True
        return False

    def splices(self) -> list[Splice]:
        """The edits of the span as splices that count from its first byte: of each page the first changed byte to the last."""
        changed_runs: list[tuple[int, bytearray]] = []
        kept = min(self._old, self.size)
        for number in sorted(self._pages):
            at, new = number * PAGE_BYTES, self._pages[number][: max(0, kept - number * PAGE_BYTES)]
            if not new:
                break
            old = self._source.read(self._start + at, self._start + at + len(new))
            changed = [i for i in range(len(new)) if new[i] != old[i]] if new != old else []
            if not changed:
                continue
            piece, at = new[changed[0] : changed[-1] + 1], at + changed[0]
            if changed_runs and changed_runs[-1][0] + len(changed_runs[-1][1]) == at:
                changed_runs[-1][1].extend(piece)
            else:
                changed_runs.append((at, piece))
        splices = [Splice.of(at, at + len(piece), bytes(piece)) for at, piece in changed_runs]
        if self.size != self._old:
            splices.append(self._tail(kept))
        return splices

    def _tail(self, kept: int) -> Splice:
        """The bytes that follow the old end, or the cut before it."""
        if self.size < self._old:
            return Splice.of(self.size, self._old, b"")
        self.seek(kept)
        return Splice.of(self._old, self._old, self.read(self.size - kept))

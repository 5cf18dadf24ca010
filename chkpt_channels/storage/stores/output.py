"""An output in a store: what stays is copied there by the store itself, only edits go through this machine.

The name shows the old object or the complete new one: parts of an upload are no object until CompleteMultipartUpload.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import Any, Self

from chkpt_channels.core import interrupts
from chkpt_channels.core.errors import DamagedError, FileSystemError, Location, OutputExistsError, PostPublishError
from chkpt_channels.core.interrupts import left_to_main_thread
from chkpt_channels.storage.atomic import exists_error
from chkpt_channels.storage.source import RangeSource, Source
from chkpt_channels.storage.splice import Checksum, Composed
from chkpt_channels.storage.stores.address import parsed
from chkpt_channels.storage.stores.connection import CHANGED
from chkpt_channels.storage.stores.crc32 import predicted
from chkpt_channels.storage.stores.parts import MOST_BYTES, Transfer, UploadPart, parts
from chkpt_channels.storage.stores.remote import RemoteSource
from chkpt_channels.storage.stores.upload import Client, NoCopies, Sent, Upload, taken
from chkpt_channels.storage.stream_copy import Checker
from chkpt_channels.storage.threads import Done, submit, undisturbed
from chkpt_channels.storage.urls import shown

COPIES, SENDS = 16, 4
"""So many parts are copied, or sent, at once: those that are sent are in memory."""
SEAM_BYTES = 16
"""On both sides of an edit and of a part: what is read back shows copies in the wrong place too."""


class _Told:
    """What progress was told of: no byte twice, where an upload begins anew."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress, self._known, self.done = progress, 0, 0

    def more(self, size: int) -> None:
        """So many bytes more are done."""
        self.done += size
        if self._progress and self.done > self._known:
            self._progress(self.done - self._known)
            self._known = self.done


class StoreOutput:
    """A new object: `fill` it, then `publish()`. Used as a context, nothing of it stays unless published. Raises
    OutputExistsError where the name is taken and `force` is not given, or is the source's; FileSystemError."""

    def __init__(self, url: str, source: Source, *, force: bool, client: Client | None = None) -> None:
        self.location, self._url, self._address, self._source = Location(shown(url)), url, parsed(url), source
        self._origin = source if isinstance(source, RemoteSource) and source.address.scheme == "s3" else None
        if self._origin and self._origin.address[2:4] == self._address[2:4]:
            raise OutputExistsError("is the input itself", file=self.location.file, hint="-o names another output")
        self._client = client.at(self._address.name) if client else Client(self._address, self.location)
        self._old = self._client.head()
        if self._old and not force:
            raise exists_error(self.location)
        self._upload: Upload | None = None
        self._sent: list[Sent] = []
        self._crc: int | None = None
        self._found: RemoteSource | None = None
        self._tag = ""
        self._guard, self._copied, self._written, self._unverified = "looked", 0, 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._abort()

    def transfer(self) -> Transfer:
        """How the object came into the store, once it is there."""
        reads = [source.connection for source in (self._source, self._found) if isinstance(source, RemoteSource)]
        requests = self._client.requests + sum(connection.requests for connection in reads)
        read = sum(connection.read_bytes for connection in reads)
        how = "copied" if self._copied else "streamed"
        return Transfer(how, read, self._written, self._copied, requests, self._guard, self._unverified)

    def fill(self, output: Composed, checks: Sequence[Checksum], progress: Callable[[int], None] | None) -> None:
        """Put the parts of `output` into an upload. `checks` hold for what stays, and are fed where it passes by. Raises what
        they raise."""
        if output.size > MOST_BYTES:
            raise self.location.unsupported(f"would have {output.size} bytes, and an object has at most {MOST_BYTES}")
        self._output, about = output, self._check_source()
        undisturbed(self._probe)
        told = _Told(progress)
        if self._origin:
            self._crc = predicted(output.pieces, self._origin, checks)
            try:
                self._assemble(parts(output.pieces, may_copy=True), about, checks, told)
                return
            except NoCopies:
                self._abort()
                told.done = 0
        self._assemble(parts(output.pieces, may_copy=False), about, checks, told)

    def _check_source(self) -> dict[str, Any]:
        """What an upload takes over from the source. Raises FileSystemError where the source is another object now,
        UnsupportedError for one that is archived."""
        if not self._origin:
            return {}
        head = self._client.head(self._origin.address.home, self._origin.address.name)
        if head is None or head.tag != self._origin.pin.tag:
            raise self._origin.location.system(CHANGED)
        if (storage := head.about.get("StorageClass")) in ("GLACIER", "DEEP_ARCHIVE"):  # the output would be archived too
            raise self._origin.location.unsupported(f"its storage class is {storage}, in which nothing is read")
        return dict(head.about)

    def _probe(self) -> None:
        # what is known is whether a new name is kept; that the old object is the one that is replaced, only the last look shows
        self._guard = "store" if self._client.honours_conditions() and not self._old else "looked"

    def _assemble(self, cut: Sequence[UploadPart], about: dict[str, Any], checks: Sequence[Checksum], told: _Told) -> None:
        copies = sum(part.size for part in cut if part.copied is not None)

        def begin() -> None:
            self._upload = self._client.begin(about, whole_crc=not copies or self._crc is not None)

        undisturbed(begin)
        upload, checker, pending, crc = self._upload, Checker([] if copies else checks), deque[Future[Sent] | Done[Sent]](), 0
        if upload is None:
            raise RuntimeError("no upload has begun")
        self._sent, self._copied, self._written = [], copies, sum(part.size for part in cut) - copies
        pool = ThreadPoolExecutor(COPIES, initializer=left_to_main_thread)
        at = 0
        try:
            for number, part in enumerate(cut, 1):
                while len(pending) >= (SENDS if part.copied is None else COPIES):
                    self._sent.append(pending.popleft().result())
                if part.copied is not None and self._origin:
                    origin = self._origin
                    pending.append(submit(pool, upload.copy, number, origin.address, origin.pin.tag, part.copied, part.size))
                else:
                    data = self._read(at, part.size, checker)
                    crc = zlib.crc32(data, crc)
                    pending.append(submit(pool, upload.send, number, data))
                told.more(part.size)
                at += part.size
            self._sent += (job.result() for job in pending)
        finally:
            pool.shutdown(cancel_futures=True)
        old = sum(piece.size for piece in self._output.pieces if piece.data is None)
        self._crc, self._unverified = (self._crc, old) if copies else (crc, 0)

    def _read(self, start: int, size: int, checker: Checker) -> bytearray:
        """The bytes of a part, those of the source checked."""
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            piece, within = self._output.at(start + at)
            count = self._output.readinto(view[at:], start + at)
            if piece.data is None:
                checker.feed(view[at : at + count], piece.start + within)
            at += count
        return data

    def publish(self) -> None:
        """Give the object its name. Raises OutputExistsError where another took it meanwhile, FileSystemError where the source
        was changed, PostPublishError where the object is there and does not read back as it was meant."""
        interrupts.check()
        upload = self._upload
        if upload is None or upload.listed() != self._sent:
            raise self.location.system("its server has other parts than it was sent")
        self._check_source()
        now = self._client.head()
        if (now and now.tag) != (self._old and self._old.tag):
            raise taken(self.location)
        condition = {"IfMatch": self._old.tag} if self._old else {"IfNoneMatch": "*"}
        undisturbed(lambda: self._complete(upload, condition if self._old or self._guard == "store" else {}))
        self._read_back()

    def remove(self) -> bool:
        """Remove the object that was published, where its name still shows it; whether nothing of it is left."""
        return self._client.remove(self._tag or tag_of(self._sent))

    def _complete(self, upload: Upload, condition: dict[str, str]) -> None:
        try:
            answer = upload.complete(self._sent, condition, self._crc)
        except OutputExistsError:
            raise
        except DamagedError as error:  # what the store copied
            raise self._source.location.damaged(error.what) from error
        except FileSystemError:  # it may have been done, and the answer was lost
            there = self._client.head()
            if there is None or there.size != self._output.size or there.tag != tag_of(self._sent):
                raise
            answer = {}
        self._upload, self._tag = None, str(answer.get("ETag") or "")
        if self._crc is not None and answer.get("ChecksumCRC32") == base64.b64encode(self._crc.to_bytes(4, "big")).decode():
            self._unverified = 0

    def _read_back(self) -> None:
        """Compare what is new, and both sides of each seam, with what was meant."""
        try:
            with RemoteSource(self._url, first_bytes=SEAM_BYTES) as self._found:
                self._compare(self._found)
        except PostPublishError:
            raise
        except FileSystemError as error:
            what = f"is complete, but could not be read again: {error.what}"
            raise PostPublishError(what, file=self.location.file) from error

    def _compare(self, found: RemoteSource) -> None:
        planned, pieces = RangeSource(self._output, made_here=True), self._output.pieces
        ends = accumulate(piece.size for piece in pieces)
        seams = [(end - piece.size, end) for piece, end in zip(pieces, ends, strict=True) if piece.data is not None]
        seams += ((end, end) for end in accumulate(sent.size for sent in self._sent[:-1]))
        ranges = [(max(start - SEAM_BYTES, 0), min(stop + SEAM_BYTES, planned.size)) for start, stop in seams]
        is_same = found.size == planned.size
        if is_same:
            found.expect(ranges)
            is_same = all(found.is_alike(planned, start, stop) for start, stop in ranges)
        if not is_same:
            raise PostPublishError("does not read back as it was written: remove it", file=self.location.file)

    def _abort(self) -> None:
        upload, self._upload = self._upload, None
        if upload:
            undisturbed(upload.abort)


def tag_of(sent: Sequence[Sent]) -> str:
    """The entity tag of an object that was uploaded in parts, "" where the parts' are no MD5. Source: Amazon S3 User Guide,
    "Checking object integrity"."""
    tags = [part.tag.strip('"') for part in sent]
    if not all(re.fullmatch("[0-9a-f]{32}", tag) for tag in tags):
        return ""
    return f'"{hashlib.md5(bytes.fromhex("".join(tags)), usedforsecurity=False).hexdigest()}-{len(tags)}"'

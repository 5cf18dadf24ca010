"""An output cut into the parts of an upload: spans that the store copies from the source itself, and bytes that are sent.

Every part but the last has at least 5 MiB, and there are at most 10,000.
Source: Amazon S3 User Guide, "Amazon S3 multipart upload limits".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.splice import OutputPiece

LEAST_BYTES = 5 << 20
MOST_PARTS = 10_000
MOST_BYTES = 5 << 40
"""Of an object."""
COPIED_BYTES = 256 << 20
"""Of one copy, at most: several go on side by side, and a copy of 5 GiB would be silent for minutes."""
SENT_BYTES = 16 << 20
"""Of one part that is sent, at most: some are in memory at once."""


class Transfer(NamedTuple):
    """How an output came into a store. `how` is "copied" where the store copied what stays, "streamed" where all went through
    this machine; `overwrite_guard` is "store" where the store refuses to replace what another made meanwhile, "looked" where only
    a look before publishing does. `unverified_bytes` were compared with no checksum."""

    how: str
    read_bytes: int
    written_bytes: int
    copied_bytes: int
    requests: int
    overwrite_guard: str
    unverified_bytes: int


class UploadPart(NamedTuple):
    """`size` bytes of the output, behind those of the part before: of the source from `copied` on, or sent."""

    size: int
    copied: int | None


def parts(pieces: Sequence[OutputPiece], *, may_copy: bool) -> list[UploadPart]:
    """The parts of an output, in order. Where a place is edited, what is sent is grown from the copies around it to the least."""
    spans = _grown(_spans(pieces, may_copy=may_copy))
    size = sum(span.size for span in spans)
    cut: list[UploadPart] = []
    for span in spans:
        most = max(SENT_BYTES if span.copied is None else COPIED_BYTES, -(-size * 4 // MOST_PARTS))
        cut += (UploadPart(count, None if span.copied is None else span.copied + at) for at, count in _even(span.size, most))
    return cut if len(cut) <= MOST_PARTS or not may_copy else parts(pieces, may_copy=False)


def _spans(pieces: Sequence[OutputPiece], *, may_copy: bool) -> list[UploadPart]:
    """Copies of twice the least, so that each can give the least away, and what stays as a whole; everything else is sent."""
    spans: list[UploadPart] = []
    for piece in pieces:
        if may_copy and piece.data is None and (piece.size >= 2 * LEAST_BYTES or len(pieces) == 1 < piece.size):
            spans.append(UploadPart(piece.size, piece.start))
        elif spans and spans[-1].copied is None:
            spans[-1] = UploadPart(spans[-1].size + piece.size, None)
        elif piece.size:
            spans.append(UploadPart(piece.size, None))
    return spans


def _grown(spans: list[UploadPart]) -> list[UploadPart]:
    """What is sent takes what it lacks of the least from the copy behind it."""
    for index, (sent, copy) in enumerate(pairwise(list(spans))):
        lacking = LEAST_BYTES - sent.size
        if sent.copied is None and copy.copied is not None and lacking > 0:
            spans[index : index + 2] = [UploadPart(LEAST_BYTES, None), UploadPart(copy.size - lacking, copy.copied + lacking)]
    return spans


def _even(size: int, most: int) -> Iterator[tuple[int, int]]:
    """A span cut into parts of about one size, at most `most`: none of them is short."""
    each = -(-size // -(-size // most))
    for at in range(0, size, each):
        yield at, min(each, size - at)

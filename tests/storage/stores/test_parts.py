"""The parts of an upload: what a store allows, and the bytes of the output."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.storage.splice import OutputPiece
from chkpt_channels.storage.stores.parts import LEAST_BYTES, MOST_PARTS, UploadPart, parts

MIB = 1 << 20
SIZES = st.one_of(st.integers(1, 100), st.integers(1, 40 * MIB), st.integers(1, 1 << 40))


class Zeros(bytes):
    """New bytes of any length that take no memory."""


def pieces_of(sizes: list[tuple[int, bool]]) -> list[OutputPiece]:
    at, made = 0, []
    for size, is_new in sizes:
        made.append(OutputPiece(at, size, Zeros() if is_new else None))
        at += size
    return made


@given(st.lists(st.tuples(SIZES, st.booleans()), min_size=1, max_size=30), st.booleans())
def test_they_are_what_a_store_takes_and_the_whole_output(sizes: list[tuple[int, bool]], may_copy: bool):
    pieces = pieces_of(sizes)
    cut = parts(pieces, may_copy=may_copy)
    assert all(LEAST_BYTES <= part.size <= 5 << 30 for part in cut[:-1])
    assert cut[-1].size <= 5 << 30
    assert len(cut) <= MOST_PARTS
    at = 0
    for part in cut:
        if part.copied is not None:  # all of it is one piece of the source, of which each byte is where it was
            assert may_copy
            (home,) = [
                p for p in pieces if p.data is None and p.start <= part.copied and part.copied + part.size <= p.start + p.size
            ]
            assert part.copied == at  # the pieces of this test follow each other in the source too
            assert home.size >= 2 * LEAST_BYTES or len(sizes) == 1
        at += part.size
    assert at == sum(size for size, _ in sizes)


def test_little_is_sent_around_an_edit():
    pieces = [OutputPiece(0, 600 * MIB), OutputPiece(0, 100, bytes(100)), OutputPiece(600 * MIB, 600 * MIB)]
    third = -(-(595 * MIB + 100) // 3)
    assert parts(pieces, may_copy=True) == [
        UploadPart(200 * MIB, 0),
        UploadPart(200 * MIB, 200 * MIB),
        UploadPart(200 * MIB, 400 * MIB),
        UploadPart(LEAST_BYTES, None),
        UploadPart(third, 605 * MIB - 100),
        UploadPart(third, 605 * MIB - 100 + third),
        UploadPart(595 * MIB + 100 - 2 * third, 605 * MIB - 100 + 2 * third),
    ]


def test_small_files_are_sent():
    assert parts([OutputPiece(0, 9 * MIB), OutputPiece(0, 10, bytes(10))], may_copy=True) == [UploadPart(9 * MIB + 10, None)]

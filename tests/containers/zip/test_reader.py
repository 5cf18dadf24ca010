"""The zip reader: what a sound archive holds, and every way in which an archive contradicts itself."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels import DamagedError, UnsupportedError, convert
from chkpt_channels.containers.zip import reader as zip_reader
from chkpt_channels.containers.zip.reader import Archive
from chkpt_channels.storage import source as source_module
from chkpt_channels.storage.source import Source
from tests.support.builders import Zipped, zipped
from tests.support.files import FIXTURES, contents

STATE_DICT = FIXTURES / "torch_zip" / "state_dict.pth"


class Unseekable(io.BytesIO):
    """Makes zipfile write data descriptors, as it does into a pipe."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation

    tell = seek


def read(archive: Archive) -> dict[str, bytes]:
    return {name: b"".join(archive.chunks(name)) for name in archive.members}


names = st.text(st.characters(exclude_characters="\0/\\", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda n: n != ".."
)
members = st.lists(
    st.tuples(names, st.binary(max_size=300) | st.binary(max_size=9).map(lambda b: b * 50), st.booleans(), st.booleans()),
    min_size=1,
    max_size=6,
    unique_by=lambda member: member[0].encode().lower(),
)


def pieces_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and inflate so many bytes at once."""
    for module in (source_module, zip_reader):
        monkeypatch.setattr(module, "CHUNK_BYTES", size)


@pytest.mark.parametrize("chunk", [7, 4 << 20])
@pytest.mark.parametrize("file", [io.BytesIO, Unseekable], ids=["seekable", "streamed"])
def test_what_zipfile_writes_is_read(file: type[io.BytesIO], chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pieces_of(chunk, monkeypatch)

    @settings(max_examples=40)
    @given(members, st.integers(0, 300), st.integers(0, 300))
    def run(given_: list[tuple[str, bytes, bool, bool]], a: int, b: int) -> None:
        out = file()
        with zipfile.ZipFile(out, "w") as archive:
            for name, data, packed, wide in given_:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
                with archive.open(info, "w", force_zip64=wide) as member:
                    member.write(data)
        (tmp_path / "a.zip").write_bytes(out.getvalue())
        with Source(tmp_path / "a.zip") as source:
            found = Archive(source)
            assert read(found) == {name: data for name, data, _, _ in given_}
            assert [member.name for member in found.listed] == [name for name, *_ in given_]
            for name, data, _, _ in given_:
                start, stop = sorted((min(a, len(data)), min(b, len(data))))
                assert b"".join(found.chunks(name, start, stop)) == data[start:stop]

    run()


A, B = Zipped("a", b"first"), Zipped("b", b"second")
LONE = zipped(A)
RENAMED = struct.pack("<2HBI", 0x7075, 6, 1, zlib.crc32(b"a")) + b"b"

CONTRADICTIONS = {
    "name twice": zipped(A, Zipped("a", b"other")),
    "name in both cases": zipped(A, Zipped("A", b"other")),
    "another name in the local extra field": zipped(Zipped("a", b"first", extra=RENAMED)),
    "another name in the directory's extra field": zipped(Zipped("a", b"first", central=RENAMED)),
    "two entries, one member": zipped(A, Zipped("b", b"first", offset=0)),
    "inside another": zipped(Zipped("a", zipped(B)[:40]), Zipped("b", b"second", offset=31)),
    "junk before": zipped(A, before=b"junk"),
    "zeros before": zipped(A, before=b"\0" * 8),
    "junk between": zipped(A, B, between=b"junk"),
    "long gap between": zipped(A, B, between=b"\0" * ((1 << 16) + 1)),
    "junk before the directory": zipped(A, B, gap=b"junk"),
    "junk behind": zipped(A, behind=b"junk"),
    "zeros behind": zipped(A, behind=b"\0"),
    "comment": zipped(A, comment=b"hello"),
    "end record in a comment": zipped(A, comment=zipped(B)),
    "encrypted": zipped(Zipped("a", b"first", flags=0x1)),
    "patched": zipped(Zipped("a", b"first", flags=0x20)),
    "strongly encrypted": zipped(Zipped("a", b"first", flags=0x40)),
    "masked headers": zipped(Zipped("a", b"first", flags=0x2000)),
    "local name": zipped(Zipped("a", b"first", local={"name": "b"})),
    "local flags": zipped(Zipped("a", b"first", local={"flags": 0x2})),
    "local method": zipped(Zipped("a", b"first", local={"method": 8})),
    "local crc": zipped(Zipped("a", b"first", local={"crc": 1})),
    "local size": zipped(Zipped("a", b"first", local={"size": 4})),
    "local packed size": zipped(Zipped("a", b"first", local={"packed": 4})),
    "stored, two sizes": zipped(Zipped("a", b"first", size=4, packed=5)),
    "no local header": zipped(Zipped("a", b"first", offset=3)),
    "offset beyond": zipped(Zipped("a", b"first", offset=1 << 30)),
    "larger than the file": zipped(Zipped("a", b"first", size=1 << 30)),
    "zip64 size missing": zipped(Zipped("a", b"first", size=0xFFFFFFFF)),
    "leaves the archive": zipped(Zipped("../a", b"first")),
    "leaves by backslash": zipped(Zipped("x\\..\\a", b"first")),
    "absolute": zipped(Zipped("/a", b"first")),
    "nul": zipped(Zipped("a\0", b"first")),
    "no descriptor": zipped(Zipped("a", b"first", flags=0x8)),
    "fewer entries than declared": zipped(A, B, end={2: 3, 3: 3}),
    "more entries than declared": zipped(A, B, end={2: 1, 3: 1}),
    "several disks": zipped(A, end={0: 1, 1: 1}),
    "directory elsewhere": zipped(A, end={5: 0}),
    "directory too long": zipped(A, end={4: 1000}),
    "directory beyond": zipped(A, end={5: 1 << 30}),
    "no end": LONE[:-1],
    "empty": b"",
    "too short": LONE[-21:],
    "not utf-8": zipped(Zipped("aa", b"first", flags=0x800)).replace(b"aa", b"\xff\xff"),
}


@pytest.mark.parametrize("data", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_an_archive_that_contradicts_itself_is_damaged(data: bytes, source: Callable[..., Source]):
    with pytest.raises(DamagedError) as caught:
        Archive(source(data))
    assert caught.value.file == "a.bin"
    assert caught.value.at is not None


def test_other_ways_of_packing_are_not_read(source: Callable[..., Source]):
    with pytest.raises(UnsupportedError, match="method 12"):
        Archive(source(zipped(Zipped("a", b"first", method=12))))


@pytest.mark.parametrize(
    "data",
    [
        zipped(A, B),
        zipped(A, B, between=b"\0" * 64),
        zipped(A, B, gap=b"\0" * 64),
        zipped(Zipped("a", b"first", extra=b"FB\0\0"), B),
    ],
    ids=["plain", "padded", "padded behind", "extra field"],
)
def test_zero_padding_is_no_damage(data: bytes, source: Callable[..., Source]):
    assert read(Archive(source(data))) == {"a": b"first", "b": b"second"}


def test_an_empty_archive(source: Callable[..., Source]):
    assert Archive(source(zipped())).members == {}


PACKED = zlib.compressobj(wbits=-15)
DEFLATED = PACKED.compress(b"x" * 5000) + PACKED.flush()


def deflated(data: bytes, size: int, crc: int = zlib.crc32(b"x" * 5000)) -> Zipped:
    return Zipped("a", data, method=8, size=size, packed=len(data), crc=crc)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (Zipped("a", b"first", crc=1), "CRC-32"),
        (deflated(DEFLATED, 5000, crc=1), "CRC-32"),
        (deflated(DEFLATED, 4999), "inflates to more than its 4999 bytes"),
        (deflated(DEFLATED, 5001), "inflates to 5000 of its 5001 bytes"),
        (deflated(DEFLATED[:-1], 5000), "inflates to 5000 of its 5000 bytes|does not inflate"),
        (deflated(DEFLATED + b"x", 5000), "inflates to more"),
        (deflated(b"\xff" * 30, 5000), "does not inflate"),
    ],
    ids=["stored", "deflated", "too much", "too little", "cut", "behind", "garbage"],
)
def test_a_payload_that_is_not_what_was_declared(member: Zipped, words: str, source: Callable[..., Source]):
    """Read whole, and by the check that is fed while it is copied."""
    archive = Archive(source(zipped(B, member)))
    with pytest.raises(DamagedError, match=words) as caught:
        archive.read("a")
    assert caught.value.where == "a"
    (check,) = (c for c in archive.checks() if c.start == archive.members["a"].data)
    with pytest.raises(DamagedError, match=words):
        feed(check, member.data)
    assert archive.read("b") == b"second"


def feed(check: zip_reader.Checksum, data: bytes) -> None:
    for at in range(0, len(data), 4):
        check.update(memoryview(data)[at : at + 4])
    check.finish()


def test_a_bomb_is_refused_by_its_declared_size_before_it_is_inflated(source: Callable[..., Source]):
    archive = Archive(source(zipped(deflated(DEFLATED, 1 << 31))))
    with pytest.raises(DamagedError, match="has 2147483648 bytes; 1000 are the most"):
        archive.read("a", 1000)


def test_a_bomb_that_lies_is_inflated_to_its_declared_size_only(source: Callable[..., Source]):
    packer = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(64)) + packer.flush()
    archive = Archive(source(zipped(deflated(bomb, 10))))
    with pytest.raises(DamagedError, match=r"inflates to more than its 10 bytes"):
        list(archive.chunks("a"))


@pytest.mark.parametrize("behind", [0, 1, 250])
def test_content_that_ends_just_behind_a_full_piece(behind: int, source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch):
    """zlib then has taken all input and still keeps some output back."""
    pieces_of(1 << 12, monkeypatch)
    content = b"\0" * ((1 << 12) + behind)
    packer = zlib.compressobj(9, wbits=-15)
    member = deflated(packer.compress(content) + packer.flush(), len(content), crc=zlib.crc32(content))
    archive = Archive(source(zipped(member)))
    assert archive.read("a") == content
    feed(archive.checks()[0], member.data)


def test_an_archive_without_checksums_says_so(source: Callable[..., Source]):
    archive = Archive(source(zipped(Zipped("a", b"first", crc=0), Zipped("b", b"second", crc=0))))
    assert not archive.has_crcs
    assert archive.checks() == []
    assert read(archive) == {"a": b"first", "b": b"second"}


def test_one_checksum_is_enough_to_check_all(source: Callable[..., Source]):
    archive = Archive(source(zipped(A, Zipped("b", b"second", crc=0))))
    with pytest.raises(DamagedError, match="CRC-32"):
        archive.read("b")


def test_many_members(source: Callable[..., Source]):
    """More than the 65,535 that an end record without zip64 can count."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i in range(70_000):
            archive.writestr(zipfile.ZipInfo(str(i)), b"")
    assert len(Archive(source(out.getvalue())).members) == 70_000


# What a single flipped bit does to a file that torch wrote.


def header_bytes() -> list[int]:
    """The bytes of a few members' headers, of their directory entries, and of the end records."""
    with Source(STATE_DICT) as source:
        archive = Archive(source)
        some = [archive.members[f"state_dict/{name}"] for name in ("data.pkl", "data/0", ".data/serialization_id")]
        spans = [(m.start, m.data) for m in some] + [(m.data_stop, m.stop) for m in some]
        spans += [(at, at + len(m.central)) for m in some for at in [source.read(0, source.size).index(m.central)]]
        spans.append((archive.directory[1], source.size))
    return [at for span in spans for at in range(*span)]


def flipped(path: Path, at: int, bit: int) -> None:
    data = bytearray(STATE_DICT.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_in_a_header_is_seen_or_harmless(bit: int, tmp_path: Path):
    with Source(STATE_DICT) as source:
        truth = read(Archive(source))
    for at in header_bytes():
        flipped(tmp_path / "a.pth", at, bit)
        with Source(tmp_path / "a.pth") as source:
            try:
                found = read(Archive(source))
            except DamagedError:
                continue
            assert found == truth, (at, bit)


def test_a_flipped_bit_never_survives_a_conversion(tmp_path: Path):
    """In payloads it is always seen; in headers, a conversion that succeeds has converted the same tensors."""
    chance, headers = random.Random(0), set(header_bytes())
    convert(STATE_DICT, tmp_path / "truth.pth", to="gray")
    truth = contents(tmp_path / "truth.pth")
    payload = chance.sample([at for at in range(STATE_DICT.stat().st_size) if at not in headers], 300)
    survivors = 0
    for at in [*payload, *chance.sample(sorted(headers), 60)]:
        flipped(tmp_path / "a.pth", at, chance.randrange(8))
        try:
            convert(tmp_path / "a.pth", tmp_path / "out.pth", to="gray", force=True)
        except DamagedError:
            continue
        survivors += 1
        assert contents(tmp_path / "out.pth") == truth, at
    assert survivors < 60


def test_the_case_of_letters_does_not_tell_members_apart(source: Callable[..., Source]):
    """Of ASCII alone, as in miniz: other letters have no case there."""
    with pytest.raises(DamagedError, match="a/B: is A/b in letters of another case"):
        Archive(source(zipped(Zipped("A/b", b"1"), Zipped("a/B", b"2"))))
    assert list(Archive(source(zipped(Zipped("é", b"1", flags=0x800), Zipped("É", b"2", flags=0x800)))).members) == ["é", "É"]


def test_a_deflated_member_without_bytes_holds_nothing(source: Callable[..., Source]):
    archive = Archive(source(zipped(deflated(b"", 0, crc=0))))
    assert archive.read("a") == b""
    assert list(archive.chunks("a")) == []

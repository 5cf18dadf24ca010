"""Edits of zip archives: other members as they were, headers mended, and the layout that torch computes offsets from."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels import UnsupportedError
from chkpt_channels.containers.zip.editor import MemberEdit, miniz_local, splices
from chkpt_channels.containers.zip.reader import Archive
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import spliced
from tests.containers.zip.test_reader import Unseekable, members, read
from tests.support.builders import Zipped, zipped
from tests.support.files import FIXTURES

TORCH = FIXTURES / "torch_zip"
ALIGNED = {"state_dict.pth": 64, "alignment4096.pth": 4096, "scripted.pt": 64}


def rewritten(path: Path, changes: Mapping[str, MemberEdit], removed: frozenset[str] = frozenset()) -> bytes:
    with Source(path) as source:
        made = [(s, s.data()) for s in splices(Archive(source), changes, removed)]
    assert all(len(data) == splice.size for splice, data in made)
    return spliced(path.read_bytes(), [(splice.start, splice.stop, data) for splice, data in made])


@pytest.mark.parametrize("file", [io.BytesIO, Unseekable], ids=["seekable", "streamed"])
def test_zipfile_reads_what_was_changed(file: type[io.BytesIO], tmp_path: Path):
    @settings(max_examples=80)
    @given(members, st.data())
    def run(given_: list[tuple[str, bytes, bool, bool]], data: st.DataObject) -> None:
        out = file()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content, packed, wide in given_:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
                with archive.open(info, "w", force_zip64=wide) as member:
                    member.write(content)
        expected, changes, removed = {}, {}, set()
        for name, content, _, _ in given_:
            what = data.draw(st.sampled_from(["leave", "change", "append", "remove"]))
            new = data.draw(st.binary(max_size=400))
            keep = {"change": 0, "append": len(content)}.get(what)
            if what == "remove":
                removed.add(name)
            else:
                expected[name] = content if keep is None else content[:keep] + new
            if keep is not None:
                changes[name] = MemberEdit(len(new), lambda new=new: new, keep)
        path = tmp_path / "a.zip"
        path.write_bytes(out.getvalue())
        after = rewritten(path, changes, frozenset(removed))
        with zipfile.ZipFile(io.BytesIO(after)) as archive:
            assert archive.testzip() is None
            assert {name: archive.read(name) for name in archive.namelist()} == expected
        if expected:
            (tmp_path / "b.zip").write_bytes(after)
            with Source(tmp_path / "b.zip") as source:
                assert read(Archive(source)) == expected

    run()


def test_no_change_is_no_splice(source: Callable[..., Source]):
    assert splices(Archive(source(zipped(Zipped("a", b"first")))), {}) == []


@pytest.mark.parametrize(("name", "align"), ALIGNED.items())
@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_torchs_headers_are_written_anew(name: str, align: int, size: int, tmp_path: Path):
    """Every member's header is what miniz would write at its new offset, and every payload is aligned."""
    with Source(TORCH / name) as source:
        before = Archive(source)
        storage = next(m for m in before.members.values() if m.name.split("/")[1:2] == ["data"])
        by_miniz = {m.name for m in before.members.values() if m.local == again(m, align)}
    assert len(by_miniz) == len(before.members)
    path = tmp_path / "a.zip"
    path.write_bytes(rewritten(TORCH / name, {storage.name: MemberEdit.of(b"x" * size)}))
    with Source(path) as source:
        after = Archive(source)
        assert read(after)[storage.name] == b"x" * size
        assert [m.name for m in after.listed] == [m.name for m in before.listed]
        for member in after.members.values():
            assert member.local == again(member, align)
            assert member.data % align == 0
            assert len(member.descriptor) == (16 if member.size else 0)


def again(member: object, align: int) -> bytes:
    name = member.name.encode()
    return miniz_local(name, member.size, member.start, align, member.method)


@pytest.mark.parametrize("name", ["state_dict.pth", "alignment4096.pth", "rezipped_stored.pth", "scripted.pt"])
def test_there_and_back_is_the_same_file(name: str, tmp_path: Path):
    with Source(TORCH / name) as source:
        archive = Archive(source)
        storage = next(m.name for m in archive.members.values() if m.name.split("/")[1:2] == ["data"] and m.size > 100)
        content = archive.read(storage)
    path = tmp_path / "a.zip"
    path.write_bytes(rewritten(TORCH / name, {storage: MemberEdit.of(content * 3)}))
    assert path.read_bytes() != (TORCH / name).read_bytes()
    assert rewritten(path, {storage: MemberEdit.of(content)}) == (TORCH / name).read_bytes()


def test_only_what_is_edited_is_deflated_again(source: Callable[..., Source], put: Callable[..., Path]):
    """Kept as they are: members that another zlib would pack otherwise."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in "ab":
            archive.writestr(name, name.encode() * 3000 + bytes(range(256)) * 9)
    path = put(out.getvalue(), "in.zip")
    before, after = Archive(source(out.getvalue())), Archive(source(rewritten(path, {"a": MemberEdit.of(b"new" * 999)}), "b.bin"))
    packed = [a.source.read(a.members["b"].data, a.members["b"].data_stop) for a in (before, after)]
    assert packed[0] == packed[1]
    assert after.members["a"].method == before.members["a"].method == zipfile.ZIP_DEFLATED


def test_without_checksums_none_are_written(put: Callable[..., Path], source: Callable[..., Source]):
    path = put(zipped(Zipped("a", b"first", crc=0), Zipped("b", b"second", crc=0)))
    after = Archive(source(rewritten(path, {"a": MemberEdit.of(b"something else")})))
    assert {member.crc for member in after.members.values()} == {0}
    assert not after.has_crcs


def test_what_stands_around_members_stays(put: Callable[..., Path]):
    """Padding, foreign extra fields, the order of the directory."""
    extra = struct.pack("<2sH3s", b"xx", 3, b"own")
    path = put(zipped(Zipped("a", b"first", extra=extra), Zipped("b", b"second"), between=b"\0" * 9, gap=b"\0" * 5))
    expected = zipped(Zipped("a", b"longer first", extra=extra), Zipped("b", b"second"), between=b"\0" * 9, gap=b"\0" * 5)
    assert rewritten(path, {"a": MemberEdit.of(b"longer first")}) == expected


def test_beyond_4_gib_old_headers_have_no_room(source: Callable[..., Source]):
    archive = Archive(source(zipped(Zipped("a", b"first"))))
    with pytest.raises(UnsupportedError, match="4 GiB"):
        splices(archive, {"a": MemberEdit(1 << 32, lambda: b"")})


def test_beyond_4_gib_minizs_headers_grow():
    """Facts of pytorch's writer: the own offset from 4 GiB - 1 on, sizes likewise, and 64-byte alignment all the same."""
    for size, start, wide in [(100, 0xFFFFFFFE, 0), (100, 0xFFFFFFFF, 8), (0xFFFFFFFF, 0, 16), (0xFFFFFFFF, 1 << 33, 24)]:
        local = miniz_local(b"archive/data/0", size, start, 64)
        assert (start + len(local)) % 64 == 0
        extra = local[30 + 14 :]
        if wide:
            tag, length = struct.unpack_from("<2H", extra)
            assert (tag, length) == (1, wide)
            extra = extra[4 + length :]
        tag, length = struct.unpack_from("<2sH", extra)
        assert (tag, extra[4:]) == (b"FB", b"Z" * length)

"""The pieces of an output, composed: what `convert` writes, and what it refuses."""

from __future__ import annotations

import pickle
import shutil
from math import prod
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import AmbiguousError, ChkptChannelsError, DamagedError, UnsupportedError, UsageError, convert, patch
from chkpt_channels.storage.splice import OutputPiece
from tests.support.builders import entry, safetensors
from tests.support.files import FIXTURES, Truth, truths

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
CONVERTIBLE = [truth for truth in truths() if truth.said["in_channels"]]


class Held:
    """Bytes in memory, read by position: at most `most` at once."""

    def __init__(self, name: str, content: bytes, most: int = 1 << 20) -> None:
        self.name, self.content, self.most, self.size = name, content, most, len(content)
        self.read: list[tuple[int, int]] = []

    def readinto(self, buffer: memoryview, offset: int) -> int:
        data = self.content[offset : offset + min(len(buffer), self.most)]
        buffer[: len(data)] = data
        self.read.append((offset, len(data)))
        return len(data)


def composed(source: bytes, pieces: tuple[OutputPiece, ...]) -> bytes:
    return b"".join(source[p.start : p.start + p.size] if p.data is None else p.data for p in pieces)


@pytest.mark.usefixtures("unforked")
@pytest.mark.parametrize("truth", CONVERTIBLE, ids=str)
def test_the_pieces_are_what_convert_writes(truth: Truth, tmp_path: Path):
    """Of a path, and of an object that gives a few bytes at a time; the data files beside it keep theirs."""
    name = f"out_{truth.path.name}"
    to, content = 3 if truth.said["in_channels"] == 1 else "gray", truth.path.read_bytes()
    report = convert(truth.path, tmp_path / name, to)
    written = (tmp_path / name).read_bytes()
    made = patch(truth.path, to, name=name)
    assert (composed(content, made.pieces), made.size) == (written, len(written))
    assert (made.report.status, made.report.output, made.report.target) == ("would_convert", None, name)
    assert (made.report.kernels, made.report.parity, made.report.changed) == (report.kernels, report.parity, report.changed)
    for old, new in made.beside.items():
        assert (truth.path.parent / old).read_bytes() == (tmp_path / new).read_bytes()
    held = Held(truth.path.name, content, 5000)
    if made.beside:
        with pytest.raises(UnsupportedError, match=r"its elements are in the data file .*, and the model was given without it"):
            patch(held, to, name=name)
    else:
        assert composed(content, patch(held, to, name=name).pieces) == written


@pytest.mark.parametrize("name", ["net.pth", "net.pth.tar"])
def test_the_name_is_that_of_convert(name: str, tmp_path: Path):
    shutil.copy(RGB, tmp_path / name)
    expected = convert(tmp_path / name, to="gray").target
    assert patch(tmp_path / name).name == expected
    assert patch(Held(name, RGB.read_bytes())).name == Path(expected).name


def test_it_can_be_pickled():
    assert pickle.loads(pickle.dumps(patch(RGB))).pieces == patch(RGB).pieces


def test_the_identity_is_one_piece():
    made = patch(RGB, 3)
    assert (made.pieces, made.report.status) == ((OutputPiece(0, RGB.stat().st_size),), "unchanged")


def test_what_stays_is_read_for_its_checksums_once():
    """And without them only what the conversion needs."""
    content, done = RGB.read_bytes(), []
    patch(RGB, progress=lambda more, total: done.append((more, total)))
    assert {sum(more for more, _ in done)} == {total for _, total in done} != {0}
    whole, little = Held("a.pth", content), Held("a.pth", content)
    patch(whole)
    patch(little, checksums=False)
    assert sum(more for _, more in whole.read) == sum(more for _, more in little.read) + done[0][1]


def test_a_flipped_bit_in_what_stays_is_damage():
    content = bytearray(RGB.read_bytes())
    last = max((p for p in patch(RGB).pieces if p.data is None), key=lambda piece: piece.size)
    content[last.start + last.size // 2] ^= 1
    with pytest.raises(DamagedError, match="CRC"):
        patch(Held("a.pth", bytes(content)))
    patch(Held("a.pth", bytes(content)), checksums=False)


@pytest.mark.parametrize(
    ("src", "options", "kind", "words"),
    [
        (RGB.parent, {}, UsageError, "patch takes a file"),
        (RGB, {"name": "a.safetensors"}, UsageError, "a patch keeps the format"),
        (RGB, {"name": "a.onnx"}, UsageError, "is named like another format"),
        (RGB, {"leave_out": ["a"]}, UsageError, "and this is none"),
        (Held("a.pth", RGB.read_bytes()), {"leave_out": ["a"]}, UsageError, "a.pth: --leave-out names files of a model folder"),
        (Held("a.pth", RGB.read_bytes()), {"layers": ["fc.weight"]}, ChkptChannelsError, "a.pth"),
        (Held("a.pth", b"<html>"), {}, DamagedError, "a.pth: .*HTML"),
        (FIXTURES / "onnx" / "two_stems.onnx", {"inputs": ["nothing"]}, ChkptChannelsError, "nothing"),
    ],
)
def test_what_is_refused(src: Any, options: dict[str, Any], kind: type[ChkptChannelsError], words: str, tmp_path: Path):
    if isinstance(src, Path) and src.is_dir():
        src = tmp_path / "model"
        src.mkdir()
        shutil.copy(RGB, src)
    with pytest.raises(kind, match=words):
        patch(src, "gray", **options)


def test_an_object_that_fails_is_told_as_that():
    class Failing(Held):
        def readinto(self, buffer: memoryview, offset: int) -> int:
            raise OSError(None, "The file could not be read")

    with pytest.raises(ChkptChannelsError, match=r"a\.pth: the file could not be read") as caught:
        patch(Failing("a.pth", RGB.read_bytes()))
    assert caught.value.exit_code == 5


def test_candidates_come_with_the_refusal():
    sizes = {"a.weight": (8, 3, 3, 3), "b.weight": (16, 3, 5, 5)}
    header, at = {}, 0
    for name, shape in sizes.items():
        header[name] = entry(shape, at)
        at += 4 * prod(shape)
    content = safetensors(header, bytes(at))
    with pytest.raises(AmbiguousError) as caught:
        patch(Held("a.safetensors", content))
    assert len(caught.value.candidates) > 1

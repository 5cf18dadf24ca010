"""A small file of every format, a framework's own where that is small enough, cut off at every byte; and single bits flipped in
archives, 1500 in each."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from chkpt_channels import ChkptChannelsError, DamagedError, convert
from chkpt_channels.containers.zip.reader import Archive
from chkpt_channels.formats import known
from chkpt_channels.storage import isolation
from chkpt_channels.storage.source import Source
from fixtures.generate.hostile import geometry, models
from tests.support.builders import conv, floats, pickled, torch_zip
from tests.support.files import FIXTURES, contents, smallest
from tests.support.sandbox import aside

FLIPS = 1500
SHORT = 16
LARGEST = 16 << 10
MISSING = (
    r"end is missing|is empty \(0 bytes\)|is cut off|truncated file|bytes of data, its header describes|"
    r"extends beyond its message|a varint has no end|cannot read it"
)


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each of thousands of files would take minutes."""
    monkeypatch.setattr(isolation, "may_fork", lambda: False)


def hdf5(folder: Path) -> bytes:
    """Weights only, as Keras 2 kept them."""
    path = folder / "made.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["layer_names"], file.attrs["backend"] = [b"conv"], b"tensorflow"
        group = file.create_group("conv")
        group.attrs["weight_names"] = [b"conv/kernel:0"]
        group["conv/kernel:0"] = np.ones((2, 2, 3, 2), "f4")
    return path.read_bytes()


def one_conv_and(more: dict[str, bytes]) -> bytes:
    return torch_zip({"conv1.weight": conv()}, {"0": floats(108)}, more)


def fixture(form: str, name: str) -> bytes:
    return (FIXTURES / form / name).read_bytes()


SMALL: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "torch_zip": (".pth", lambda folder: fixture("torch_zip", "conv1d.pth")),
    "torchscript": (".pt", lambda folder: one_conv_and({"constants.pkl": pickled(())})),
    "torch_legacy": (".pth", lambda folder: geometry.legacy()),
    "safetensors": (".safetensors", lambda folder: fixture("safetensors", "half.safetensors")),
    "onnx": (".onnx", lambda folder: models.model()),
    "keras_h5": (".h5", hdf5),
    "keras_zip": (".keras", lambda folder: fixture("keras_zip", "deflated.keras")),
}
OTHERS = {form.name: smallest(form.name) for form in known() if form.name not in SMALL}
"""Of a format that is not listed, its smallest fixture."""
SMALL |= {form: (path.suffix, lambda _, path=path: path.read_bytes()) for form, path in OTHERS.items()}


def test_every_format_is_swept():
    assert {kind.name for kind in known()} <= SMALL.keys()
    assert all(path.stat().st_size <= LARGEST for path in OTHERS.values()), "a smaller fixture is needed"


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("form", SMALL)
def test_cut_at_every_byte(form: str, tmp_path: Path):
    """Always damage, a message that says what is missing, and never an output."""
    suffix, make = SMALL[form]
    whole, path, out = make(tmp_path), tmp_path / f"a{suffix}", tmp_path / f"out{suffix}"
    path.write_bytes(whole)
    convert(path, out, to="gray")
    out.unlink()
    names = {entry.name for entry in tmp_path.iterdir()}
    for stop in range(len(whole) - 1, -1, -1):
        os.truncate(path, stop)
        words = MISSING if stop >= SHORT else f"{MISSING}|is not a checkpoint"
        with pytest.raises(DamagedError, match=words):
            convert(path, out, to="gray")
    assert {entry.name for entry in tmp_path.iterdir()} == names


FLIPPED = {"pth": FIXTURES / "torch_zip" / "conv1d.pth", "keras": FIXTURES / "keras_zip" / "volume.keras"}


@cache
def free(path: Path) -> frozenset[int]:
    """The bytes of an archive that say nothing about any content: dates, the versions and systems of the zip tool, attributes,
    and what an extra field is filled with."""
    found: set[int] = set()
    with Source(path) as source:
        archive = Archive(source)
        at = archive.directory[0]
        for member in archive.listed:
            size = int.from_bytes(member.local[26:28], "little")
            found |= {*range(member.start + 4, member.start + 6), *range(member.start + 10, member.start + 14)}
            found |= {*range(member.start + 30 + size, member.data)}
            found |= {*range(at + 4, at + 8), *range(at + 12, at + 16), *range(at + 36, at + 42)}
            at += len(member.central)
        if archive.end[:4] == b"PK\6\6":  # the zip tool's versions, and that there is one disk
            found |= {*range(at + 12, at + 16), at + 56 + 16}
    return frozenset(found)


class Flips:
    """Conversions of one file, each with another bit flipped."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.whole, chance = path, path.read_bytes(), random.Random(0)
        self.source, self.out = folder / path.name, folder / f"out{path.suffix}"
        convert(path, self.out, to="gray")
        self.truth = contents(self.out)
        self.places = [(chance.randrange(len(self.whole)), chance.randrange(8)) for _ in range(FLIPS)]

    def is_caught(self, number: int) -> bool:
        """Whether the flip is seen; what is not seen must mean nothing."""
        at, bit = self.places[number]
        data = bytearray(self.whole)
        data[at] ^= 1 << bit
        self.source.write_bytes(data)
        self.out.unlink(missing_ok=True)
        try:
            convert(self.source, self.out, to="gray")
        except ChkptChannelsError:
            assert not self.out.exists()
            return True
        assert at in free(self.path), (at, bit)
        assert contents(self.out) == self.truth, (at, bit)
        return False

    def batch(self, first: int) -> list[bool]:
        """The flips from `first` on, in one process without processes of its own, as far as it comes."""

        def work(tell: Callable[[bytes], object]) -> None:
            for number in range(first, FLIPS):
                tell(b"y" if self.is_caught(number) else b"n")

        return [answer == ord("y") for answer in aside(work)]


@pytest.mark.parametrize("path", FLIPPED.values(), ids=FLIPPED)
def test_flipped_bits(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every one that falls into a payload, or into a header's field that means anything, is seen."""
    monkeypatch.setattr(isolation, "may_fork", lambda: sys.platform == "linux")
    flips, caught = Flips(path, tmp_path), list[bool]()
    while len(caught) < FLIPS:
        caught += flips.batch(len(caught))
        if len(caught) < FLIPS:  # libhdf5 has crashed, or an assertion has failed: once more, as it is done for a user
            caught.append(flips.is_caught(len(caught)))
    assert sum(caught) > FLIPS // 2

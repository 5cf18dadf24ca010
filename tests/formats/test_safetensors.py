"""safetensors: every way in which a header can lie, and that an edit changes nothing but numbers."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels import ChkptChannelsError, DamagedError, FileSystemError, convert, inspect, verify
from tests.support.builders import entry, floats
from tests.support.builders import safetensors as file
from tests.support.files import FIXTURES, snapshot, there_and_back, within

SAFE = FIXTURES / "safetensors"
RAW = floats(108)
NAME = "conv1.weight"
GOOD = {NAME: entry((4, 3, 3, 3))}


def changed(**fields: Any) -> bytes:
    return file({NAME: GOOD[NAME] | fields}, RAW)


def text(raw: str) -> bytes:
    return file(raw.encode("utf-8", "surrogatepass"), RAW)


def with_length(length: int) -> bytes:
    return struct.pack("<Q", length) + file(GOOD, RAW)[8:]


DUPLICATE = '"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
DAMAGED: dict[str, tuple[bytes, str]] = {
    "header beyond the file": (with_length(10_000), "is cut off inside its header"),
    "header of 2^63": (with_length(1 << 63), "100000000 are the most"),
    "header of 2^64-1": (with_length((1 << 64) - 1), "100000000 are the most"),
    "header over 100 MB": (with_length(100_000_001), "100000000 are the most"),
    "header too short": (with_length(20), "is not JSON"),
    "one byte short": (file(GOOD, RAW[:-1]), "holds 431 bytes of data"),
    "trailing byte": (file(GOOD, RAW + b"\0"), "holds 433 bytes of data"),
    "overlap": (file(GOOD | {"b": entry((4,), 428)}, RAW), "begin at 428 of the data; the next free byte is 432"),
    "hole": (file(GOOD | {"b": entry((4,), 440)}, RAW + b"\0" * 24), "begin at 440 of the data; the next free byte is 432"),
    "hole in front": (file({NAME: entry((4, 3, 3, 3), 8)}, b"\0" * 8 + RAW), "begin at 8 of the data; the next free byte is 0"),
    "two on the same bytes": (file(GOOD | {"b": entry((108,))}, RAW), "begin at 0 of the data; the next free byte is 432"),
    "offsets backwards": (changed(data_offsets=[432, 0]), "must list non-negative integers"),
    "negative offset": (changed(data_offsets=[-4, 428]), "must list non-negative integers"),
    "three offsets": (changed(data_offsets=[0, 432, 432]), "must list non-negative integers"),
    "offsets of floats": (changed(data_offsets=[0, 432.0]), "must list non-negative integers"),
    "offsets of booleans": (changed(data_offsets=[False, 432]), "must list non-negative integers"),
    "offset beyond 2^63": (changed(data_offsets=[0, 1 << 63]), "must list non-negative integers"),
    "an endless offset": (text(f'{{"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,{"9" * 5000}]}}}}'), "not a JSON number"),
    "shape and offsets differ": (changed(shape=[4, 3, 3, 4]), "does not fill the 432 bytes of its data_offsets"),
    "shape overflows": (changed(shape=[1 << 62, 1 << 62]), "does not fill the 432 bytes of its data_offsets"),
    "negative shape": (changed(shape=[-4, -27]), "must list non-negative integers"),
    "shape of a number": (changed(shape=108), "must list non-negative integers"),
    "shape of nothing": (changed(shape=None), "must list non-negative integers"),
    "shape of floats": (changed(shape=[108.0]), "must list non-negative integers"),
    "unknown dtype": (changed(dtype="F33"), "unknown dtype 'F33'"),
    "dtype of a list": (changed(dtype=["F32"]), "unknown dtype"),
    "half a byte": (
        file({"a": entry((3,), 0, "F4") | {"data_offsets": [0, 1]}}, b"\0"),
        "does not fill the 1 bytes",
    ),
    "another field": (changed(more=1), "must have the fields dtype, shape and data_offsets"),
    "a field missing": (
        text('{"a":{"dtype":"F32","shape":[108]}}'),
        "must have the fields dtype, shape and data_offsets",
    ),
    "entry of a list": (text('{"a":[]}'), "must have the fields dtype, shape and data_offsets"),
    "name twice": (text(f"{{{DUPLICATE},{DUPLICATE}}}"), "'a' occurs twice"),
    "field twice": (text('{"a":{"dtype":"F32","dtype":"F32","shape":[108],"data_offsets":[0,432]}}'), "'dtype' occurs twice"),
    "metadata twice": (text('{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' occurs twice"),
    "metadata of numbers": (file({"__metadata__": {"a": 1}} | GOOD, RAW), "__metadata__: must map text to text"),
    "metadata of a list": (file({"__metadata__": []} | GOOD, RAW), "__metadata__: must map text to text"),
    "NaN": (changed(shape=[float("nan")]), "holds NaN, which is not a JSON number"),
    "Infinity": (changed(shape=[float("inf")]), "holds Infinity, which is not a JSON number"),
    "lone surrogate": (text(r'{"\ud800":{"dtype":"F32","shape":[108],"data_offsets":[0,432]}}'), "the lone surrogate"),
    "not utf-8": (file(b'{"\xff":0}', RAW), "is not UTF-8"),
    "surrogate in utf-8": (text('{"\ud800":0}'), "is not UTF-8"),
    "deep nesting": (text('{"a":' + "[" * 200_000 + "]" * 200_000 + "}"), "nested too deeply"),
    "no JSON": (text("{"), "is not JSON"),
    "behind the JSON": (text("{} x"), "is not JSON"),
    "single quotes": (text("{'a':1}"), "is not JSON"),
}


@pytest.mark.parametrize(("data", "words"), DAMAGED.values(), ids=DAMAGED)
def test_damage(data: bytes, words: str, put: Callable[..., Path], tmp_path: Path):
    path = put(data, "a.safetensors")
    with pytest.raises(DamagedError, match=words) as caught:
        convert(path)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path).keys() == {"a.safetensors"}


@pytest.mark.parametrize("length", [0x13A, 0x10A3A, 0x3A08, 0x142])
def test_a_length_that_looks_like_a_graph_of_onnx(length: int, put: Callable[..., Path]):
    """Not every writer pads the header to eight bytes."""
    raw = json.dumps(GOOD).encode()
    path = put(file(raw + b" " * (length - len(raw)), RAW), "a.safetensors")
    assert inspect(path).input.format == "safetensors"


def test_a_leading_space_is_not_the_format(put: Callable[..., Path]):
    with pytest.raises(DamagedError):
        inspect(put(text(" " + json.dumps(GOOD)), "a.safetensors"))


def test_every_cut_is_damage(put: Callable[..., Path]):
    small = file({"w": entry((2, 1, 2))}, RAW[:16])
    inspect(put(small))
    for cut in range(len(small)):
        with pytest.raises(DamagedError):
            inspect(put(small[:cut]))


def named(names: Iterable[int], shape: str = "0") -> bytes:
    return text("{" + ",".join(f'"{n}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,0]}}' for n in names) + "}")


SLOW: dict[str, Callable[[], bytes]] = {
    "every name twice": lambda: named(i // 2 for i in range(50_000)),
    "the last name twice": lambda: named([*range(25_000), 24_999]),
    "axes": lambda: named([1], ",".join(["4611686018427387904"] * 70_000)),
}


@pytest.mark.parametrize("make", SLOW.values(), ids=SLOW)
def test_a_verdict_comes_soon(make: Callable[[], bytes], put: Callable[..., Path]):
    path = put(make(), "a.safetensors")
    with within(5), pytest.raises(DamagedError):
        inspect(path)


def test_twenty_thousand_tensors(put: Callable[..., Path], tmp_path: Path):
    header: dict[str, Any] = {"conv1.weight": entry((4, 3, 3, 3))}
    for i in range(20_000):
        header[f"blocks.{i}.scale"] = {"dtype": "F32", "shape": [0], "data_offsets": [432, 432]}
    path = put(file(header, RAW), "a.safetensors")
    with within(5):
        assert convert(path, tmp_path / "out.safetensors", layers=[NAME], layout="OIHW").tensors_total == 20_001


sizes = st.sampled_from((0, 1, 2, 4))  # three numbers may be named "std", and are asked about
names = st.text(max_size=8).filter(lambda name: name != "__metadata__")


@settings(max_examples=30)
@given(st.dictionaries(names, sizes, max_size=5), st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3))
def test_what_the_library_writes_is_read_and_read_by_it(
    put: Callable[..., Path], tmp_path: Path, more: dict[str, int], metadata: dict[str, str]
):
    import numpy as np

    arrays = {name: np.arange(size, dtype="<f2") for name, size in more.items()} | {"conv1.weight": np.ones((4, 3, 3, 3), "<f4")}
    path = put(safetensors.numpy.save(arrays, metadata or None), "a.safetensors")
    convert(path, tmp_path / "out.safetensors", layers=[NAME], layout="OIHW", force=True)
    with safetensors.safe_open(tmp_path / "out.safetensors", "numpy") as found:
        assert (found.metadata() or {}) == metadata
        assert found.get_tensor("conv1.weight").shape == (4, 1, 3, 3)
        for name in more.keys() - {"conv1.weight"}:
            assert (found.get_tensor(name) == arrays[name]).all()


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), min_size=1, max_size=3))
def test_whatever_the_header_no_other_error_escapes(put: Callable[..., Path], changes: list[tuple[int, bytes]]):
    data = bytearray(file({"__metadata__": {"format": "pt"}, **GOOD}, RAW))
    for at, new in changes:
        at %= len(data) - len(RAW)
        data[at : at + len(new)] = new
    with suppress(ChkptChannelsError):
        inspect(put(bytes(data), "fuzzed.safetensors"))


@pytest.mark.parametrize("path", sorted(SAFE.glob("*.safetensors")), ids=lambda path: path.stem)
def test_there_and_back_is_the_same_file(path: Path, tmp_path: Path):
    """The order of entries and metadata, spaces and escapes are the writer's."""
    to = 5 if path.stem == "student_teacher" else 4
    assert there_and_back(path, tmp_path / path.name, to) == path.read_bytes()


@pytest.mark.parametrize(
    "dump",
    [
        {"separators": (",", ":")},
        {},
        {"ensure_ascii": False},
        {"separators": (", ", ":")},
    ],
    ids=["tight", "spaced", "unescaped", "half spaced"],
)
def test_a_header_keeps_its_hand(dump: dict[str, Any], put: Callable[..., Path], tmp_path: Path):
    """Only numbers change: the same header with the new numbers, padded to eight bytes."""
    header = {"größe": entry((4,), 432), "__metadata__": {"note": "é, ok: fine", "format": "pt"}, **GOOD}
    raw = json.dumps(header, **dump).encode()
    path = put(file(raw + b" " * (-len(raw) % 8), RAW + RAW[:16]), "a.safetensors")
    convert(path, tmp_path / "out.safetensors", layers=[NAME], layout="OIHW")
    header[NAME] = entry((4, 1, 3, 3))
    header["größe"] = entry((4,), 144)
    expected = json.dumps(header, **dump).encode()
    written = (tmp_path / "out.safetensors").read_bytes()
    assert written[8 : 8 + int.from_bytes(written[:8], "little")] == expected + b" " * (-len(expected) % 8)


def test_a_sparse_giant_is_refused_at_once_where_there_is_no_room(tmp_path: Path):
    """15 TB of holes: nothing is copied before the room for it is there."""
    size = 15 * 10**12
    if shutil.disk_usage(tmp_path).free > size:
        pytest.skip("there is room for it")
    path = tmp_path / "a.safetensors"
    path.write_bytes(file({NAME: entry((4, 3, 3, 3)), "big": entry((size // 4,), 432)}))
    os.truncate(path, path.stat().st_size + 432 + size)
    with within(5), pytest.raises(FileSystemError, match=r"cannot be written: no space left"):
        convert(path, tmp_path / "out.safetensors", layers=[NAME], layout="OIHW")
    assert {found.name for found in tmp_path.iterdir()} == {"a.safetensors"}


@pytest.mark.parametrize("note", ['{"a": 1}, {"b", "c": 2}', "x, y: z", "ends in a backslash \\"])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_metadata_says_nothing_of_the_spaces(separators: tuple[str, str], note: str, put: Callable[..., Path], tmp_path: Path):
    header = {"__metadata__": {"note": note, "more, ": "}, "}, **GOOD}
    path = put(file(json.dumps(header, separators=separators).encode(), RAW), "a.safetensors")
    convert(path, tmp_path / "b.safetensors", layers=[NAME], layout="OIHW")
    data = (tmp_path / "b.safetensors").read_bytes()
    written = data[8 : 8 + struct.unpack("<Q", data[:8])[0]].rstrip(b" ")
    expected = {**header, NAME: entry((4, 1, 3, 3))}
    assert written == json.dumps(expected, separators=separators).encode()


def test_tensors_are_taken_out(tmp_path: Path):
    """Their entries and their elements; the others move up, and the metadata stays."""
    named = {"a.weight": np.arange(12, dtype="f4").reshape(3, 4, 1, 1), "a.bias": np.zeros(3, "f4")}
    named |= {"stem.weight": np.ones((2, 3, 3, 3), "f4"), "stem.bias": np.zeros(2, "f4"), "z": np.arange(5, dtype="i8")}
    path, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.numpy.save_file(named, path, metadata={"format": "pt"})
    report = convert(path, out, fold_adapter=True, layers=["a", "stem"])
    after = safetensors.numpy.load_file(out)
    assert after.keys() == {"stem.weight", "stem.bias", "z"}
    assert after["stem.weight"][0, :, 0, 0].tolist() == [12, 15, 18, 21]
    assert np.array_equal(after["z"], named["z"])
    assert b'"__metadata__":{"format":"pt"}' in out.read_bytes()
    assert {*report.changed} == {"stem.weight", "a.weight", "a.bias"}
    assert verify(path, out, fold_adapter=True, layers=["a", "stem"]).ok
    assert {d.key for d in verify(path, path, fold_adapter=True, layers=["a", "stem"]).differences} >= {"a.weight", "a.bias"}

"""What HDF5 objects hold, read through the library's handles: boxes that cover a shape, names of types, texts, filters."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.containers.hdf5 import objects
from chkpt_channels.core.errors import DamagedError, Location, UnsupportedError

PLACE = Location("a.h5", "d")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[h5py.File]:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        yield file


@given(st.lists(st.integers(1, 7), max_size=4), st.integers(1, 8), st.integers(8, 200))
def test_boxes_cover_a_shape_in_c_order(shape: list[int], itemsize: int, most: int):
    """Put one behind the other, their elements are those of the whole; none is larger than was asked for."""
    whole = np.arange(prod(shape)).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "CHUNK_BYTES", most)
        boxes = list(objects.boxes(tuple(shape), itemsize))
    pieces = [whole[tuple(slice(at, at + n) for at, n in zip(*box, strict=True))].reshape(-1) for box in boxes]
    assert np.concatenate(pieces).tolist() == whole.reshape(-1).tolist()
    assert max(piece.size for piece in pieces) * itemsize <= most


@pytest.mark.parametrize(
    ("dtype", "name", "plain"),
    [("<f4", "float32", True), (">f4", "float32", False), ("u1", "uint8", True), ("?", "bool", False), ("S3", "", False)],
)
def test_types_by_numpys_names(dtype: str, name: str, plain: bool, file: h5py.File):
    assert objects.numpy_name(file.create_dataset("d", (2,), dtype).id.get_type()) == (name, plain)


def test_texts_are_those_that_are_wanted(file: h5py.File):
    file.attrs["names"], file.attrs["names1"], file.attrs["other"] = "a", ["b", "c"], "d"
    file.attrs["names2"], file.attrs["names3"] = 5, np.bytes_(b"\xff")
    root = h5py.h5g.open(file.id, b"/")
    assert dict(objects.texts(root, frozenset({"names"}))) == {"names": "a", "names1": ["b", "c"]}
    assert sorted(name for name, _ in objects.attributes(root)) == ["names", "names1", "names2", "names3", "other"]


def test_two_bytes_with_a_tag_are_bfloat16(file: h5py.File):
    dataset = file.create_dataset("d", data=np.zeros(3, "V2"))
    assert objects.tagged_name(dataset.id) == ""
    dataset.attrs["dtype"] = "bfloat16"
    assert objects.tagged_name(dataset.id) == "bfloat16"


def test_objects_are_found_by_path(file: h5py.File):
    file["a/b"] = 1
    root = h5py.h5g.open(file.id, b"/")
    assert objects.object_at(root, "") is root
    assert h5py.h5i.get_name(objects.object_at(root, "a/b")) == b"/a/b"


def virtual(file: h5py.File) -> Any:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "d", (4,))
    return file.create_virtual_dataset("d", layout)


def external(file: h5py.File) -> Any:
    return file.create_dataset("d", (4,), "f4", external=[("other.raw", 0, 16)])


@pytest.mark.parametrize(("make", "words"), [(virtual, "virtual dataset"), (external, "is in another file")])
def test_elements_in_other_files_are_refused(make: Any, words: str, file: h5py.File):
    with pytest.raises(DamagedError, match=words):
        objects.check_storage(make(file).id, PLACE)


def test_an_unknown_filter_is_unsupported_and_a_huge_chunk_damage(file: h5py.File):
    known = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    known.set_chunk((1 << 28,))
    space = h5py.h5s.create_simple((1 << 28,))
    huge = h5py.h5d.create(file.id, b"huge", h5py.h5t.NATIVE_DOUBLE, space, known)
    with pytest.raises(DamagedError, match="bytes in a chunk"):
        objects.check_filters(huge, PLACE)
    known.set_chunk((4,))
    known.set_filter(40000, h5py.h5z.FLAG_OPTIONAL)
    strange = h5py.h5d.create(file.id, b"strange", h5py.h5t.NATIVE_DOUBLE, space, known)
    with pytest.raises(UnsupportedError, match="filter 40000"):
        objects.check_filters(strange, PLACE)


def test_spans_are_those_of_elements_and_of_chunks(file: h5py.File):
    file["plain"] = np.arange(6, dtype="u1")
    file.create_dataset("packed", data=np.zeros((4, 2)), chunks=(2, 2), compression="gzip")
    file.create_dataset("empty", (2,), "f4", chunks=(1,))
    spans = {name: objects.stored_spans(file[name].id, ()) for name in file}
    assert spans["plain"] == [(file["plain"].id.get_offset(), 6)]
    chunks = [file["packed"].id.get_chunk_info(i) for i in range(2)]
    assert sorted(spans["packed"]) == sorted((chunk.byte_offset, chunk.size) for chunk in chunks)
    assert spans["empty"] == []


def test_a_taken_chunk_is_the_last_that_is_looked_at(file: h5py.File):
    dataset = file.create_dataset("d", data=np.zeros(100), chunks=(1,)).id
    first, _ = objects.stored_spans(dataset, ())[0]
    assert objects.stored_spans(dataset, {first}) == [(first, 8)]


def test_attributes_that_no_header_holds(tmp_path: Path):
    with h5py.File(tmp_path / "b.h5", "w", libver="latest") as file:
        dataset = file.create_dataset("d", (2,), "f4")
        dataset.attrs["none"], dataset.attrs["empty"] = np.zeros(0), h5py.Empty("f4")
        dataset.attrs["small"] = np.zeros(60_000, "u1")
        objects.check_attributes(dataset.id, PLACE)
        dataset.attrs["large"] = np.zeros(70_000, "u1")
        with pytest.raises(UnsupportedError, match="has an attribute of 70000 bytes") as caught:
            objects.check_attributes(dataset.id, PLACE)
    assert caught.value.hint == "del h5py.File(FILE, 'r+')['d'].attrs['large']"


def test_chunks_that_follow_one_another_are_one_span():
    spans = {100: (50, "a"), 150: (50, "a"), 200: (10, "b"), 300: (5, "a"), 90: (10, "a")}
    assert objects.joined(spans) == [[90, 110, "a"], [200, 10, "b"], [300, 5, "a"]]

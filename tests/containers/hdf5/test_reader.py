"""HDF5 files, against h5py: read as they are, and refused where they reach out of themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from chkpt_channels.containers.hdf5 import objects as hdf5_objects
from chkpt_channels.containers.hdf5 import reader as hdf5
from chkpt_channels.core.errors import DamagedError, UnsupportedError
from chkpt_channels.storage.source import Source

RANDOM = np.random.default_rng(0)
CUBE = RANDOM.normal(size=(6, 5, 4)).astype("f4")
Make = Callable[[h5py.File], Any]


def made(path: Path, make: Make, **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        make(file)
    return path


def opened(path: Path, **options: Any) -> hdf5.Hdf5:
    source = Source(path)
    return hdf5.Hdf5(source, source.location, **options)


def compact(file: h5py.File) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.COMPACT)
    space, kind = h5py.h5s.create_simple(CUBE.shape), h5py.h5t.py_create(CUBE.dtype)
    h5py.h5d.create(file.id, b"d", kind, space, layout).write(h5py.h5s.ALL, h5py.h5s.ALL, CUBE)


KINDS: dict[str, Make] = {
    "contiguous": lambda f: f.create_dataset("d", data=CUBE),
    "gzip": lambda f: f.create_dataset("d", data=CUBE, chunks=(2, 5, 3), compression="gzip", shuffle=True, fletcher32=True),
    "lzf": lambda f: f.create_dataset("d", data=CUBE, compression="lzf"),
    "chunks": lambda f: f.create_dataset("d", data=CUBE, chunks=(4, 2, 4), maxshape=(None, 5, 4)),
    "compact": compact,
    "big endian": lambda f: f.create_dataset("d", data=CUBE.astype(">f4")),
    "half": lambda f: f.create_dataset("d", data=CUBE.astype("f2")),
    "integers": lambda f: f.create_dataset("d", data=np.arange(-3, 3)),
    "unsigned": lambda f: f.create_dataset("d", data=np.arange(3, dtype="u1")),
    "truths": lambda f: f.create_dataset("d", data=np.array([True, False])),
    "one number": lambda f: f.create_dataset("d", data=np.float64(3)),
    "nothing": lambda f: f.create_dataset("d", data=np.zeros((0, 3), "f4")),
    "not written": lambda f: f.create_dataset("d", (3, 4), "f4", fillvalue=7),
    "inner": lambda f: f.create_dataset("a/b/c/d", data=CUBE),
}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_dataset_reads_as_h5py_reads_it(kind: str, libver: str, tmp_path: Path):
    file = opened(made(tmp_path / "a.h5", KINDS[kind], libver=libver))
    with h5py.File(tmp_path / "a.h5") as truth:
        ((path, dataset),) = file.datasets.items()
        values = truth[path][()]
        native = values.astype(values.dtype.newbyteorder("="))
        assert (dataset.dtype, dataset.shape) == (native.dtype.name, values.shape)
        assert b"".join(file.chunks(path)) == native.tobytes()


def test_the_bytes_that_keras_marks_are_bfloat16(tmp_path: Path):
    def make(file: h5py.File) -> None:
        for name in ("marked", "not"):
            file[name] = CUBE[0, 0].view("V2")
        file["marked"].attrs["dtype"] = "bfloat16"

    file = opened(made(tmp_path / "a.h5", make))
    assert [(path, d.dtype, d.shape) for path, d in file.datasets.items()] == [("marked", "bfloat16", (8,))]
    assert b"".join(file.chunks("marked")) == CUBE[0, 0].tobytes()


def test_what_is_no_array_of_numbers_is_left_alone(tmp_path: Path):
    def make(file: h5py.File) -> None:
        file["text"], file["nothing"], file["type"] = ["a", "b"], h5py.Empty("f4"), np.dtype("f4")
        file["pairs"] = np.zeros(2, [("a", "f4"), ("b", "i4")])
        file["reference"] = file["text"].ref

    assert opened(made(tmp_path / "a.h5", make)).datasets == {}


def test_large_datasets_come_in_small_boxes_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hdf5_objects, "CHUNK_BYTES", 40)
    file = opened(made(tmp_path / "a.h5", KINDS["gzip"]))
    pieces = list(file.chunks("d"))
    assert b"".join(pieces) == CUBE.tobytes()
    assert max(map(len, pieces)) <= 40


def test_links_in_circles_and_second_names(tmp_path: Path):
    def make(file: h5py.File) -> None:
        group = file.create_group("a/b")
        group["up"], group["top"], file["a/second"] = file["a"], file["/"], group
        group["d"] = CUBE
        file["d2"], file["soft"] = group["d"], h5py.SoftLink("/a/b/d")

    file = opened(made(tmp_path / "a.h5", make))
    assert list(file.datasets) == ["a/b/d"]
    assert file.aliases["d2"] == "a/b/d"


def nest(file: h5py.File) -> None:
    group: Any = file
    for _ in range(1000):
        group = group.create_group("g")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "d", (3,))
    file.create_virtual_dataset("d", layout)


HOSTILE: dict[str, tuple[Make, str]] = {
    "external link": (lambda f: f.__setitem__("d", h5py.ExternalLink("/etc/passwd", "/x")), "a link into another file"),
    "external link behind a soft one": (
        lambda f: (f.__setitem__("z", h5py.ExternalLink("/etc/passwd", "/")), f.__setitem__("d", h5py.SoftLink("/z/x"))),
        "z: is a link into another file",
    ),
    "external storage": (lambda f: f.create_dataset("d", (3,), "f4", external=[("/etc/passwd", 0, 12)]), "is in another file"),
    "virtual": (virtual, "virtual dataset"),
    "dangling": (lambda f: f.__setitem__("d", h5py.SoftLink("/nowhere")), "leads nowhere"),
    "looping": (
        lambda f: (f.__setitem__("d", h5py.SoftLink("/e")), f.__setitem__("e", h5py.SoftLink("/d"))),
        "leads nowhere",
    ),
    "27 TiB": (lambda f: f.create_dataset("d", (1 << 40, 7), "f4"), "declares 30786325577728 bytes and stores 0"),
    "27 TiB in chunks": (lambda f: f.create_dataset("d", (1 << 40, 7), "f4", chunks=(1024, 7)), "and stores 0"),
    "deep": (nest, "has 501 groups around it; 500 are the most"),
}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_reaches_out_or_lies_is_damaged(name: str, libver: str, tmp_path: Path):
    make, message = HOSTILE[name]
    with pytest.raises(DamagedError, match=message):
        opened(made(tmp_path / "a.h5", make, libver=libver))


def unknown_filter(file: h5py.File) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((3,))
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file.id, b"d", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((3,)), properties).write(
        h5py.h5s.ALL, h5py.h5s.ALL, CUBE[0, 0, :3]
    )


def test_a_filter_that_is_not_built_in_is_refused_when_it_is_needed(tmp_path: Path):
    file = opened(made(tmp_path / "a.h5", unknown_filter))
    with pytest.raises(UnsupportedError, match=r"d: is packed by filter 32015"):
        list(file.chunks("d"))


def test_a_chunk_too_large_to_unpack_is_damaged(tmp_path: Path):
    def make(file: h5py.File) -> None:
        file.create_dataset("d", (1 << 29,), "f4", chunks=(1 << 29,), compression="gzip")
        file["e"] = CUBE

    path = made(tmp_path / "a.h5", make)
    with pytest.raises(DamagedError, match=r"d: declares"):
        opened(path)


def test_a_damaged_chunk_is_seen(tmp_path: Path):
    path = made(tmp_path / "a.h5", KINDS["gzip"])
    with h5py.File(path) as file:
        offset = file["d"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="cannot read it"):
        list(opened(path).chunks("d"))


def test_the_folders_of_filter_plugins_are_left_as_they_were(tmp_path: Path):
    h5py.h5pl.prepend(b"/some/folder")
    before = [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]
    opened(made(tmp_path / "a.h5", KINDS["gzip"]))
    assert [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())] == before
    h5py.h5pl.remove(0)

"""Edits of HDF5 files, against h5py: the dataset or the text is another one, and nothing else is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from chkpt_channels.containers.hdf5 import editor
from chkpt_channels.containers.hdf5.editor import NewDataset
from chkpt_channels.containers.hdf5.reader import Hdf5
from chkpt_channels.core.errors import UnsupportedError
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import spliced
from tests.containers.hdf5.test_reader import CUBE, KINDS, RANDOM, compact, made, opened, unknown_filter


def edited(path: Path, datasets: dict[str, NewDataset | None], texts: dict[tuple[str, str], Any] | None = None) -> Path:
    out, splices = path.with_name("out.h5"), editor.splices(opened(path), datasets, texts or {})
    out.write_bytes(spliced(path.read_bytes(), [(s.start, s.stop, s.data()) for s in splices]))
    return out


def objects(path: Path) -> dict[str, Any]:
    """Everything in a file, as far as h5py shows it."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:

        def look(name: str, item: Any) -> None:
            attributes = {key: (str(value), item.attrs.get_id(key).dtype) for key, value in item.attrs.items()}
            content = (
                (item.dtype, np.asarray(item[()]).tolist(), item.compression, item.fletcher32)
                if isinstance(item, h5py.Dataset)
                else ()
            )
            found[name] = (attributes, content)

        look("/", file["/"])
        file.visititems(look)
    return found


def furnished(file: h5py.File) -> None:
    """A file with something of everything around the dataset that is edited."""
    KINDS["gzip"](file.create_group("g"))
    dataset = file["g/d"]
    attributes = {"text": "é", "texts": ["a", "bcd"], "bytes": np.bytes_(b"xyz"), "numbers": np.arange(3), "up": file["g"].ref}
    for name, value in attributes.items():
        dataset.attrs[name] = file.attrs[name] = value
    dataset.attrs["empty"] = h5py.Empty("f4")
    file["same"], file["soft"] = dataset, h5py.SoftLink("/g/d")
    file["others/a"], file["others/b"] = np.arange(1000), ["some", "text"]


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"userblock_size": 1024}, {"track_order": True}], ids=str)
@pytest.mark.parametrize("size", [1, 4])
def test_an_edit_changes_the_dataset_and_nothing_else(size: int, options: dict[str, Any], tmp_path: Path):
    path = made(tmp_path / "a.h5", furnished, **options)
    new = RANDOM.normal(size=(6, 5, size)).astype("f4")
    out = edited(path, {"g/d": NewDataset(new.shape, new)})
    before, after = objects(path), objects(out)
    with h5py.File(out) as file:
        dataset = file["g/d"]
        assert np.array_equal(dataset[()], new)
        assert (dataset.chunks, dataset.compression, dataset.shuffle, dataset.fletcher32) == (
            (2, 5, min(3, size)),
            "gzip",
            True,
            True,
        )
        assert file["same"] == dataset == file["soft"]
        assert file[dataset.attrs["up"]] == file["g"]
        assert file.userblock_size == options.get("userblock_size", 0)
    name = next(name for name in ("g/d", "same") if name in before)
    assert after[name][0] == before[name][0]
    assert {**after, name: 0} == {**before, name: 0}
    assert list(after) == list(before)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("inner", "one number", "nothing", "not written", "truths")])
def test_every_kind_of_dataset_keeps_its_kind(kind: str, tmp_path: Path):
    path = made(tmp_path / "a.h5", KINDS[kind])
    with h5py.File(path) as file:
        old = file["d"][()]
        layout = file["d"].id.get_create_plist().get_layout()
    new = np.concatenate([old, old]).astype(old.dtype.newbyteorder("="))
    with h5py.File(edited(path, {"d": NewDataset(new.shape, new)})) as file:
        assert (file["d"].dtype, file["d"].id.get_create_plist().get_layout()) == (old.dtype, layout)
        assert np.array_equal(file["d"][()], new)


def test_a_compact_dataset_that_grows_too_large_is_stored_apart(tmp_path: Path):
    new = RANDOM.normal(size=(100, 100, 4)).astype("f4")
    with h5py.File(edited(made(tmp_path / "a.h5", compact), {"d": NewDataset(new.shape, new)})) as file:
        assert np.array_equal(file["d"][()], new)


@pytest.mark.parametrize("text", ["short", "much longer than before " * 400])
@pytest.mark.parametrize("old", ["a text", np.bytes_(b"a text of fixed length"), np.array(b"one", dtype="S10")], ids=repr)
def test_texts_are_replaced_and_keep_their_kind(old: Any, text: str, tmp_path: Path):
    path = made(tmp_path / "a.h5", lambda f: (f.attrs.__setitem__("t", old), f.attrs.__setitem__("other", [1, 2])))
    with h5py.File(edited(path, {}, {("", "t"): text})) as file, h5py.File(path) as before:
        found = file.attrs["t"]
        assert (found.decode() if isinstance(found, bytes) else found) == text
        assert type(found) is type(before.attrs["t"])
        assert list(file.attrs["other"]) == [1, 2]


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"track_order": True}], ids=str)
def test_a_dataset_and_a_list_are_added_and_nothing_else_changes(options: dict[str, Any], tmp_path: Path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", **options) as file:
        furnished(file)
    new = NewDataset((2, 3), np.arange(6, dtype="float32").reshape(2, 3))
    out = edited(path, {"new/inner/d": new}, {("g", "texts"): ["x", "é", "long" * 9], ("new", "names"): ["d"]})
    before, after = objects(path), objects(out)
    with h5py.File(out) as file:
        assert np.array_equal(file["new/inner/d"], new.values)
        assert file["new/inner/d"].dtype == np.float32
        assert list(file["g"].attrs["texts"]) == ["x", "é", "long" * 9]
        assert list(file["new"].attrs["names"]) == ["d"]
    assert {name: after[name] for name in before if name != "g"} == {name: before[name] for name in before if name != "g"}
    assert after.keys() - before.keys() == {"new", "new/inner", "new/inner/d"}


def test_the_same_edit_gives_the_same_bytes_at_another_time(tmp_path: Path):
    path = made(tmp_path / "a.h5", furnished)
    new = {"g/d": NewDataset((6, 5, 1), CUBE[:, :, :1])}
    first = edited(path, new, {("", "text"): "x"}).read_bytes()
    time.sleep(1.1)
    assert edited(path, new, {("", "text"): "x"}).read_bytes() == first


def test_a_filter_that_is_not_built_in_cannot_be_written(tmp_path: Path):
    file = opened(made(tmp_path / "a.h5", unknown_filter))
    with pytest.raises(UnsupportedError, match="filter 32015"):
        editor.splices(file, {"d": NewDataset((1,), CUBE[0, 0, :1])}, {})


def test_no_edit_is_no_splice(tmp_path: Path):
    assert editor.splices(opened(made(tmp_path / "a.h5", furnished)), {}, {}) == []


def test_a_file_inside_of_another_is_read_and_edited_in_place(tmp_path: Path):
    inner = made(tmp_path / "inner.h5", furnished).read_bytes()
    outer = tmp_path / "outer"
    outer.write_bytes(b"x" * 777 + inner + b"y" * 99)
    source = Source(outer)
    file = Hdf5(source, source.location, 777, len(inner))
    assert b"".join(file.chunks("others/a")) == np.arange(1000).tobytes()
    new = editor.splices(file, {"g/d": NewDataset((6, 5, 1), CUBE[:, :, :1])}, {})
    (tmp_path / "new.h5").write_bytes(spliced(inner, [(s.start, s.stop, s.data()) for s in new]))
    assert np.array_equal(h5py.File(tmp_path / "new.h5")["same"][()], CUBE[:, :, :1])


def test_a_group_is_left_out_and_nothing_else_changes(tmp_path: Path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        furnished(file)
        file["gone/inner/d"] = np.arange(6)
    out = edited(path, {"gone": None})
    before, after = objects(path), objects(out)
    assert before.keys() - after.keys() == {"gone", "gone/inner", "gone/inner/d"}
    assert after == {name: before[name] for name in after}


def test_what_is_put_in_the_place_of_a_group_that_goes(tmp_path: Path):
    path, new = tmp_path / "a.h5", np.arange(20_000, dtype="f4")
    with h5py.File(path, "w") as file:
        file["g/deep/big"], file["kept"], file["k"] = np.ones(50_000, "f4"), np.arange(1000), np.zeros(3, "f4")
    with h5py.File(edited(path, {"g": None, "k": NewDataset(new.shape, new)})) as file:
        assert sorted(file) == ["k", "kept"]
        np.testing.assert_array_equal(file["k"][()], new)
        np.testing.assert_array_equal(file["kept"][()], np.arange(1000))
    assert (tmp_path / "out.h5").stat().st_size <= path.stat().st_size  # in its very place

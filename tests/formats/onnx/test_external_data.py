"""The files beside a model: written by onnx, read in parts, and refused where they are not what the model says."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from chkpt_channels import DamagedError, FileSystemError, convert, verify
from chkpt_channels.core.tensors import Edits
from chkpt_channels.formats.onnx import FORMATS, external_data
from chkpt_channels.formats.onnx.checkpoint import Onnx
from chkpt_channels.formats.onnx.external_data import check_sums, locations
from chkpt_channels.storage.source import Source
from tests.support.onnx_models import model, node, noise, rewritten, run

WEIGHTS = {"kernel": noise(5, 3, 3, 3), "bias": noise(5, seed=1)}
DATA = "a.data"
LOOPS = pytest.mark.skipif(sys.version_info >= (3, 13), reason="Path.resolve leaves loops as they are")
Change = Callable[[ModelProto], object]


def made() -> ModelProto:
    return model([node("Conv", ["image", "kernel", "bias"], ["out"])], WEIGHTS)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """The model as onnx saves it with its tensors in one file beside it, and then changed."""

    def save(change: Change = lambda _: None) -> Path:
        path = tmp_path / "a.onnx"
        onnx.save_model(made(), path, save_as_external_data=True, location=DATA, size_threshold=0)
        whole = onnx.load(path, load_external_data=False)
        change(whole)
        path.write_bytes(whole.SerializeToString())
        return path

    return save


@pytest.fixture
def read(saved: Callable[..., Path]) -> Iterator[Callable[..., Onnx]]:
    sources = []

    def open_(change: Change = lambda _: None) -> Onnx:
        sources.append(Source(saved(change)))
        return FORMATS[0].open(sources[-1])

    yield open_
    for source in sources:
        source.close()


Read = Callable[..., Onnx]


def entry(whole: ModelProto, k: int, key: str) -> onnx.StringStringEntryProto:
    return next(pair for pair in whole.graph.initializer[k].external_data if pair.key == key)


def test_what_onnx_saved_beside_a_model_is_read(read: Read):
    checkpoint = read()
    assert all(weight.is_external for weight in checkpoint.model.weights.values())
    assert {name: checkpoint.load(name).tobytes() for name in WEIGHTS} == {n: w.tobytes() for n, w in WEIGHTS.items()}


def test_entries_are_those_of_the_file(read: Read):
    found = read().model.weights["bias"].external()
    assert found["location"] == DATA
    assert {"offset", "length"} <= found.keys()


def test_a_file_that_is_missing_is_told_when_it_is_read(read: Read, tmp_path: Path):
    def gone(_: ModelProto) -> None:
        (tmp_path / DATA).unlink()

    checkpoint = read(gone)
    with pytest.raises(FileSystemError, match=r"a\.data: no such file or directory$"):
        checkpoint.load("kernel")


@pytest.mark.parametrize(("size", "name"), [(0, "kernel"), (539, "kernel"), (540, "bias")])
def test_a_file_that_is_too_short_is_refused(size: int, name: str, read: Read, tmp_path: Path):
    needed = WEIGHTS[name].nbytes
    with pytest.raises(DamagedError, match=rf"a\.data: {name}: the file ends at {size}, inside its {needed} bytes, at byte \d+$"):
        read(lambda _: os.truncate(tmp_path / DATA, size))


def test_bytes_behind_a_part_without_a_length_are_refused(read: Read, tmp_path: Path):
    """onnx would read up to the end of the file, onnxruntime as much as the shape needs."""

    def unbounded(whole: ModelProto) -> None:
        whole.graph.initializer[0].external_data.remove(entry(whole, 0, "length"))

    size = WEIGHTS["kernel"].nbytes
    with pytest.raises(
        DamagedError, match=rf"a\.data: kernel: no length is given, and \d+ bytes follow for its {size}, at byte 0$"
    ):
        read(unbounded)


def test_a_last_part_needs_no_length(read: Read):
    def unbounded(whole: ModelProto) -> None:
        whole.graph.initializer[1].external_data.remove(entry(whole, 1, "length"))

    assert np.array_equal(read(unbounded).load("bias"), WEIGHTS["bias"])


@pytest.mark.parametrize(("make", "kind"), [(Path.mkdir, "a folder"), (os.mkfifo, "a FIFO")], ids=["folder", "FIFO"])
def test_what_is_no_file_is_refused(make: Callable[[Path], object], kind: str, read: Read, tmp_path: Path):
    def replace(_: ModelProto) -> None:
        (tmp_path / DATA).unlink()
        make(tmp_path / DATA)

    with pytest.raises(DamagedError, match=rf"a\.data: is {kind}; the model says that it holds tensors$"):
        read(replace)


def summed(digest: Callable[[], str]) -> Change:
    return lambda whole: whole.graph.initializer[0].external_data.add(key="checksum", value=digest())


@pytest.mark.parametrize("spelled", [str.lower, str.upper])
def test_a_checksum_that_is_right_says_nothing(spelled: Callable[[str], str], read: Read, tmp_path: Path):
    data = tmp_path / DATA
    checkpoint = read(summed(lambda: spelled(hashlib.sha1(data.read_bytes(), usedforsecurity=False).hexdigest())))
    check_sums(checkpoint.model, tmp_path)
    assert set(checkpoint.companions(tmp_path / "other" / "b.onnx", edited=True)) == {DATA}


@pytest.mark.parametrize("digest", ["0" * 40, "no digest at all"])
def test_a_checksum_that_is_wrong_is_refused(digest: str, read: Read, tmp_path: Path):
    checkpoint = read(summed(lambda: digest))
    with pytest.raises(DamagedError, match=rf"a\.data: kernel: the file's SHA-1 is [0-9a-f]{{40}}, not '{digest}'$"):
        check_sums(checkpoint.model, tmp_path)
    with pytest.raises(DamagedError):
        checkpoint.companions(tmp_path / "b.onnx", edited=True)


def test_a_file_of_many_tensors_is_summed_once(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def all_summed(whole: ModelProto) -> None:
        for stored in whole.graph.initializer:
            stored.external_data.add(key="checksum", value=hashlib.sha1((tmp_path / DATA).read_bytes()).hexdigest())

    checkpoint, summed_files = read(all_summed), []
    sha1 = external_data._sha1
    monkeypatch.setattr(external_data, "_sha1", lambda path: summed_files.append(path) or sha1(path))
    checkpoint.companions(tmp_path / "b.onnx", edited=True)
    assert summed_files == [tmp_path / DATA]


def test_one_file_is_named_after_the_output_and_several_after_both(read: Read, tmp_path: Path):
    assert read().companions(tmp_path / "out.onnx", edited=True) == {DATA: "out.onnx.data"}

    def two(whole: ModelProto) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "b.bin").write_bytes(WEIGHTS["bias"].tobytes())
        entry(whole, 1, "location").value = "sub/b.bin"
        entry(whole, 1, "offset").value = "0"

    checkpoint = read(two)
    assert np.array_equal(checkpoint.load("bias"), WEIGHTS["bias"])
    assert checkpoint.companions(tmp_path / "out.onnx", edited=True) == {DATA: "out.onnx.a.data", "sub/b.bin": "out.onnx.b.bin"}


def test_files_of_one_base_name_stay_apart(read: Read, tmp_path: Path):
    def apart(whole: ModelProto) -> None:
        for k, (name, value) in enumerate(WEIGHTS.items()):
            (tmp_path / name).mkdir()
            (tmp_path / name / "w.bin").write_bytes(value.tobytes())
            entry(whole, k, "location").value = f"{name}/w.bin"
            entry(whole, k, "offset").value = "0"

    new = read(apart).companions(tmp_path / "m.onnx", edited=True)
    assert new == {"kernel/w.bin": "m.onnx.w.bin", "bias/w.bin": "m.onnx.1.w.bin"}


@pytest.mark.parametrize("name", ["a\0b", pytest.param("loop", marks=LOOPS)])
def test_an_output_that_cannot_be_resolved_is_an_error_of_the_system(name: str, read: Read, tmp_path: Path):
    checkpoint = read()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileSystemError, match=r"null|loop"):
        checkpoint.companions(tmp_path / name / "out.onnx", edited=False)


def test_a_copy_in_the_same_folder_shares_the_files(read: Read, tmp_path: Path):
    assert read().companions(tmp_path / "out.onnx", edited=False) == {}
    assert read().companions(tmp_path / "elsewhere" / "out.onnx", edited=False) == {DATA: "out.onnx.data"}


NEW_NAME = "renamed/of another length.data"


def test_a_copy_names_the_new_files(saved: Callable[..., Path]):
    with Source(saved()) as source:
        checkpoint = FORMATS[0].open(source)
        assert isinstance(checkpoint, Onnx)
        assert list(locations(checkpoint.model)) == [DATA]
        splices = checkpoint.splices(Edits(companions={DATA: NEW_NAME}))
        after = rewritten(checkpoint, splices)
        assert {e.value for t in after.graph.initializer for e in t.external_data if e.key == "location"} == {NEW_NAME}
        assert [s.start for s in checkpoint.splices(Edits(companions={DATA: NEW_NAME}))] == [s.start for s in splices]
        assert checkpoint.splices(Edits(companions={DATA: DATA, "other": "b"})) == []


@pytest.mark.parametrize("apart", [False, True], ids=["one file", "a file for each tensor"])
@pytest.mark.parametrize("method", ["auto", "broadcast", "stack", "sum"])
def test_constants_beside_the_model_are_read_where_they_are(method: str, apart: bool, tmp_path: Path):
    """The written model is checked before its data files have their new names; in a folder they come later, too."""
    weights = {**WEIGHTS, "mean": np.array([0.1, 0.2, 0.4], np.float32).reshape(3, 1, 1)}
    nodes = [node("Sub", ["image", "mean"], ["x"]), node("Conv", ["x", "kernel", "bias"], ["out"])]
    home = tmp_path / "home"
    home.mkdir()
    location = None if apart else "weights.data"
    onnx.save_model(
        model(nodes, weights), home / "a.onnx", save_as_external_data=True, all_tensors_to_one_file=not apart,
        location=location, size_threshold=0,
    )  # fmt: skip
    pairs = [(home / "a.onnx", tmp_path / "b.onnx"), (home, tmp_path / "whole")]
    image = noise(1, 1, 8, 8)
    (old,) = run(onnx.load(home / "a.onnx"), image.repeat(3, 1))
    for source, out in pairs:
        convert(source, out, "gray", method=method)
        (new,) = run(onnx.load(out / "a.onnx" if out.is_dir() else out), image)
        np.testing.assert_allclose(new, old, atol=1e-5)
        assert verify(source, out, "gray", method=method).ok

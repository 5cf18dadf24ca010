"""Keras's zip archives: the configuration and the HDF5 file inside are edited, and the archive stays what it was."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from chkpt_channels import UnsupportedError, convert, inspect, verify
from chkpt_channels.core.errors import DamagedError
from tests.support.files import FIXTURES, opened

FOLDER = FIXTURES / "keras_zip"
EVERY = sorted(path for path in FOLDER.glob("*.keras") if path.name != "no_conv.keras")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def headers(path: Path) -> list[tuple[Any, ...]]:
    """What the archive says of its members, but for content."""
    with zipfile.ZipFile(path) as archive:
        return [(i.filename, i.date_time, i.compress_type, i.external_attr, i.flag_bits, i.extra) for i in archive.infolist()]


def configuration(path: Path) -> Any:
    return json.loads(members(path)["config.json"])


def rewritten(source: Path, path: Path, changes: dict[str, bytes | None], order: list[str] | None = None) -> Path:
    """The archive with other members; None takes one out."""
    old = members(source)
    with zipfile.ZipFile(path, "w") as archive:
        for name in order or [*old, *(n for n in changes if n not in old)]:
            data = changes.get(name, old.get(name))
            if data is not None:
                archive.writestr(zipfile.ZipInfo(name), data)
    return path


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_the_archive_stays_what_it_was(path: Path, tmp_path: Path):
    to = 3 if path.stem == "gray" else "gray"
    report, out = convert(path, tmp_path / "b.keras", to=to), tmp_path / "b.keras"
    before, after = members(path), members(out)
    assert headers(out) == headers(path)
    assert before["metadata.json"] == after["metadata.json"]
    assert (before["model.weights.h5"] == after["model.weights.h5"]) == (report.kernels[0].method == "stack")
    assert json.dumps(json.loads(after["config.json"])).encode() == after["config.json"]
    assert verify(path, out).ok


def counts(entry: Any, at: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Every number and text in a JSON document by its path."""
    if isinstance(entry, dict | list):
        items = entry.items() if isinstance(entry, dict) else enumerate(entry)
        return {path: value for key, inner in items for path, value in counts(inner, (*at, key)).items()}
    return {at: entry}


@pytest.mark.parametrize("name", ["functional", "sequential", "nested", "two_images", "volume", "signal", "keras2"])
def test_every_shape_on_the_way_follows_and_nothing_else(name: str, tmp_path: Path):
    convert(FOLDER / f"{name}.keras", tmp_path / "b.keras", to=4)
    before, after = counts(configuration(FOLDER / f"{name}.keras")), counts(configuration(tmp_path / "b.keras"))
    changed = {path: (before[path], after[path]) for path in before if before[path] != after[path]}
    assert before.keys() == after.keys()
    assert set(changed.values()) == {(3, 4)}
    shapes = {"batch_shape", "batch_input_shape", "input_shape", "build_input_shape", "shape"}
    assert all(shapes & set(path) for path in changed)
    left = [path for path, value in after.items() if value == 3 and path[-2:-1] and shapes & {path[-2]} and path[-1] >= 2]
    assert left == []


def test_depthwise_settings_follow(tmp_path: Path):
    for name in ("depthwise", "separable"):
        convert(FOLDER / f"{name}.keras", tmp_path / f"{name}.keras", to="gray")
        conv1 = configuration(tmp_path / f"{name}.keras")["config"]["layers"][1]
        assert (conv1["config"]["depth_multiplier"], conv1["build_config"]["input_shape"][-1]) == (6, 1)


def test_statistics_in_lists_are_chosen(tmp_path: Path):
    convert(FOLDER / "listed.keras", tmp_path / "b.keras", to=4)
    norm = configuration(tmp_path / "b.keras")["config"]["layers"][1]["config"]
    assert (norm["mean"], norm["variance"]) == ([0.485, 0.456, 0.406, 0.485], [0.05, 0.06, 0.07, 0.05])


def test_slots_of_the_kernel_are_reset_and_the_counter_stays(tmp_path: Path):
    path, out = FOLDER / "nested.keras", tmp_path / "b.keras"
    convert(path, out, to="gray")
    before, after = (h5py.File(io.BytesIO(members(p)["model.weights.h5"]))["optimizer/vars"] for p in (path, out))
    assert after["0"][()] == before["0"][()] == 1
    assert [after[i].shape for i in "23"] == [(3, 3, 1, 8)] * 2
    assert not any(after[i][()].any() for i in "23")
    assert all(np.array_equal(before[i][()], after[i][()]) for i in before if i not in "23")


def test_a_deflated_archive_is_deflated_again(tmp_path: Path):
    convert(FOLDER / "deflated.keras", tmp_path / "b.keras", to="gray")
    with zipfile.ZipFile(tmp_path / "b.keras") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        file = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    assert file["layers/conv2d/vars/0"].shape == (3, 3, 1, 8)


def test_weights_in_front_of_the_configuration(tmp_path: Path):
    order = ["model.weights.h5", "config.json", "metadata.json"]
    path = rewritten(FOLDER / "functional.keras", tmp_path / "a.keras", {}, order)
    convert(path, tmp_path / "b.keras", to=4)
    assert list(members(tmp_path / "b.keras")) == order
    assert verify(path, tmp_path / "b.keras").ok


def test_other_members_are_copied(tmp_path: Path):
    path = rewritten(FOLDER / "functional.keras", tmp_path / "a.keras", {"assets/vocabulary.txt": b"x" * 1000})
    convert(path, tmp_path / "b.keras", to="gray")
    assert members(tmp_path / "b.keras")["assets/vocabulary.txt"] == b"x" * 1000


def test_keras_2_12_called_its_layers_otherwise(tmp_path: Path):
    weights = io.BytesIO(members(FOLDER / "functional.keras")["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    path = rewritten(FOLDER / "functional.keras", tmp_path / "a.keras", {"model.weights.h5": weights.getvalue()})
    assert [conv.tensor.name for conv in inspect(path).first_convs] == ["_layer_checkpoint_dependencies/conv2d/vars/0"]
    assert convert(path, tmp_path / "b.keras", to="gray").status == "converted"


def test_one_flipped_bit_in_the_weights_is_seen(tmp_path: Path):
    """Wherever it is: the part that is not edited is read against its CRC too."""
    data = bytearray((FOLDER / "functional.keras").read_bytes())
    with opened(FOLDER / "functional.keras") as checkpoint:
        start = data.index(members(FOLDER / "functional.keras")["model.weights.h5"][:64])
        offset = checkpoint.file.datasets["layers/dense/vars/0"].offset
    data[start + offset + 3] ^= 1
    (tmp_path / "a.keras").write_bytes(data)
    with pytest.raises(DamagedError, match="CRC-32"):
        convert(tmp_path / "a.keras", tmp_path / "b.keras", to="gray")
    assert not (tmp_path / "b.keras").exists()


def test_a_missing_member_is_damage(tmp_path: Path):
    path = rewritten(FOLDER / "functional.keras", tmp_path / "a.keras", {"config.json": None, "old_config.json": b"{}"})
    with pytest.raises(DamagedError, match=r"config\.json: is missing"):
        inspect(path)


def test_a_model_of_the_users_own_class_is_refused(tmp_path: Path):
    text = json.dumps({"module": "mine", "class_name": "Net", "config": {"depth": 3}, "registered_name": "Net"}).encode()
    path = rewritten(FOLDER / "functional.keras", tmp_path / "a.keras", {"config.json": text})
    with pytest.raises(UnsupportedError, match=r"config\.json: the model is a custom class") as caught:
        convert(path, tmp_path / "b.keras")
    assert "save_weights" in caught.value.hint


def test_damage_inside_the_weights_names_them(tmp_path: Path):
    weights = members(FOLDER / "functional.keras")["model.weights.h5"][:-100]
    path = rewritten(FOLDER / "functional.keras", tmp_path / "a.keras", {"model.weights.h5": weights})
    with pytest.raises(DamagedError, match=r"model\.weights\.h5: the HDF5 library cannot read it: .*truncated"):
        inspect(path)

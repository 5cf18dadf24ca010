"""Several files as one checkpoint: tensors of their own files, edits by shard, totals of the index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import DamagedError
from chkpt_channels.core.errors import Location
from chkpt_channels.core.tensors import Edits, OpaqueTensor, TensorEdit
from chkpt_channels.discovery.find import find_first_convs
from chkpt_channels.folders import config_files
from chkpt_channels.folders.config_files import ConfigFile
from chkpt_channels.folders.shards import Shards, is_index, shard_names
from tests.support.files import opened

FIRST = {"conv1.weight": np.ones((8, 3, 7, 7), np.float32), "bn1.weight": np.ones(8, np.float32)}
SECOND = {"fc.weight": np.zeros((5, 8), np.float32)}
WHERE = {**dict.fromkeys(FIRST, "1.safetensors"), **dict.fromkeys(SECOND, "2.safetensors")}


@contextmanager
def shards(
    folder: Path, first: dict[str, Any] = FIRST, second: dict[str, Any] = SECOND, weight_map: Any = WHERE, **metadata: Any
) -> Iterator[Shards]:
    safetensors.numpy.save_file(first, folder / "1.safetensors")
    safetensors.numpy.save_file(second, folder / "2.safetensors")
    index = {"weight_map": weight_map} | ({"metadata": metadata} if metadata else {})
    (folder / "model.index.json").write_text(json.dumps(index))
    with ExitStack() as stack:
        files = [stack.enter_context(opened(folder / name)) for name in ("1.safetensors", "2.safetensors")]
        yield Shards(files, ConfigFile("model.index.json", config_files.read(folder / "model.index.json")), Location(str(folder)))


def gray() -> Edits:
    return Edits(tensors={"conv1.weight": TensorEdit((8, 1, 7, 7), lambda: np.ones((8, 1, 7, 7), np.float32))})


def test_tensors_are_read_from_their_own_file(tmp_path: Path):
    with shards(tmp_path) as store:
        assert set(store.tensors) == {*FIRST, *SECOND}
        assert np.array_equal(store.load("fc.weight"), SECOND["fc.weight"])
        assert b"".join(store.chunks("bn1.weight")) == FIRST["bn1.weight"].tobytes()
        assert store.title.endswith(", 2 shards")


def test_weights_that_cannot_be_read_stand_where_they_are(tmp_path: Path):
    with shards(tmp_path) as store:
        for shard in store.shards:
            shard.opaque = (
                OpaqueTensor("conv2.weight" if shard is store.shards[0] else "x.weight", None, "is sparse", follows=1),
            )
        again = Shards(store.shards, store.index, Location(str(tmp_path)))
        assert [(weight.name, weight.follows) for weight in again.opaque] == [("conv2.weight", 1), ("x.weight", 3)]


def test_edits_go_to_the_shard_of_their_tensor(tmp_path: Path):
    with shards(tmp_path) as store:
        (first, own), (second, none) = store.split_edits(gray())
        assert (first, second) == tuple(store.shards)
        assert list(own.tensors) == ["conv1.weight"]
        assert not none


def test_totals_follow_the_edits(tmp_path: Path):
    numbers = 8 * 2 * 7 * 7
    with shards(tmp_path, total_size=5000, total_parameters=1250) as store:
        assert store.index_edits(gray()) == {
            ("metadata", "total_size"): 5000 - 4 * numbers,
            ("metadata", "total_parameters"): 1250 - numbers,
        }
        assert store.index_edits(Edits()) == {}
    with shards(tmp_path, total_size="large") as store:
        assert store.index_edits(gray()) == {}
    with shards(tmp_path) as store:
        assert store.index_edits(gray()) == {}


def test_a_float_total_stays_one(tmp_path: Path):
    """Keras counts bytes in floats."""
    with shards(tmp_path, total_size=5000.0) as store:
        changed = json.loads(store.index.document.edited(store.index_edits(gray())))
        assert repr(changed["metadata"]["total_size"]) == repr(5000.0 - 4 * 8 * 2 * 7 * 7)


LISTED = {"/layers/conv2d/vars": ["net_00000.weights.h5", "net_00001.weights.h5"], "/layers/dense/vars": "net_00001.weights.h5"}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.safetensors.index.json", "{}", True),  # damaged, not ignored
        ("net.weights.json", json.dumps({"weight_map": LISTED}), True),
        ("class.weights.json", "[1.0, 3.5]", False),
        ("class.weights.json", '{"cat": 1.0}', False),
        ("class.weights.json", '{"weight_map": {"cat": [1]}}', False),
        ("class.weights.json", "cat", False),
        ("weights.json", json.dumps({"weight_map": LISTED}), False),
    ],
)
def test_what_an_index_is(name: str, content: str, expected: bool, tmp_path: Path):
    (tmp_path / name).write_text(content)
    assert is_index(tmp_path / name) is expected


def test_files_of_a_layer_that_is_cut_in_two(tmp_path: Path):
    (tmp_path / "net.weights.json").write_text(json.dumps({"weight_map": LISTED}))
    names = {"net.weights.json", "net_00000.weights.h5", "net_00001.weights.h5"}
    assert shard_names(tmp_path, "net.weights.json", names)[1] == ("net_00000.weights.h5", "net_00001.weights.h5")
    with pytest.raises(DamagedError, match=r"net_00001\.weights\.h5: its shard is missing"):
        shard_names(tmp_path, "net.weights.json", names - {"net_00001.weights.h5"})


def numbered(path: Path, **arrays: np.ndarray) -> None:
    """Weights in Keras 3's tree; its own files are judged with Keras."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"layers/{name.replace('__', '/vars/')}"] = array


def test_a_layer_that_is_cut_in_two_is_read_whole(tmp_path: Path):
    first, second = (tmp_path / f"net_0000{i}.weights.h5" for i in range(2))
    numbered(first, normalization__0=np.ones(3), normalization__1=np.ones(3), normalization__2=np.ones(()))
    numbered(second, conv2d__0=np.ones((3, 3, 3, 8)), conv2d_1__0=np.ones((3, 3, 8, 8)))
    listed = {f"/layers/{name}/vars": second.name for name in ("conv2d", "conv2d_1")} | {
        "/layers/normalization/vars": [first.name]
    }
    (tmp_path / "net.weights.json").write_text(json.dumps({"weight_map": listed}))
    with ExitStack() as stack:
        files = [stack.enter_context(opened(path)) for path in (first, second)]
        index = ConfigFile("net.weights.json", config_files.read(tmp_path / "net.weights.json"))
        store = Shards(files, index, Location(str(tmp_path)))
        (conv,) = find_first_convs(store).first_convs
        assert (conv.tensor.name, conv.in_channels) == ("layers/conv2d/vars/0", 3)
        (op,) = store.graph.preprocessing([conv])
        assert [name for name, _ in op.tensors] == ["layers/normalization/vars/0", "layers/normalization/vars/1"]


def test_a_tensor_in_two_shards(tmp_path: Path):
    with pytest.raises(DamagedError, match=r"fc\.weight: is in two shards"), shards(tmp_path, {**FIRST, **SECOND}):
        pass


def test_a_tensor_that_is_not_where_the_index_says(tmp_path: Path):
    with (
        pytest.raises(DamagedError, match=r"gone\.weight: is not in 2\.safetensors, where the index says it is"),
        shards(tmp_path, weight_map={**WHERE, "gone.weight": "2.safetensors"}),
    ):
        pass

"""Several files as one checkpoint: tensors of their own files, edits by shard, totals of the index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import DamagedError
from chkpt_channels.core.errors import Location
from chkpt_channels.core.tensors import Edits, OpaqueTensor, TensorEdit
from chkpt_channels.folders import config_files
from chkpt_channels.folders.config_files import ConfigFile
from chkpt_channels.folders.shards import Shards
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


def test_a_tensor_in_two_shards(tmp_path: Path):
    with pytest.raises(DamagedError, match=r"fc\.weight: is in two shards"), shards(tmp_path, {**FIRST, **SECOND}):
        pass


def test_a_tensor_that_is_not_where_the_index_says(tmp_path: Path):
    with (
        pytest.raises(DamagedError, match=r"gone\.weight: is not in 2\.safetensors, where the index says it is"),
        shards(tmp_path, weight_map={**WHERE, "gone.weight": "2.safetensors"}),
    ):
        pass

"""Shards: several files that hold one checkpoint, and the index that maps tensors to files."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chkpt_channels.containers.json.editor import Json
from chkpt_channels.core.errors import DamagedError, FileSystemError, Location
from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import Declaration, Edits, FirstConv, OptimizerEntry, Quantization
from chkpt_channels.folders.config_files import ConfigFile, as_list, read_index, root
from chkpt_channels.formats.base import Checkpoint, TensorStore
from chkpt_channels.formats.graph import ModelGraph

if TYPE_CHECKING:
    from numpy.typing import NDArray


_INDEX = pattern(r".+\.index(\.\w+)?\.json")
"""model.safetensors.index.json; diffusers' and transformers' variants have a word before the ending."""
_KERAS_INDEX = ".weights.json"


def is_index(path: Path) -> bool:
    """Whether a file is called like the index of shards; where only Keras calls an index so, whether it lists any."""
    if _INDEX.fullmatch(path.name):
        return True
    with suppress(DamagedError, FileSystemError):  # class.weights.json may hold anything
        return path.name.endswith(_KERAS_INDEX) and bool(listed_shards(read_index(path)))
    return False


def listed_shards(index: Json) -> list[str]:
    """The files that an index maps tensors to, sorted; none where it is no index."""
    return sorted({file for files in _weight_map(index).values() for file in files})


def _weight_map(index: Json) -> dict[str, list[str]]:
    """The files of each tensor, or of each group of them, whose name begins with a slash: Keras may cut through a layer. Empty
    where it is no index."""
    listed = root(index).get("weight_map")
    if not isinstance(listed, dict):
        return {}
    files = {name: as_list(where) for name, where in listed.items()}
    return files if all(isinstance(file, str) for where in files.values() for file in where) else {}


def shard_names(home: Path, name: str, files: Collection[str]) -> tuple[ConfigFile, tuple[str, ...]]:
    """An index of a folder, and the names of its shards among its `files`. Raises DamagedError for one that does not fit them."""
    index = ConfigFile(name, read_index(home / name))
    location, listed = index.document.location, listed_shards(index.document)
    if not listed:
        raise location.damaged("is not an index: weight_map must map tensors to files")
    parent = Path(name).parent
    for shard in listed:
        # an index may name any path, "../../x" too
        if shard != os.path.basename(shard) or shard in ("", ".", "..") or "\0" in shard:
            raise location.at(shard).damaged("its shard is not a file beside the index")
        if str(parent / shard) not in files:
            raise location.at(shard).damaged("its shard is missing", hint="download the whole folder")
    return index, tuple(str(parent / shard) for shard in listed)


class Shards(TensorStore):
    """Several checkpoints as one store: each tensor is read from its shard. They are planned as one and written one by one."""

    ordered = False

    def __init__(self, shards: Sequence[Checkpoint], index: ConfigFile, folder: Location) -> None:
        self.shards, self.index = list(shards), index
        super().__init__(shards[0].location)
        self.title = f"{shards[0].title}, {len(shards)} shards"
        self.like_hint, location = shards[0].like_hint, Location(os.path.join(folder.file, index.name))
        for shard in shards:
            if shard.format is not shards[0].format:
                raise location.damaged("its shards are not of one format")
            before = len(self.tensors)
            self.opaque += tuple(weight._replace(follows=before + weight.follows) for weight in shard.opaque)
            for name, tensor in shard.tensors.items():
                if name in self.tensors:
                    raise location.at(name).damaged("is in two shards")
                self.tensors[name] = tensor
            self.optimizer_entries: tuple[OptimizerEntry, ...] = (*self.optimizer_entries, *shard.optimizer_entries)
            self.warnings += shard.warnings
            self.globals = (*self.globals, *shard.globals)
        listed = _weight_map(index.document)
        held = self.tensors.keys() | {weight.name for weight in self.opaque}
        held |= {f"/{name.rpartition('/')[0]}" for name in self.tensors}
        if missing := next((name for name in listed if name not in held), None):
            raise location.at(missing).damaged(f"is not in {', '.join(listed[missing])}, where the index says it is")
        ordered = all(shard.ordered for shard in shards)
        self._joined = shards[0].joined(self, ordered=ordered)
        if self._joined:
            self.ordered, self.optimizer_entries = ordered, self._joined.optimizer_entries
            for shard in shards:  # a slot may be in another shard than its kernel
                shard.optimizer_entries = self.optimizer_entries

    @property
    def torch(self) -> bool:
        """As its shards."""
        return self.shards[0].torch

    @cached_property
    def graph(self) -> ModelGraph:
        """Theirs together, or each its own."""
        return self._joined.graph if self._joined else _ShardsGraph(self.shards)

    def _home(self, name: str) -> Checkpoint:
        return next(shard for shard in self.shards if name in shard.tensors)

    def chunks(self, name: str) -> Iterator[bytes]:
        """As the shard."""
        return self._home(name).chunks(name)

    def load(self, name: str) -> NDArray[Any]:
        """As the shard."""
        return self._home(name).load(name)

    def memory(self, name: str) -> Hashable:
        """As the shard."""
        return self._home(name).memory(name)

    def split_edits(self, edits: Edits) -> Iterator[tuple[Checkpoint, Edits]]:
        """Each shard with its part of the edits."""
        for shard in self.shards:
            own = {name: edit for name, edit in edits.tensors.items() if name in shard.tensors}
            yield shard, edits._replace(tensors=own) if own else Edits()

    def index_edits(self, edits: Edits) -> dict[tuple[str | int, ...], Any]:
        """The edits of the totals in the index, bytes and parameters; newer writers have both."""
        metadata = self.index.document.root.value.get("metadata")
        if metadata is None or not isinstance(metadata.value, dict):
            return {}
        grown = {"total_size": 0, "total_parameters": 0}
        for name, edit in edits.tensors.items():
            tensor = self.tensors[name]
            count = prod(edit.shape) - prod(tensor.shape)
            grown["total_size"] += count * tensor.dtype.bits // 8  # bytes of tensors, without headers; a float in Keras
            grown["total_parameters"] += count
        old = {key: metadata.value[key].value for key in grown if key in metadata.value}
        return {("metadata", key): value + grown[key] for key, value in old.items() if type(value) in (int, float) and grown[key]}


class _ShardsGraph(ModelGraph):
    """The graph of each tensor's own shard."""

    def __init__(self, shards: Sequence[Checkpoint]) -> None:
        self._shards = shards

    def _graph_of(self, conv: FirstConv) -> ModelGraph:
        return next(shard for shard in self._shards if conv.tensor.name in shard.tensors).graph

    def with_groups(self, conv: FirstConv) -> FirstConv:
        return self._graph_of(conv).with_groups(conv)

    def quantization(self, conv: FirstConv) -> Quantization | None:
        return self._graph_of(conv).quantization(conv)

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        declarations: list[Declaration] = []
        for shard in self._shards:
            declarations += shard.graph.declarations([conv for conv in first_convs if conv.tensor.name in shard.tensors])
        return declarations

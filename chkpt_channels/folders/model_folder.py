"""Model folders: weights in one or more files, their index, configurations, and whatever else belongs to a model.

    model.safetensors, pytorch_model.bin, onnx/model.onnx …      each a checkpoint of one of the other formats
    model-00001-of-00003.safetensors, …, *.index.json            shards of one, {"weight_map": {tensor: file}, "metadata": {…}}
    config.json, preprocessor_config.json                        see sidecars

Source: transformers/modeling_utils.py of 5.23, huggingface_hub/serialization/_base.py, diffusers/models/modeling_utils.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from chkpt_channels.core.errors import Place, reason
from chkpt_channels.folders import config_files as sidecars
from chkpt_channels.folders.config_files import Sidecar
from chkpt_channels.folders.library_tables import CONFIG, RECONSTRUCTS
from chkpt_channels.formats import detect, known
from chkpt_channels.formats.base import Checkpoint, Declaration, Edits, FirstConv, OptimizerEntry
from chkpt_channels.formats.unknown import FOREIGN_SUFFIXES
from chkpt_channels.storage.source import Source, check_link
from chkpt_channels.storage.splice import Splice
from chkpt_channels.transform.quantization import Quantiser

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

INDEX = ".index.json"
_SKIPPED = frozenset({".git", ".cache", "__pycache__"})
_FOREIGN = FOREIGN_SUFFIXES | {".ot", ".mlmodel", ".mlpackage", ".engine", ".params"}


class Part(NamedTuple):
    """One checkpoint of the folder, by the names of its files; `listing` is the index of its shards."""

    files: tuple[str, ...]
    listing: Sidecar | None = None

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.listing.name if self.listing else self.files[0]


class ModelFolder:
    """An open folder. Raises DamagedError for one that holds no model, or an index that does not fit its shards; UnsupportedError
    for weights that are not converted, and for links that leave the folder unless `follow_links`; SystemProblem."""

    def __init__(self, path: str | os.PathLike[str], *, follow_links: bool = False) -> None:
        self.path, self.place = Path(path), Place(os.fsdecode(path))
        self._stack = ExitStack()
        self.files = sorted(_walk(self.path, self.place))
        for name in () if follow_links else self.files:
            check_link(self.place.inside(name), self.path / name, self.path, "is")
        suffixes = {suffix for kind in known() for suffix in kind.suffixes if suffix}
        weights = [name for name in self.files if Path(name).suffix.lower() in suffixes]
        if not weights:
            raise self.place.damaged("is no model folder: no weights of a known format are in it")
        indexes = [Sidecar(name, sidecars.read(self.path / name)) for name in self.files if name.endswith(INDEX)]
        sharded = [self._shards(index) for index in indexes]
        in_shards = {name for part in sharded for name in part.files}
        self.parts = [*sharded, *(Part((name,)) for name in weights if name not in in_shards)]
        foreign = [name for name in self.files if Path(name).suffix.lower() in _FOREIGN]
        if foreign:
            raise self.place.inside(foreign[0]).unsupported(
                "holds weights in a format that is not converted, and would keep the old channels",
                hint="move it out of the folder",
            )
        homes = {Path(name).parent for name in weights}
        self.sidecars = [
            sidecar._replace(name=str(parent / sidecar.name))
            for parent in dict.fromkeys(Path(name).parent for name in self.files)
            for sidecar in (_configurations if parent in homes else sidecars.beside)(self.path / parent)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        with self.place.trying("cannot be read"):
            return sum((self.path / name).stat().st_size for name in self.files)

    def load_line(self, path: str) -> str:
        """The line of Python that loads such a folder at `path`."""
        config = next((s.document.root.plain for s in self.sidecars if s.name == CONFIG), None)
        if not isinstance(config, dict):
            return ""
        if "pretrained_cfg" in config or ("architecture" in config and "model_type" not in config):
            return f"model = timm.create_model('local-dir:{path}', pretrained=True)"
        if "_model_class" in config and "encoder_name" in config:
            return f"model = segmentation_models_pytorch.from_pretrained({path!r})"
        if "_class_name" in config:
            return f"model = diffusers.{config['_class_name']}.from_pretrained({path!r})"
        architectures = config.get("architectures")
        if "model_type" in config and isinstance(architectures, list) and architectures:
            name = "AutoModel" if reconstructs(config) else architectures[0]
            return f"model = transformers.{name}.from_pretrained({path!r})"
        return ""

    def _shards(self, index: Sidecar) -> Part:
        """The shards that an index lists."""
        place = Place(str(self.path / index.name))
        document = index.document.root.plain
        places = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
            raise place.damaged("is no index: its weight_map does not list tensors and files")
        parent = Path(index.name).parent
        for name in dict.fromkeys(places.values()):
            if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
                raise place.inside(name).damaged("its shard is not a file beside the index")
            if str(parent / name) not in self.files:
                raise place.inside(name).damaged("its shard is missing", hint="download the whole folder")
        return Part(tuple(str(parent / name) for name in sorted(set(places.values()))), index)

    def open(self, part: Part) -> Checkpoint:
        """The checkpoint, open as long as the folder is."""
        shards = [self._open(name) for name in part.files]
        return Shards(shards, part.listing, self.place) if part.listing else shards[0]

    def _open(self, name: str) -> Checkpoint:
        source = self._stack.enter_context(Source(self.path / name))
        return detect(source)(source)


def _configurations(folder: Path) -> list[Sidecar]:
    """The configurations beside weights. Raises DamagedError for one that cannot be read: it would stay as it is, and not fit."""
    return [Sidecar(name, sidecars.read(folder / name)) for name in sidecars.names(folder)]


def reconstructs(config: Any) -> bool:
    """Whether a configuration describes a network that gives the image back."""
    names = config.get("architectures") if isinstance(config, dict) else None
    listed = names if isinstance(names, list) else [names]
    return any(isinstance(name, str) and name.endswith(RECONSTRUCTS) for name in listed)


def _walk(path: Path, place: Place) -> Iterator[str]:
    """The files of a folder by their names from there. What version control and caches keep is left out."""

    def failed(error: OSError) -> None:
        raise place.system(f"cannot be read: {reason(error)}") from error

    for folder, folders, files in os.walk(path, onerror=failed):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise place.inside(os.path.relpath(os.path.join(folder, name), path)).unsupported("is a link to a folder")
        for name in files:
            relative = os.path.relpath(os.path.join(folder, name), path)
            try:
                os.stat(os.path.join(folder, name))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise place.inside(relative).system(f"cannot be read: {reason(error)}") from error
                raise place.inside(relative).system("is a link to nothing", hint="download the whole folder") from error
            yield relative


class Shards(Checkpoint):
    """Several files that hold one checkpoint together: what is asked of a tensor is asked of its shard. It is planned as one and
    written shard by shard."""

    suffixes = frozenset()
    ordered = False

    def __init__(self, shards: Sequence[Checkpoint], index: Sidecar, folder: Place) -> None:
        self.shards, self.index = list(shards), index
        super().__init__(shards[0].source)
        self.title = f"{shards[0].title}, {len(shards)} shards"
        place = Place(os.path.join(folder.file, index.name))
        for shard in shards:
            if type(shard) is not type(shards[0]):
                raise place.damaged("its shards are not of one format")
            for name, tensor in shard.tensors.items():
                if name in self.tensors:
                    raise place.inside(name).damaged("stands in two shards")
                self.tensors[name] = tensor
            self.optimizer_entries: tuple[OptimizerEntry, ...] = (*self.optimizer_entries, *shard.optimizer_entries)
            self.warnings += shard.warnings
            self.globals = (*self.globals, *shard.globals)
        listed = index.document.root.plain["weight_map"]
        if missing := next((name for name in listed if name not in self.tensors), None):
            raise place.inside(missing).damaged(f"is not in {listed[missing]}, where the index says it is")

    @property
    def torch(self) -> bool:
        """As its shards."""
        return self.shards[0].torch

    @classmethod
    def sniff(cls, source: Source) -> bool:
        """No single file is one."""
        return False

    def _home(self, name: str) -> Checkpoint:
        return next(shard for shard in self.shards if name in shard.tensors)

    def chunks(self, name: str) -> Iterator[bytes]:
        """As the shard."""
        return self._home(name).chunks(name)

    def load(self, name: str) -> NDArray[Any]:
        """As the shard."""
        return self._home(name).load(name)

    def refined(self, conv: FirstConv) -> FirstConv:
        """As the shard."""
        return self._home(conv.tensor.name).refined(conv)

    def quantiser(self, conv: FirstConv) -> Quantiser | None:
        """As the shard."""
        return self._home(conv.tensor.name).quantiser(conv)

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        """Those of all shards."""
        found: list[Declaration] = []
        for shard in self.shards:
            found += shard.declarations([conv for conv in first_convs if conv.tensor.name in shard.tensors])
        return found

    def splices(self, edits: Edits) -> list[Splice]:
        """Shards are written one by one."""
        raise TypeError("shards are written one by one")

    def shared_out(self, edits: Edits) -> Iterator[tuple[Checkpoint, Edits]]:
        """Each shard with its part of the edits."""
        for shard in self.shards:
            own = {name: edit for name, edit in edits.tensors.items() if name in shard.tensors}
            yield shard, edits._replace(tensors=own) if own else Edits()

    def index_edits(self, edits: Edits) -> dict[tuple[str | int, ...], Any]:
        """What the index counts, after these edits: bytes, and parameters."""
        metadata = self.index.document.root.value.get("metadata")
        if metadata is None or not isinstance(metadata.value, dict):
            return {}
        grown = {"total_size": 0, "total_parameters": 0}
        for name, edit in edits.tensors.items():
            tensor = self.tensors[name]
            count = prod(edit.shape) - prod(tensor.shape)
            grown["total_size"] += count * tensor.dtype.bits // 8
            grown["total_parameters"] += count
        old = {key: metadata.value[key].value for key in grown if key in metadata.value}
        return {("metadata", key): value + grown[key] for key, value in old.items() if type(value) is int and grown[key]}

"""Model folders: weights in one or more files, their index, configurations, and whatever else belongs to a model.

    model.safetensors, pytorch_model.bin, onnx/model.onnx …      each a checkpoint of one of the other formats
    model-00001-of-00003.safetensors, …, *.index.json            shards of one, {"weight_map": {tensor: file}, "metadata": {…}}
    config.json, preprocessor_config.json                        see sidecars

Source: transformers/modeling_utils.py of 5.23, huggingface_hub/serialization/_base.py, diffusers/models/modeling_utils.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from chkpt_channels.core.errors import Place, reason
from chkpt_channels.folders import config_files as sidecars
from chkpt_channels.folders.config_files import Sidecar
from chkpt_channels.folders.library_tables import CONFIG, RECONSTRUCTS
from chkpt_channels.folders.shards import Shards
from chkpt_channels.formats import FOREIGN_SUFFIXES, known, open_checkpoint
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.storage.source import Source, check_link

if TYPE_CHECKING:
    from types import TracebackType


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

    def open(self, part: Part) -> Checkpoint | Shards:
        """The checkpoint, open as long as the folder is."""
        shards = [self._open(name) for name in part.files]
        return Shards(shards, part.listing, self.place) if part.listing else shards[0]

    def _open(self, name: str) -> Checkpoint:
        source = self._stack.enter_context(Source(self.path / name))
        return open_checkpoint(source)


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

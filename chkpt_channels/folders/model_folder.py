"""Model folders: weights in one or more files, their index, configurations, and any other file.

    model.safetensors, pytorch_model.bin, onnx/model.onnx …      each a checkpoint of one of the other formats
    model-00001-of-00003.safetensors, …, *.index.json            shards of one, {"weight_map": {tensor: file}, "metadata": {…}}
    config.json, preprocessor_config.json                        see config_files

Source: transformers/modeling_utils.py of 5.23, huggingface_hub/serialization/_base.py, diffusers/models/modeling_utils.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from chkpt_channels.core.errors import Location, UsageError, reason
from chkpt_channels.folders import config_files
from chkpt_channels.folders.config_files import ConfigFile
from chkpt_channels.folders.library_tables import CONFIG, RECONSTRUCTS
from chkpt_channels.folders.model import Model, ModelFile, Part
from chkpt_channels.folders.shards import Shards
from chkpt_channels.formats import FOREIGN_SUFFIXES, open_checkpoint, weights_suffixes
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.storage.source import STDIO, Source, check_link
from chkpt_channels.transform.mixing.normalization import AUTO
from chkpt_channels.transform.options import Options

INDEX = ".index.json"
SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})
"""Folders of version control and of caches; .cache is that of a download by huggingface_hub."""
_FOREIGN = FOREIGN_SUFFIXES | {".ot", ".mlmodel", ".mlpackage", ".engine", ".params"}


class _PartFiles(NamedTuple):
    """The files of one checkpoint; `listing` is the index where they are shards."""

    files: tuple[str, ...]
    listing: ConfigFile | None = None

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.listing.name if self.listing else self.files[0]


class ModelFolder(Model):
    """An open folder. Raises DamagedError for one that holds no model, or an index that does not fit its shards; UnsupportedError
    for weights that are not converted, and for links that leave the folder unless `follow_links`; FileSystemError."""

    is_folder = True

    def __init__(self, path: str | os.PathLike[str], *, follow_links: bool = False) -> None:
        super().__init__()
        self.path = self.home = Path(path)
        self.location = Location(os.fsdecode(path))
        self.files = sorted(_walk(self.path, self.location))
        # a link that leaves the folder would copy any file of the user's into an output that is then uploaded
        for name in () if follow_links else self.files:
            check_link(self.location.at(name), self.path / name, self.path, "is")
        weights = [name for name in self.files if Path(name).suffix.lower() in weights_suffixes()]
        if not weights:
            raise self.location.damaged("is not a model folder: it holds no weights of a known format")
        self._part_files = self._parts_of(weights)
        # trap: libraries prefer one of several weights files (timm model.safetensors) and load a stale one without a word
        foreign = [name for name in self.files if Path(name).suffix.lower() in _FOREIGN]
        if foreign:
            raise self.location.at(foreign[0]).unsupported(
                "holds weights in a format that is not converted, and would keep the old channels",
                hint="move it out of the folder",
            )
        homes = {Path(name).parent for name in weights}
        self.configs = [
            config._replace(name=str(parent / config.name))
            for parent in dict.fromkeys(Path(name).parent for name in self.files)
            # beside weights every configuration must be read: one that stays as it is would contradict them
            for config in self._reader.read(self.path / parent, strict=parent in homes)
        ]

    def _parts_of(self, weights: list[str]) -> list[_PartFiles]:
        indexes = [ConfigFile(name, config_files.read(self.path / name)) for name in self.files if name.endswith(INDEX)]
        sharded = [self._shards(index) for index in indexes]
        in_shards = {name for part in sharded for name in part.files}
        return [*sharded, *(_PartFiles((name,)) for name in weights if name not in in_shards)]

    @property
    def size(self) -> int:
        with self.location.wrapping_os_errors("cannot be read"):
            return sum((self.path / name).stat().st_size for name in self.files)

    @property
    def title(self) -> str:
        return f"model folder ({super().title})"

    @property
    def part_names(self) -> list[str]:
        """What its parts are called, without opening them."""
        return [part.name for part in self._part_files]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(Part(part.name, part.files, self._opened(part)) for part in self._part_files)

    def _opened(self, part: _PartFiles) -> Checkpoint | Shards:
        shards = [open_checkpoint(self._stack.enter_context(Source(self.path / name))) for name in part.files]
        return Shards(shards, part.listing, self.location) if part.listing else shards[0]

    def load_line(self, path: str) -> str:
        config = next((s.document.root.plain for s in self.configs if s.name == CONFIG), None)
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
            # the class that reconstructs no longer fits: its decoder has the old channels
            name = "AutoModel" if reconstructs(config) else architectures[0]
            return f"model = transformers.{name}.from_pretrained({path!r})"
        return ""

    def _shards(self, index: ConfigFile) -> _PartFiles:
        """The shards that an index lists."""
        location = Location(str(self.path / index.name))
        document = index.document.root.plain
        weight_map = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()) or not weight_map:
            raise location.damaged("is not an index: weight_map must map tensors to files")
        parent = Path(index.name).parent
        for name in dict.fromkeys(weight_map.values()):
            # an index may name any path, "../../x" too
            if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
                raise location.at(name).damaged("its shard is not a file beside the index")
            if str(parent / name) not in self.files:
                raise location.at(name).damaged("its shard is missing", hint="download the whole folder")
        return _PartFiles(tuple(str(parent / name) for name in sorted(set(weight_map.values()))), index)


def reconstructs(config: Any) -> bool:
    """Whether a configuration describes a network that reconstructs the image."""
    names = config.get("architectures") if isinstance(config, dict) else None
    listed = names if isinstance(names, list) else [names]
    return any(isinstance(name, str) and name.endswith(RECONSTRUCTS) for name in listed)


def open_model(path: str | os.PathLike[str], options: Options | None = None) -> Model:
    """A model folder, a single file, or standard input for "-"; without options it is only inspected, through any link. Raises
    UsageError for options that standard input cannot satisfy."""
    if os.fspath(path) == STDIO and options and options.norm.name == AUTO:
        what = "--norm auto reads the configurations in the file's folder, and standard input has none"
        raise UsageError(what, hint="--norm imagenet")
    if is_folder(path):
        return ModelFolder(path, follow_links=options is None or options.plain["follow_links"])
    return ModelFile(path)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether that is a folder, not a file or standard input."""
    return os.fspath(path) != STDIO and os.path.isdir(path)


def _walk(path: Path, location: Location) -> Iterator[str]:
    """The files of a folder by their paths relative to it, without those of version control and caches."""

    def failed(error: OSError) -> None:
        raise location.system(f"cannot be read: {reason(error)}") from error

    for folder, folders, files in os.walk(path, onerror=failed):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise location.at(os.path.relpath(os.path.join(folder, name), path)).unsupported("is a link to a folder")
        for name in files:
            relative = os.path.relpath(os.path.join(folder, name), path)
            try:
                os.stat(os.path.join(folder, name))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise location.at(relative).system(f"cannot be read: {reason(error)}") from error
                raise location.at(relative).system("is a link to nothing", hint="download the whole folder") from error
            yield relative

"""Model folders: weights in one or more files, their index, configurations, and any other file. What a file is, its bytes say.

    model.safetensors, pytorch_model.bin, onnx/model.onnx …      each a checkpoint of one of the other formats, under any name
    model-00001-of-00003.safetensors, …, *.index.json            shards of one, {"weight_map": {tensor: file}, "metadata": {…}}
    model_00000.weights.h5, …, *.weights.json                    the same of Keras, {"weight_map": {"/layer/vars": [file, …]}}
    config.json, preprocessor_config.json                        see config_files

Source: transformers/modeling_utils.py of 5.23, huggingface_hub/serialization/_base.py, diffusers/models/modeling_utils.py.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from chkpt_channels.core.errors import DamagedError, FileSystemError, Location, UnsupportedError, UsageError, reason
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.folders.config_files import ConfigFile, read, root
from chkpt_channels.folders.describing import Description, described, leaving_out, or_leave_out
from chkpt_channels.folders.library_tables import CONFIG, PIPELINE, PREPROCESSORS
from chkpt_channels.folders.loading import ADAPTER, OPEN_CLIP, by_library
from chkpt_channels.folders.model import Model, ModelFile, Part
from chkpt_channels.folders.shards import Shards, is_index, shard_names
from chkpt_channels.formats import foreign_weights, is_claimed, open_checkpoint, open_shard, weights_suffixes
from chkpt_channels.formats.base import Checkpoint, Loading
from chkpt_channels.storage.opening import is_mirrored, mirrored, named, open_file, open_listed
from chkpt_channels.storage.source import STDIO, Readable, Source, check_link, status
from chkpt_channels.storage.urls import is_prefix, is_url
from chkpt_channels.transform.mixing.normalization import AUTO
from chkpt_channels.transform.options import Options

SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})
"""Of version control and of caches; .cache is that of a download by huggingface_hub."""
MOST_BYTES = 65536
"""Of a configuration: larger ones are vocabularies and indexes."""


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

    def __init__(self, path: str | os.PathLike[str], *, follow_links: bool = False, leave_out: Sequence[str] = ()) -> None:
        super().__init__()
        home = self._stack.enter_context(mirrored(path))
        self.path = self.home = Path(home)
        self.location, self.is_remote = Location(named(os.fsdecode(home))), is_mirrored(home)
        try:
            self._look(follow_links=follow_links, leave_out=leave_out)
        except BaseException:
            self._stack.close()
            raise

    def _look(self, *, follow_links: bool, leave_out: Sequence[str]) -> None:
        self.files = sorted(_walk(self.path, self.location))
        for name in leave_out:
            self._leave_out(os.path.normpath(name))
        self._listed = {name: status(self.path / name) for name in self.files}
        # a link that leaves the folder would copy any file of the user's into an output that is then uploaded
        for name in () if follow_links else self.files:
            check_link(self.location.at(name), self.path / name, self.path, "is")
        sharded = [shard_names(self.path, name, self.files) for name in self.files if is_index(self.path / name)]
        in_shards = {name for _, names in sharded for name in names}
        contents = {name: name in in_shards or self._other_weights(name) for name in self.files}
        weights = [name for name, other in contents.items() if other is True]
        # trap: libraries prefer one of several weights files (timm model.safetensors) and load a stale one without a word
        self._foreign = {name: other for name, other in contents.items() if isinstance(other, UnsupportedError)}
        self._unread = [n for n, other in contents.items() if other is None and Path(n).suffix.lower() in weights_suffixes()]
        if not weights:
            for name, error in self._foreign.items():
                raise self.location.at(name).unsupported(error.what, hint=error.hint)
            self._refuse_unread(self._unread)
            raise self.location.damaged("is not a model folder: it holds no weights of a known format")
        self._part_files = [_PartFiles(names, index) for index, names in sharded]
        self._part_files += [_PartFiles((name,)) for name in weights if name not in in_shards]
        homes = {Path(name).parent for name in weights}
        self._configs = [
            config._replace(name=str(parent / config.name))
            for parent in dict.fromkeys(Path(name).parent for name in self.files)
            # beside weights every configuration must be read: one that stays as it is would contradict them
            for config in self._reader.read(self.path / parent, strict=parent in homes)
        ]

    def _check_twins(self) -> None:
        """Where letter case does not count, one of two such files replaces the other: refused of those that a library reads."""
        twins, weights = defaultdict[str, list[str]](list), {name for part in self._part_files for name in part.files}
        for name in self.files:
            twins[name.casefold()].append(name)
        for name in self.files:
            others = [other for other in twins[name.casefold()] if other != name]
            if others and (
                name in weights or Path(name).name in (CONFIG, PIPELINE, *PREPROCESSORS) or is_index(self.path / name)
            ):
                what = f"differs from {others[0]} by the case of its letters alone"
                raise self.location.at(name).unsupported(what, hint=leaving_out(others[0]))

    def _leave_out(self, name: str) -> None:
        """Forget a file, all files of a folder, or an index with its shards. Raises UsageError where there is no such."""
        gone = {file for file in self.files if file == name or file.startswith(name + os.sep)}
        if not gone:
            raise UsageError(f"--leave-out names no file of it: {name!r}", file=self.location.file)
        if is_index(self.path / name):
            gone |= set(shard_names(self.path, name, self.files)[1])
        self.files = [file for file in self.files if file not in gone]

    def check_rest(self) -> None:
        """Its other weights would keep the old channels: those of formats that are not converted, and those that cannot be read,
        but for the data files of its parts."""
        if self._foreign:
            name, error = next(iter(self._foreign.items()))
            what = f"{error.what}, which is not converted and would keep the old channels"
            raise self.location.at(name).unsupported(what, hint=" ".join(map(leaving_out, self._foreign)))
        self._check_twins()
        stores = {part.files[0]: part.store for part in self.parts if isinstance(part.store, Checkpoint)}
        data = {
            os.path.normpath(Path(name).parent / old)
            for name, store in (stores.items() if self._unread else ())
            for old in store.companions(self.path / name, edited=True)
        }
        self._refuse_unread([name for name in self._unread if name not in data])

    def _refuse_unread(self, names: Sequence[str]) -> None:
        for name in names:
            with or_leave_out(name), self.source(name) as source:
                open_checkpoint(source)

    def _other_weights(self, name: str) -> UnsupportedError | bool | None:
        """The error for a file that holds weights of a format that is not converted; True for weights that are, None for anything
        else."""
        with open_file(self.path / name) as source:
            return is_claimed(source) or foreign_weights(source)

    def source(self, name: str, *, sparing: bool = False) -> Source:
        """A file of the folder, open; `sparing` as of `open_file`. Raises as `open_listed`."""
        return open_listed(self.path / name, self._listed[name], sparing=sparing)

    def size_of(self, name: str) -> int:
        """The bytes of one of its files."""
        with self.location.wrapping_os_errors("cannot be read"):
            return (self.path / name).stat().st_size

    @property
    def size(self) -> int:
        return sum(map(self.size_of, self.files))

    @property
    def configs(self) -> Sequence[ConfigFile]:
        return self._configs

    @property
    def other_documents(self) -> Iterator[ConfigFile]:
        homes = {Path(name).parent for part in self._part_files for name in part.files}
        for path in map(Path, self.files):
            is_other = path.name not in (CONFIG, *PREPROCESSORS) and not is_index(self.path / path)
            if path.suffix == ".json" and path.parent in homes and is_other and _is_small(self.path / path):
                with suppress(DamagedError, FileSystemError):  # called JSON, and none
                    yield ConfigFile(str(path), read(self.path / path))

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
        with or_leave_out(part.name) if len(self._part_files) > 1 else nullcontext():
            if not part.listing:
                return open_checkpoint(self._stack.enter_context(self.source(part.name)))
            # of all shards but the edited one a store is asked for the header alone
            sources = [self._stack.enter_context(self.source(name, sparing=True)) for name in part.files]
            return Shards([open_shard(source) for source in sources], part.listing, self.location)

    def described(self, part: Part, *, strict: bool = False) -> Description:
        """Those in its own folder, or where there are none, of the whole folder."""
        for home in dict.fromkeys((Path(part.name).parent, Path())):
            if configs := [config for config in self.configs if Path(config.name).parent == home]:
                beside = [Path(name).name for name in self.files if Path(name).parent == home]
                return described(configs, Path(part.name).name, beside, part.store)
        return Description(())

    def loading(self, path: str, group: str | None = None) -> Loading:
        config, adapter = (self._document(name) for name in (CONFIG, ADAPTER))
        if known := by_library(path, self.files, config, adapter):
            return known
        part = self.parts[0]
        if len(self._part_files) > 1 or not isinstance(part.store, Checkpoint):
            return Loading(remark="the folder names no library, and its files are loaded one by one")
        loading = part.store.loading(str(Path(path) / part.files[0]), group)
        return loading._replace(model="the network that open_clip_config.json states") if OPEN_CLIP in self.files else loading

    def _document(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the folder; an empty one where there is none."""
        documents = (*self.configs, *(self.other_documents if name in self.files else ()))
        return next((root(config.document) for config in documents if config.name == name), {})


def _is_small(path: Path) -> bool:
    with Location(str(path)).wrapping_os_errors("cannot be read"):
        return path.stat().st_size <= MOST_BYTES


def open_model(path: Readable, options: Options | None = None, *, with_sidecars: bool = False) -> Model:
    """A model folder, a single file or object, or standard input for "-"; without options it is only inspected, through any link.
    A file's configurations are edited too if `with_sidecars`. Raises UsageError for options that these cannot satisfy."""
    if not isinstance(path, str | os.PathLike):
        check_no_folder_options(path.name, options.plain["leave_out"] if options else ())
        return ModelFile(path)
    if options and options.norm.name == AUTO and (os.fspath(path) == STDIO or (is_url(path) and not is_prefix(path))):
        what = "--norm auto reads the configurations in the file's folder, and standard input and stores have none"
        raise UsageError(what, hint="--norm imagenet")
    if not is_folder(path):
        check_no_folder_options(path, options.plain["leave_out"] if options else ())
        return ModelFile(path, with_sidecars=with_sidecars)
    given = options.plain if options else {"follow_links": True, "leave_out": ()}
    return ModelFolder(path, follow_links=given["follow_links"], leave_out=given["leave_out"])


def check_no_folder_options(path: str | os.PathLike[str], leave_out: Sequence[str]) -> None:
    """Raise UsageError where options of folders are given for a file."""
    if leave_out:
        raise UsageError("--leave-out names files of a model folder, and this is none", file=os.fsdecode(path))


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether that is a folder, of this machine or in a store, not a file or standard input."""
    return os.fspath(path) != STDIO and (is_prefix(path) or os.path.isdir(path))


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

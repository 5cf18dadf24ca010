"""Consistency of models, each a file or shards: kernels against declared counts, an expectation, and a hash in the name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path

from chkpt_channels.api.output.naming import stated_hash
from chkpt_channels.api.output.publish import sha256_of
from chkpt_channels.api.report import Check, FileInfo, Mismatch
from chkpt_channels.core.errors import (
    AmbiguousError,
    DamagedError,
    FileSystemError,
    Location,
    UnsupportedError,
    UsageError,
    unlisted,
)
from chkpt_channels.core.gc_pause import gc_paused
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import FirstConv, Notice
from chkpt_channels.discovery.find import find_first_convs
from chkpt_channels.discovery.request import ConfigHints, SearchRequest
from chkpt_channels.folders.channel_counts import image_counts, search_hints
from chkpt_channels.folders.config_files import ConfigFile, ConfigReader, read_index
from chkpt_channels.folders.config_normalization import normalization_keys
from chkpt_channels.folders.describing import copies, described, is_foreign, library_files, named_models, weights_in
from chkpt_channels.folders.library_tables import CONFIG, PREPROCESSORS
from chkpt_channels.folders.model_folder import SKIPPED_FOLDERS
from chkpt_channels.folders.planning import is_no_network
from chkpt_channels.folders.shards import Shards, is_index, listed_shards, shard_names
from chkpt_channels.formats import LFS_POINTER, open_checkpoint, open_shard
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.storage.opening import is_mirrored, named, open_file, open_source
from chkpt_channels.storage.source import STDIO, Source
from chkpt_channels.storage.urls import file_name, is_url, shown
from chkpt_channels.transform.mixing import rules

LFS_CHOICES = ("skip", "error")


def expected_channels(expect: str | int | None, lfs_pointers: str) -> int | None:
    """The number of channels of an --expect. Raises UsageError for words that are not understood."""
    if lfs_pointers not in LFS_CHOICES:
        raise unlisted("--lfs-pointers", lfs_pointers, LFS_CHOICES)
    return rules.target(expect, "--expect")[0] if expect is not None else None


def check_is_path(given: str) -> None:
    """Raise UsageError for standard input."""
    if given == STDIO:
        what = "check compares a file with its name and with configurations beside it: standard input has neither"
        raise UsageError(what, hint="chkpt-channels inspect -")


def models(paths: Iterable[str | os.PathLike[str]]) -> dict[Path | str, bool]:
    """What is to be checked of some paths: weights files, and for shards their index; each with whether a path names it, or a
    search found it: in a folder, or beside a configuration. A URL stays one."""
    _read_folder.cache_clear()
    found: dict[Path | str, bool] = {}
    for given in paths:
        if is_url(given):
            found[os.fspath(given)] = True
            continue
        path = Path(given)
        is_configuration = path.name in (CONFIG, *PREPROCESSORS) and path.is_file()
        files = sorted(_weights(path)) if path.is_dir() else weights_in(path.parent) if is_configuration else [path]
        # a folder of another format is named by its first file: that nothing is checked must not look like agreement
        named = files[0] if path.is_dir() and files and all(map(is_foreign, files)) else path
        for file in files if named is path else [named]:
            model = model_of(file)
            found[model] = found.get(model, False) or file == named
    return found


class _Folder(NamedTuple):
    """What the names in a folder say: the index that lists each shard, the models that files are copies of, and the files that
    libraries call so."""

    indexes: dict[str, Path]
    copies: dict[str, list[str]]
    copies_by_stem: dict[str, list[str]]
    of_libraries: list[str]


def model_of(file: Path) -> Path:
    """The index of the shards that a file is one of, or the file itself."""
    folder = _folder(file.parent)
    return folder.indexes.get(file.name, file) if folder else file


def _folder(path: Path) -> _Folder | None:
    """A folder, looked at once for all its files; None where it is not there, which opening its files says."""
    try:
        return _read_folder(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4)
def _read_folder(path: Path, _: int) -> _Folder:
    """A folder as it is; with the time of its last change."""
    names, indexes = sorted(os.listdir(path)), dict[str, Path]()
    for index in (path / name for name in names if is_index(path / name)):
        indexes[index.name] = index
        with suppress(DamagedError, FileSystemError):  # called like an index, and none
            for shard in listed_shards(read_index(index)):
                indexes.setdefault(shard, index)
    copies, by_stem = (named_models(names, by_stem=by_stem) for by_stem in (False, True))
    return _Folder(indexes, copies, by_stem, library_files(names))


def _weights(root: Path) -> Iterator[Path]:
    for folder, folders, _ in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        yield from weights_in(Path(folder), foreign=True)


def check(
    path: str | os.PathLike[str], expect: str | int | None = None, *, lfs_pointers: str = "skip", is_named: bool = True
) -> Check:
    """Whether one file agrees with its configuration, with `expect` ("gray", "rgb" or a number), and with a hash in its name. A
    shard or an index stands for the whole model; what a URL names is compared with itself, `expect` and its name alone.

    A Git-LFS pointer is skipped, or an error. So is a file without a kernel where something is expected: skipped unless
    `is_named`. Raises what opening raises; AmbiguousError where something is expected and the first conv is not certain.
    """
    _read_folder.cache_clear()  # what it holds may be another by now
    return check_among(path, expect, lfs_pointers=lfs_pointers, is_named=is_named)


@gc_paused()
def check_among(
    path: str | os.PathLike[str], expect: str | int | None = None, *, lfs_pointers: str = "skip", is_named: bool = True
) -> Check:
    """The same for one of the `models` of a command, which looks at their folders once."""
    count = expected_channels(expect, lfs_pointers)
    model = Path(file_name(path)) if is_url(path) else model_of(Path(path))
    name = shown(os.fspath(path)) if is_url(path) else named(path if model == Path(path) else model)
    with ExitStack() as stack:
        index, sources = (None, [stack.enter_context(open_source(path))]) if is_url(path) else _sources(stack, model, path)
        size = sum(source.size for source in sources)
        if lfs_pointers == "skip" and any(_is_pointer(source) for source in sources):
            return Check(FileInfo(name, "", size), (), (), "a Git-LFS pointer; its content is not downloaded")
        if count is None and not is_named and is_foreign(model):
            return Check(FileInfo(name, "", size), (), (), "holds weights of a format that is not converted")
        store, form = _opened(index, sources)
        info = FileInfo(name, form, size, store.title)
        mismatches = [] if index else list(_hash_mismatches(sources[0], model))
        return _checked(store, info, model, mismatches, count, is_named=is_named)


def _is_pointer(source: Source) -> bool:
    return source.read(0, min(len(LFS_POINTER), source.size)) == LFS_POINTER


def _sources(stack: ExitStack, model: Path, name: str | os.PathLike[str]) -> tuple[ConfigFile | None, list[Source]]:
    """The index of a model, where it has one, and its open files."""
    if not is_index(model):
        return None, [stack.enter_context(open_file(name))]
    index, files = shard_names(model.parent, model.name, os.listdir(model.parent))
    return index, [stack.enter_context(open_file(model.parent / file, sparing=True)) for file in files]


def _opened(index: ConfigFile | None, sources: Sequence[Source]) -> tuple[TensorStore, str]:
    """The open model, and the name of its format."""
    checkpoints = [open_shard(source) if index else open_checkpoint(source) for source in sources]
    store = Shards(checkpoints, index, Location(os.path.dirname(sources[0].name))) if index else checkpoints[0]
    return store, checkpoints[0].format.name


def _checked(
    store: TensorStore, info: FileInfo, model: Path, mismatches: list[Mismatch], count: int | None, *, is_named: bool
) -> Check:
    """The check of an open model; `mismatches` are those of its name."""
    is_beside, reader = not is_url(info.path) or is_mirrored(model), ConfigReader()
    found = reader.read(model.parent, strict=False) if is_beside else ()
    folder = _folder(model.parent) if found else None
    configs, why = described(found, model.name, folder.of_libraries if folder else (), store)
    finding = find_first_convs(store, SearchRequest(hints=search_hints(configs)))
    if not finding.first_convs:
        what = "its first convolution is ambiguous" if finding.candidates else _why_none(store)
        if count is not None and (is_named or not is_no_network(store)):
            raise AmbiguousError(
                f"{what}, so that --expect cannot be checked",
                file=info.path,
                candidates=finding.candidates,
                hint="inspect lists the candidates" if finding.candidates else "",
            )
        return Check(info, (), tuple(mismatches), "" if mismatches else what)
    convs, file = finding.first_convs, info.path
    mismatches += _declared_mismatches(store, file, convs)
    mismatches += [mismatch for config in configs for mismatch in _configured_mismatches(config, model.parent, convs)]
    compared = dict(_copies(model, search_hints(configs), by_stem=not is_named)) if is_beside else {}
    mismatches += _copy_mismatches(file, convs, compared)
    # of several images, such as colors and depth, one has to have the count
    met = {image for conv in convs if conv.in_channels == count for image in conv.inputs}
    mismatches += [
        Mismatch(file, conv.tensor.name, conv.in_channels, count)
        for conv in convs
        if count is not None and conv.in_channels != count and (not met or met.intersection(conv.inputs))
    ]
    notices = [Notice("other_configuration", f"the configuration beside it {why}: it is not compared")] if why else []
    unread = (f"{Path(error.file).name} {error.what}: it is not compared" for error in reader.unread)
    notices += [Notice("unread_configuration", what) for what in unread]
    against = (*_compared(store, model, configs, convs, count), *(os.path.relpath(copy, model.parent) for copy in compared))
    return Check(info, convs, tuple(mismatches), notices=tuple(notices), against=against)


def _copies(model: Path, hints: ConfigHints, *, by_stem: bool) -> Iterator[tuple[Path, tuple[FirstConv, ...]]]:
    """What stands beside a model and is called like the same one in another format, with its first convs: in its folder, and
    where that has no configuration, such as `onnx`, in the one around it. What cannot be read is told where it is checked."""
    own = model.parent
    homes = [own] if (own / CONFIG).exists() or not (own.parent / CONFIG).exists() else [own, own.parent]
    folders = [(home, folder.copies_by_stem if by_stem else folder.copies) for home in homes if (folder := _folder(home))]
    for path in dict.fromkeys(
        model_of(home / name) for home, names in folders for name in copies(model.name, names, by_stem=by_stem)
    ):
        with suppress(DamagedError, UnsupportedError, FileSystemError), ExitStack() as stack:
            store, _ = _opened(*_sources(stack, path, path))
            convs = find_first_convs(store, SearchRequest(hints=hints)).first_convs
            if convs and path != model:
                yield path, convs


def _copy_mismatches(file: str, convs: tuple[FirstConv, ...], others: Mapping[Path, tuple[FirstConv, ...]]) -> Iterator[Mismatch]:
    """Contradictions of the same model in other formats: of several images, such as colors and depth, one has to be alike."""
    counts = {conv.in_channels for conv in convs}
    for path, found in others.items():
        if counts.isdisjoint(conv.in_channels for conv in found):
            yield Mismatch(file, convs[0].tensor.name, convs[0].in_channels, found[0].in_channels, named(path))


def _compared(
    store: TensorStore, model: Path, configs: Sequence[ConfigFile], convs: tuple[FirstConv, ...], count: int | None
) -> Iterator[str]:
    """What a file is compared with, but for its copies."""
    if store.graph.declarations(convs):
        yield "what it declares itself"
    yield from (config.name for config in configs if image_counts(config.document) or normalization_keys(config.document))
    if stated_hash(model):
        yield "the hash in its name"
    if count is not None:
        yield f"--expect {count}"


def _why_none(store: TensorStore) -> str:
    """Why a file has no first conv, which its graph may know better."""
    try:
        store.graph.check_reached()
    except UnsupportedError as error:
        return f"{error.where}: {error.what}" if error.where else error.what
    return "it holds no convolution that could see an image"


def _declared_mismatches(store: TensorStore, file: str, convs: tuple[FirstConv, ...]) -> Iterator[Mismatch]:
    """Contradictions within the file: of a graph's declarations, and of first convs with different input channels."""
    by_image: dict[str, FirstConv] = {}
    for conv in convs:
        firsts = [by_image.setdefault(image, conv) for image in conv.inputs or [""]]
        if other := next((first for first in firsts if first.in_channels != conv.in_channels), None):
            yield Mismatch(file, conv.tensor.name, conv.in_channels, other.in_channels)
            break
    for declaration, channels in store.graph.contradictions(convs):
        yield Mismatch(file, declaration.where, declaration.channels, channels)


def _configured_mismatches(config: ConfigFile, folder: Path, convs: tuple[FirstConv, ...]) -> Iterator[Mismatch]:
    """Contradictions of a configuration beside the file."""
    counts, file = {conv.in_channels for conv in convs}, named(folder / config.name)
    for where, count in image_counts(config.document):
        if count not in counts:
            yield Mismatch(file, where, count, convs[0].in_channels)
    for mean, std in normalization_keys(config.document):
        for path in (mean, std):
            numbers = config.document.at(path).plain
            if isinstance(numbers, list) and len(numbers) not in {1, *counts}:
                yield Mismatch(file, f"numbers in {'.'.join(map(str, path))}", len(numbers), convs[0].in_channels)


def _hash_mismatches(source: Source, path: Path) -> Iterator[Mismatch]:
    if (stated := stated_hash(path)) and not (actual := sha256_of(source)).startswith(stated):
        yield Mismatch(source.name if source.is_remote else str(path), "SHA-256 in the name", stated, actual[: len(stated)])

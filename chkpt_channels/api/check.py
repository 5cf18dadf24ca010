"""Consistency of files: kernels against declared counts, an expectation, and a hash in the name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from chkpt_channels.api.output.naming import stated_hash
from chkpt_channels.api.output.publish import sha256_of
from chkpt_channels.api.report import Check, FileInfo, Mismatch
from chkpt_channels.core.errors import AmbiguousError, UsageError
from chkpt_channels.core.gc_pause import gc_paused
from chkpt_channels.core.tensors import FirstConv
from chkpt_channels.discovery.find import find_first_convs
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.folders.channel_counts import image_counts, search_hints
from chkpt_channels.folders.config_files import ConfigFile, ConfigReader
from chkpt_channels.folders.config_normalization import normalization_keys
from chkpt_channels.folders.library_tables import CONFIG, PREPROCESSORS
from chkpt_channels.folders.model_folder import SKIPPED_FOLDERS
from chkpt_channels.formats import LFS_POINTER, open_checkpoint, weights_suffixes
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.storage.source import Source
from chkpt_channels.transform.mixing import rules

LFS_CHOICES = ("skip", "error")


def expected_channels(expect: str | int | None, lfs_pointers: str) -> int | None:
    """The number of channels of an --expect. Raises UsageError for words that are not understood."""
    if lfs_pointers not in LFS_CHOICES:
        raise UsageError(f"--lfs-pointers is skip or error, not {lfs_pointers!r}")
    return rules.target(expect)[0] if expect is not None else None


def weights_files(path: str | os.PathLike[str]) -> list[Path]:
    """The weights files of a path: those in a folder, those beside a configuration, or the file itself."""
    root = Path(path)
    if root.is_dir():
        return sorted(_weights(root))
    if root.name in (CONFIG, *PREPROCESSORS) and root.is_file():
        return sorted(file for file in root.parent.iterdir() if _is_weights(file))
    return [root]


def _weights(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        yield from (file for name in names if _is_weights(file := Path(folder, name)))


def _is_weights(file: Path) -> bool:
    return file.suffix.lower() in weights_suffixes() and file.is_file()


def check(path: str | os.PathLike[str], expect: str | int | None = None, *, lfs_pointers: str = "skip") -> Check:
    """Whether one file agrees with its configuration, with `expect` ("gray", "rgb" or a number), and with a hash in its name.

    A Git-LFS pointer is skipped, or an error. Raises what opening raises; AmbiguousError where something is expected and the
    first conv is not certain.
    """
    count = expected_channels(expect, lfs_pointers)
    with Source(path) as source, gc_paused():
        name = os.fspath(path)
        if lfs_pointers == "skip" and source.head.startswith(LFS_POINTER):
            return Check(FileInfo(name, "", source.size), (), (), "a Git-LFS pointer; its content is not downloaded")
        checkpoint = open_checkpoint(source)
        configs = ConfigReader().read(Path(path).parent, strict=False)
        finding = find_first_convs(checkpoint, SearchRequest(hints=search_hints(configs)))
        info = FileInfo(name, checkpoint.format.name, source.size, checkpoint.title)
        mismatches = list(_hash_mismatches(source, Path(path)))
        if not finding.first_convs:
            what = (
                "its first convolution is ambiguous" if finding.candidates else "it holds no convolution that could see an image"
            )
            if count is not None:
                hint = "inspect lists the candidates"
                raise AmbiguousError(
                    f"{what}, so that --expect cannot be checked", file=name, candidates=finding.candidates, hint=hint
                )
            return Check(info, (), tuple(mismatches), "" if mismatches else what)
        mismatches += _declared_mismatches(checkpoint, finding.first_convs)
        mismatches += [m for config in configs for m in _configured_mismatches(config, Path(path).parent, finding.first_convs)]
        mismatches += [
            Mismatch(name, conv.tensor.name, conv.in_channels, count)
            for conv in finding.first_convs
            if count is not None and conv.in_channels != count
        ]
        return Check(info, finding.first_convs, tuple(mismatches))


def _declared_mismatches(checkpoint: Checkpoint, convs: tuple[FirstConv, ...]) -> Iterator[Mismatch]:
    """Contradictions within the file: of a graph's declarations, and of first convs with different input channels."""
    file = checkpoint.source.name
    counts = {conv.in_channels for conv in convs}
    if len(counts) > 1:
        first = convs[0]
        other = next(conv for conv in convs if conv.in_channels != first.in_channels)
        yield Mismatch(file, other.tensor.name, other.in_channels, first.in_channels)
    for declaration, channels in checkpoint.graph.contradictions(convs):
        yield Mismatch(file, declaration.where, declaration.channels, channels)


def _configured_mismatches(config: ConfigFile, folder: Path, convs: tuple[FirstConv, ...]) -> Iterator[Mismatch]:
    """Contradictions of a configuration beside the file."""
    counts, file = {conv.in_channels for conv in convs}, str(folder / config.name)
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
        yield Mismatch(str(path), "SHA-256 in the name", stated, actual[: len(stated)])

"""Names of outputs: default names, suffixes that fit the format, hashes in names."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from chkpt_channels.core.errors import UsageError
from chkpt_channels.core.records import pattern
from chkpt_channels.folders.like_file import with_like
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.folders.model_folder import open_model
from chkpt_channels.formats import FOREIGN_SUFFIXES, known, weights_suffixes
from chkpt_channels.formats.base import Format
from chkpt_channels.storage.source import STDIO, resolved
from chkpt_channels.storage.urls import file_name, is_bucket, is_prefix, is_url, shown
from chkpt_channels.transform.option_table import ConvertOptions
from chkpt_channels.transform.options import Options, options_toward

Path_ = str | os.PathLike[str]
Progress = Callable[[int, int], None]
"""Called with the bytes that were done since the last call, and with all bytes."""

_HASH = pattern(r"-([0-9a-f]{8,64})$")
"""The end of torch.hub's names: the beginning of the content's SHA-256, which check_hash=True compares. Source: torch/hub.py,
HASH_REGEX."""
_OLD_HASH = pattern(r"-[0-9a-f]{8,64}(?=$|_(?:gray|rgb|bgr|[0-9]+ch)$)")
"""The same, also before the target word of a default name."""


def other_container(form: Format, path: Path) -> Format | None:
    """The other format that the output's suffix selects, where state dicts can be written into."""
    suffix = path.suffix.lower()
    if not form.flat or not suffix or suffix in form.suffixes:
        return None
    return next((other for other in known() if suffix in other.suffixes and other.flat_writer()), None)


def output_path(model: ModelFile, dst: Path_ | None, options: Options) -> Path:
    """The path of an output file. Raises UsageError for a suffix of another format, and for none of those without which the file
    is not loaded: libraries choose their reader by it."""
    source, form = model.source, model.format
    if dst is None:
        if model.home is None:
            raise UsageError("standard input has no file name to derive one from: -o names the output")
        path = default_output(Path(source.name), options.word)
        if model.described(model.parts[0]).configs and not model.configs:  # which --sidecars would replace, and that is said
            what = f"the output {path.name} would lie in a model folder, whose configuration states other channels"
            hint = f"chkpt-channels convert {shlex.quote(str(path.parent))}, which converts the folder, or -o another place"
            raise UsageError(what, file=source.name, hint=hint)
        return path
    path = Path(dst)
    if os.fspath(dst) == STDIO or other_container(form, path):
        return path
    others = (FOREIGN_SUFFIXES | weights_suffixes()) - form.suffixes
    is_named = model.home is not None or source.is_remote
    if is_named and form.ending and _ends(path, form.ending) != _ends(Path(source.name), form.ending):
        raise UsageError(
            f"the output {path.name} would be read as another kind of {form.title}: the ending {form.ending} tells them apart",
            hint=f"name it {path.name.removesuffix(_suffix(path))}{_suffix(Path(source.name))}",
        )
    if path.suffix.lower() in others:
        raise UsageError(
            f"the output {path.name} is named like another format, and the input is {form.title}",
            hint=f"name it {path.with_suffix(Path(source.name).suffix).name}",
        )
    if path.suffix.lower() not in form.suffixes and (endings := model.checkpoint.endings):
        what = f"the output {path.name} would not be loaded: {form.title} files are known by their ending"
        raise UsageError(what, hint=f"name it {path.name}{endings[0]}")
    return path


def derived_path(src: Path_, to: str | int | None, options: ConvertOptions) -> Path_:
    """The default output of a conversion, of an object in a bucket beside it, of another URL its name alone. Where LIKE alone
    shows the target, both files are opened, and what that raises is raised."""
    parsed = options_toward(to, options)
    if parsed.rule.to is None and parsed.plain["like"] is not None:
        with open_model(src, parsed) as model:
            parsed = with_like(model, model.resolved(parsed))
    if is_prefix(src):
        # a repository of the hub without the revision behind it
        return beside_prefix(src, parsed.word) if is_bucket(src) else f"{file_name(src).partition('@')[0]}_{parsed.word}"
    if is_url(src):
        return beside_source(src, parsed.word) if is_bucket(src) else file_output(Path(file_name(src)), parsed.word)
    return default_output(Path(src), parsed.word)


def beside_source(url: Path_, word: str) -> str:
    """The default output of an object in a bucket: beside it."""
    return f"{os.fspath(url).rpartition('/')[0]}/{file_output(Path(file_name(url)), word).name}"


def beside_prefix(src: Path_, word: str) -> str:
    """The default output of a folder in a bucket: beside it. Raises UsageError for a whole bucket: that would be another one."""
    from chkpt_channels.storage.stores.mirror import folder_address

    url = os.fspath(src)
    if not folder_address(url).name:
        raise UsageError("is a whole bucket, beside which there is no place", file=shown(url), hint="-o s3://BUCKET/PREFIX/")
    return f"{url.rstrip('/')}_{word}/"


def default_output(path: Path, word: str) -> Path:
    """`<stem>_<word><ext>` beside `path`; ".pth.tar" and its like are one extension, and a folder has none."""
    if path.is_dir():
        path = path if path.name not in ("", "..") else resolved(path)
        return path.with_name(f"{path.name}_{word}")
    return file_output(path, word)


def file_output(path: Path, word: str) -> Path:
    """The same of what is no folder."""
    suffix = _suffix(path)
    return path.with_name(f"{path.name.removesuffix(suffix)}_{word}{suffix}")


def with_hash(path: Path, digest: str) -> Path:
    """`<stem>-<8 digits><ext>`, in the place of an old hash in the stem."""
    suffix = _suffix(path)
    return path.with_name(f"{_OLD_HASH.sub('', path.name.removesuffix(suffix))}-{digest[:8]}{suffix}")


def stated_hash(path: Path) -> str:
    """The beginning of the content's SHA-256 that a name states; "" where it states none."""
    match = _HASH.search(path.name.removesuffix(_suffix(path)))
    return match[1] if match else ""


def _suffix(path: Path) -> str:
    suffix = path.suffix
    if ending := next((form.ending for form in known() if form.ending and _ends(path, form.ending)), ""):
        return path.name[-len(ending) :]
    return Path(path.stem).suffix + suffix if suffix == ".tar" and Path(path.stem).suffix else suffix


def _ends(path: Path, ending: str) -> bool:
    return path.name.lower().endswith(ending)

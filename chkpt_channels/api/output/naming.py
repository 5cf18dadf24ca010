"""What outputs are called: default names, names that do not lie about the format, hashes in names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from chkpt_channels.core.errors import UsageError
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.formats import FOREIGN_SUFFIXES, known
from chkpt_channels.formats.base import Format
from chkpt_channels.storage.source import STDIO
from chkpt_channels.transform.option_table import ConvertOptions
from chkpt_channels.transform.options import Options, options_toward

Path_ = str | os.PathLike[str]
Progress = Callable[[int, int], None]
"""Called with how many bytes more are done, of how many in all."""

_HASH = re.compile(r"-([0-9a-f]{8,64})$")
"""What names of torch.hub's end in: the beginning of the content's SHA-256. Source: torch/hub.py, HASH_REGEX."""
_OLD_HASH = re.compile(r"-[0-9a-f]{8,64}(?=$|_(?:gray|rgb|bgr|[0-9]+ch)$)")
"""The same, and what a default name was made of."""


def other_container(form: Format, path: Path) -> Format | None:
    """The format that the output's name asks for, where it is another that state dicts of this kind go over into."""
    suffix = path.suffix.lower()
    if not form.flat or not suffix or suffix in form.suffixes:
        return None
    return next((other for other in known() if suffix in other.suffixes and other.flat_writer()), None)


def output_path(model: ModelFile, dst: Path_ | None, options: Options) -> Path:
    """Where the result of a file goes. Raises UsageError for a name that would lie about the format."""
    source, form = model.source, model.format
    if dst is None:
        if model.home is None:
            raise UsageError("standard input has no file name to derive one from: -o names the output")
        return default_output(Path(source.name), options.rule.word)
    path = Path(dst)
    if os.fspath(dst) == STDIO or other_container(form, path):
        return path
    others = (FOREIGN_SUFFIXES | {s for other in known() for s in other.suffixes}) - form.suffixes
    if model.home is not None and form.ending and _ends(path, form.ending) != _ends(Path(source.name), form.ending):
        raise UsageError(
            f"the output {path.name} would be read as another kind of {form.title}: the ending {form.ending} tells them apart",
            hint=f"name it {path.name.removesuffix(_suffix(path))}{_suffix(Path(source.name))}",
        )
    if path.suffix.lower() in others:
        raise UsageError(
            f"the output {path.name} is named like another format, and the input is {form.title}",
            hint=f"name it {path.with_suffix(Path(source.name).suffix).name}",
        )
    return path


def derived_path(src: Path_, to: str | int | None, options: ConvertOptions) -> Path:
    """Where the result of a conversion goes that names no output."""
    return default_output(Path(src), options_toward(to, options).rule.word)


def default_output(path: Path, word: str) -> Path:
    """`<stem>_<word><ext>` beside `path`; ".pth.tar" and its like are one extension, and a folder has none."""
    if path.is_dir():
        path = path if path.name not in ("", "..") else path.resolve()
        return path.with_name(f"{path.name}_{word}")
    suffix = _suffix(path)
    return path.with_name(f"{path.name.removesuffix(suffix)}_{word}{suffix}")


def with_hash(path: Path, digest: str) -> Path:
    """`<stem>-<8 digits><ext>`, instead of a hash that the stem, or what a default name was made of, ends in."""
    suffix = _suffix(path)
    return path.with_name(f"{_OLD_HASH.sub('', path.name.removesuffix(suffix))}-{digest[:8]}{suffix}")


def stated_hash(path: Path) -> str:
    """The digits that a name claims its content's SHA-256 begins with; none where it claims nothing."""
    match = _HASH.search(path.name.removesuffix(_suffix(path)))
    return match[1] if match else ""


def _suffix(path: Path) -> str:
    suffix = path.suffix
    if ending := next((form.ending for form in known() if form.ending and _ends(path, form.ending)), ""):
        return path.name[-len(ending) :]
    return Path(path.stem).suffix + suffix if suffix == ".tar" and Path(path.stem).suffix else suffix


def _ends(path: Path, ending: str) -> bool:
    return path.name.lower().endswith(ending)

"""Where a conversion reads and writes: standard streams, names that do not lie, hashes in names, files that go together."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from chkpt_channels.core.errors import Place, UsageError
from chkpt_channels.formats import FOREIGN_SUFFIXES, known
from chkpt_channels.formats.base import Format
from chkpt_channels.storage.atomic import Output, StandardOutput
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.stream_copy import apply, write_at
from chkpt_channels.transform.options import Options

Path_ = str | os.PathLike[str]
Progress = Callable[[int, int], None]
"""Called with how many bytes more are done, of how many in all."""
STDIO = "-"
CHUNK = 4 << 20

_HASH = re.compile(r"-([0-9a-f]{8,64})$")
"""What names of torch.hub's end in: the beginning of the content's SHA-256. Source: torch/hub.py, HASH_REGEX."""
_OLD_HASH = re.compile(r"-[0-9a-f]{8,64}(?=$|_(?:gray|rgb|bgr|[0-9]+ch)$)")
"""The same, and what a default name was made of."""


class Settings(NamedTuple):
    """How outputs are written, not what is in them."""

    force: bool = False
    dry_run: bool = False
    hard_link: bool = False
    with_sidecars: bool = False
    sha256: bool = False
    hash_name: bool = False
    state_dict: str | None = None

    def checked(self, src: Path_, dst: Path_ | None) -> Settings:
        """The same settings. Raises UsageError where they mean nothing for this source and this output."""
        named = dst is None or os.fspath(dst) != STDIO
        if not named and (self.hash_name or self.with_sidecars):
            raise UsageError("standard output has neither a name nor a folder: --hash-name and --sidecars need both")
        if is_folder(src):
            if not named:
                raise UsageError("a folder cannot go to standard output: -o names it", file=os.fspath(src))
            if self.sha256 or self.hash_name or self.state_dict is not None:
                raise UsageError("--sha256, --hash-name and --state-dict are for files", file=os.fspath(src))
        return self


def is_folder(path: Path_) -> bool:
    """Whether that is a model folder, and no file."""
    return os.fspath(path) != STDIO and os.path.isdir(path)


def open_source(path: Path_) -> Source:
    """The file, or standard input for "-"."""
    if os.fspath(path) == STDIO:
        return Source.spooled(sys.stdin.buffer, "standard input")
    return Source(path)


def other_container(form: Format, path: Path) -> Format | None:
    """The format that the output's name asks for, where it is another that state dicts of this kind go over into."""
    suffix = path.suffix.lower()
    if not form.flat or not suffix or suffix in form.suffixes:
        return None
    return next((other for other in known() if suffix in other.suffixes and other.flat_writer()), None)


def output_path(source: Source, form: Format, src: Path_, dst: Path_ | None, options: Options) -> Path:
    """Where the result goes. Raises UsageError for a name that would lie about the format."""
    if dst is None:
        if os.fspath(src) == STDIO:
            raise UsageError("standard input has no name to make one from: -o names the output")
        return default_output(Path(src), options.rule.word)
    path = Path(dst)
    if os.fspath(dst) == STDIO or other_container(form, path):
        return path
    others = (FOREIGN_SUFFIXES | {s for other in known() for s in other.suffixes}) - form.suffixes
    if os.fspath(src) != STDIO and form.ending and _ends(path, form.ending) != _ends(Path(src), form.ending):
        raise UsageError(
            f"the output {path.name} is named like another kind of {form.title}, which names ending in {form.ending} tell apart",
            hint=f"name it {path.name.removesuffix(_suffix(path))}{_suffix(Path(src))}",
        )
    if path.suffix.lower() in others:
        raise UsageError(
            f"the output {path.name} is named like another format, and the input is {form.title}",
            hint=f"name it {path.with_suffix(Path(source.name).suffix).name}",
        )
    return path


def default_output(path: Path, word: str) -> Path:
    """`<stem>_<word><ext>` beside `path`; ".pth.tar" and its like are one extension, and a folder has none."""
    if path.is_dir():
        path = path if path.name not in ("", "..") else path.resolve()
        return path.with_name(f"{path.name}_{word}")
    suffix = _suffix(path)
    return path.with_name(f"{path.name.removesuffix(suffix)}_{word}{suffix}")


def hashed(path: Path, digest: str) -> Path:
    """`<stem>-<8 digits><ext>`, instead of a hash that the stem, or what a default name was made of, ends in."""
    suffix = _suffix(path)
    return path.with_name(f"{_OLD_HASH.sub('', path.name.removesuffix(suffix))}-{digest[:8]}{suffix}")


def hash_in(path: Path) -> str:
    """The digits that a name claims its content's SHA-256 begins with; none where it claims nothing."""
    found = _HASH.search(path.name.removesuffix(_suffix(path)))
    return found[1] if found else ""


def sha256_of(source: Source) -> str:
    """The SHA-256 of an open file."""
    import hashlib

    digest = hashlib.sha256()
    for at in range(0, source.size, CHUNK):
        digest.update(source.read(at, min(at + CHUNK, source.size)))
    return digest.hexdigest()


def _suffix(path: Path) -> str:
    suffix = path.suffix
    if ending := next((form.ending for form in known() if form.ending and _ends(path, form.ending)), ""):
        return path.name[-len(ending) :]
    return Path(path.stem).suffix + suffix if suffix == ".tar" and Path(path.stem).suffix else suffix


def _ends(path: Path, ending: str) -> bool:
    return path.name.lower().endswith(ending)


def opened(path: Path, source: Source, stack: contextlib.ExitStack, *, force: bool) -> Output | StandardOutput:
    """The output, which vanishes when `stack` ends, unless it is published."""
    if os.fspath(path) == STDIO:
        return stack.enter_context(StandardOutput())
    return stack.enter_context(Output(path, source, force=force))


def write_bytes(fd: int, content: bytes, place: Place) -> None:
    """Write a small file and fsync it."""
    with place.trying("cannot be written"):
        write_at(fd, memoryview(content), 0)
        os.fsync(fd)


def publish(
    out: Output | StandardOutput,
    folder: Path,
    names: Mapping[str, str],
    documents: Mapping[str, bytes],
    *,
    force: bool,
) -> None:
    """Give the output its name. The files of `folder` that go with it, under their new `names`, and the `documents` come first,
    and are taken back if it fails."""
    if names and isinstance(out, StandardOutput):
        raise UsageError(f"the file comes with {', '.join(names)}: -o names the output, so that they can stand beside it")
    with contextlib.ExitStack() as stack:
        others = [_copied(folder / old, out.path.parent / new, stack, force=force) for old, new in names.items()]
        for name, content in documents.items():
            others.append(stack.enter_context(Output(out.path.parent / name, None, force=force)))
            write_bytes(others[-1].fd, content, others[-1].place)
        try:
            for other in others:
                other.publish(first=True)
            out.publish()
        except BaseException:
            if not out.is_shown():
                for other in reversed(others):
                    other.roll_back()
            raise


def _copied(path: Path, new: Path, stack: contextlib.ExitStack, *, force: bool) -> Output:
    with Source(path) as source:
        out = stack.enter_context(Output(new, source, force=force))
        apply(source, [], out.fd, out.place)
        source.check_unchanged()
    return out

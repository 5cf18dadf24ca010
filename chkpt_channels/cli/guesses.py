"""What was probably meant by a command line that cannot be meant as it stands."""

from __future__ import annotations

import glob
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from chkpt_channels.core.errors import UsageError, did_you_mean
from chkpt_channels.core.records import pattern
from chkpt_channels.folders.describing import weights_in
from chkpt_channels.folders.library_tables import CONFIG
from chkpt_channels.folders.model_folder import is_folder
from chkpt_channels.formats import weights_suffixes
from chkpt_channels.storage.source import STDIO
from chkpt_channels.storage.urls import is_url

_CALLED = {
    "--to N": ("channels", "in-channels", "in_channels", "in-chans", "in_chans", "num-channels", "target"),
    "--to gray": ("gray", "grey", "grayscale", "mono"),
    "--to rgb": ("rgb", "color", "colour"),
    "--to bgr": ("bgr",),
    "--force": ("overwrite", "replace", "yes", "f"),
    "--jobs": ("workers", "processes", "parallel", "threads", "n-jobs", "num-workers"),
}
"""What other tools call an option."""
_HUB_ID = pattern(r"(?:hf[-_]hub:)?([\w.-]+/[\w.-]+)(?:@[\w.-]+)?(/.*)?")


def is_output_folder(sources: Sequence[str], output: str) -> bool:
    """Whether an output names the folder that the results go into: it ends like one, and the sources are files."""
    return output.endswith(os.sep) and not any(is_folder(source) for source in sources)


def check_sources(sources: Sequence[str], *, names_output: bool) -> None:
    """Raise UsageError where the last of several sources is meant as the output, as in `cp`."""
    *others, last = sources
    if not others or names_output or last == STDIO or not (is_url(others[-1]) or os.path.exists(others[-1])):
        return
    first = shlex.quote(others[0])
    if Path(last).is_dir():
        if not weights_in(Path(last)):
            hint = f"chkpt-channels convert {first} … --output-dir {shlex.quote(last)}"
            raise UsageError("is a folder without a model, and each argument is a source", file=last, hint=hint)
    elif not (is_url(last) or os.path.lexists(last)) and (len(others) == 1 or last.endswith(os.sep)):
        option = "--output-dir" if last.endswith(os.sep) else "-o"
        hint = f"chkpt-channels convert {first} {option} {shlex.quote(last)}"
        raise UsageError("does not exist, and each argument is a source", file=last, hint=hint)


def fetched(source: str) -> str:
    """The hint for a source that is no file here: what fetches it, the pattern without its quotes, or the file that is called
    almost so; "" where none is."""
    if is_url(source):  # the store says what is wrong
        return ""
    path = Path(source)
    hub = _HUB_ID.fullmatch(source)
    if hub and not path.parent.exists():
        file = f" {shlex.quote(hub[2][1:])}" if hub[2] else ""
        return (
            f"hf download {shlex.quote(hub[1])}{file} --local-dir {shlex.quote(Path(hub[1]).name)}   and convert what it fetched"
        )
    if len(source) < len(glob.escape(source)):
        fitting = next(glob.iglob(source), "")
        return f"{source} without quotes, for which the shell puts {shlex.quote(fitting)} and its like" if fitting else ""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    # by what stands before the suffix, which most files share; where that is the same, the same suffix
    likely = {path.suffix, "", *weights_suffixes()}
    alike = sorted((Path(name).suffix == path.suffix, name) for name in names[:10_000] if Path(name).suffix.lower() in likely)
    by_stem = {Path(name).stem: name for _, name in alike}
    close = did_you_mean(path.stem, by_stem)
    return str(path.with_name(by_stem[close])) if close else ""


def each_a_model(folder: str) -> str:
    """What to try where a folder was taken for one model, and its weights do not belong together; "" where it is one."""
    weights = [] if Path(folder, CONFIG).exists() else weights_in(Path(folder))
    suffixes = Counter(path.suffix for path in weights)
    if len(weights) < 2:
        return ""
    (suffix, _), *_ = suffixes.most_common(1)
    pattern = f"{shlex.quote(folder.rstrip(os.sep))}/*{suffix}"
    return f"   or, where each is a model of its own, chkpt-channels convert {pattern} --output-dir DIR"


def option(word: str, flags: Sequence[str]) -> str:
    """The option of a command that a word without its dashes was meant as; "" where none is like it."""
    known = {flag.lstrip("-"): flag for flag in flags}
    meant = next((flag for flag, words in _CALLED.items() if word.lower() in words and flag.split()[0] in flags), "")
    return meant or known.get(did_you_mean(word, known), "")


def command(word: str) -> str:
    """The hint for a word in the place of a command: a file without one."""
    if os.path.exists(word) or Path(word).suffix:
        return f"chkpt-channels convert {shlex.quote(word)} --to gray   or   chkpt-channels inspect {shlex.quote(word)}"
    return ""

"""Names that are URLs of stores, told from paths: what they are called in messages, and the file's own name."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

from chkpt_channels.core.records import pattern

_URL = pattern(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_HUB_FOLDER = pattern(r"hf://([^/]+/[^/]+|.*/)", re.IGNORECASE)
_READ = frozenset({"s3", "http", "https", "hf"})
SECRET = pattern(
    r"x-(amz|goog)-(signature|credential|security-token)|sig(nature)?|.*(token|secret|passw(or)?d|(api|access)_?key(_?id)?)|key",
    re.I,
)
"""Parameters of a URL that let whoever has it in."""
_FOREIGN = frozenset({"gs", "az", "abfs", "abfss", "wasb", "wasbs", "adl"})
"""Stores that are not read: Google's and Azure's."""


def is_url(name: str | os.PathLike[str]) -> bool:
    """Whether a name is the URL of a store, not a path or standard input."""
    match = _URL.match(os.fspath(name))
    return match is not None and match[1].lower() in _READ | _FOREIGN


def is_bucket(name: str | os.PathLike[str]) -> bool:
    """Whether a name is the URL of an object of S3: the one store that is written to."""
    return os.fspath(name).lower().startswith("s3://")


def is_prefix(name: object) -> bool:
    """Whether a name is that of a folder in a store: in a bucket it ends with a slash, on the hub a repository is one too."""
    return isinstance(name, str) and ((is_bucket(name) and name.endswith("/")) or _HUB_FOLDER.fullmatch(name) is not None)


def shown(name: str) -> str:
    """A name as messages and reports show it: without credentials."""
    if not is_url(name):
        return name
    has_user = name.lower().startswith(("http", "s3"))  # Azure's have a container there
    user = r"[^/?#@]*@" if has_user else r"[^/?#@]*:[^/?#@]*@"
    # a key of S3 may hold a question mark
    asked = name.partition("?")[2] if is_bucket(name) else ""
    is_key = asked != "" and not any(SECRET.fullmatch(word.partition("=")[0]) for word in re.split("[&;]", asked))
    return re.sub(rf"(?<=://){user}" + ("" if is_key else r"|(?<=\?).*"), "…", name, flags=re.DOTALL)


def file_name(name: str | os.PathLike[str]) -> str:
    """The last part of a path or of a URL."""
    text = os.fspath(name)
    if not is_url(text):
        return os.path.basename(text)
    return PurePosixPath(text if is_bucket(text) else text.partition("?")[0]).name

"""Files on Hugging Face's hub, or on the server that HF_ENDPOINT names: the address of one commit's file, and what lets one in;
the files of a folder.

Source: huggingface_hub/file_download.py of 1.0 and 2.4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from chkpt_channels.core.errors import FileSystemError, Location, UsageError
from chkpt_channels.storage.stores.address import Address, check_plain

WORDS = {
    "GatedRepoError": "is in a repository that asks for its conditions to be accepted",
    "RepositoryNotFoundError": "no such repository, or it is private",
    "RevisionNotFoundError": "no such revision of the repository",
    "EntryNotFoundError": "no such file in the repository",
    "LocalEntryNotFoundError": "its server cannot be reached",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE forbids to read it",
}
TOKEN = "HF_TOKEN, or hf auth login"
"""What lets one in."""
SECONDS = 10
TRANSPORTS = ("httpx", "httpcore", "requests", "urllib3")
"""What the hub's library makes requests with."""


def resolved(address: Address, location: Location) -> tuple[str, dict[str, str]]:
    """The URL of the file in the commit that the revision means now, and the headers that its server wants. Raises
    FileSystemError."""
    with _library(location) as (huggingface_hub, endpoint):
        url = huggingface_hub.hf_hub_url(address.home, address.name, revision=address.revision, endpoint=endpoint)
        check_plain(url, location)
        commit = _answered(lambda: huggingface_hub.get_hf_file_metadata(url, timeout=SECONDS, endpoint=endpoint)).commit_hash
        headers = huggingface_hub.utils.build_hf_headers(library_name="chkpt-channels")
    wanted = {name.lower(): value for name, value in headers.items()}
    url = huggingface_hub.hf_hub_url(address.home, address.name, revision=_checked(commit, location), endpoint=endpoint)
    return url, wanted


def listed(address: Address, location: Location) -> tuple[str, dict[str, int]]:
    """The commit that the revision of a folder means now, and its files, each with its size. Raises FileSystemError."""
    with _library(location) as (huggingface_hub, endpoint):
        check_plain(endpoint or "", location)
        hub = huggingface_hub.HfApi(endpoint=endpoint, library_name="chkpt-channels")
        model = _answered(lambda: hub.model_info(address.home, revision=address.revision, timeout=SECONDS))
        commit = _checked(model.sha, location)
        place = {"path_in_repo": address.name.rstrip("/") or None, "recursive": True, "revision": commit}
        found = {entry.path: entry.size for entry in hub.list_repo_tree(address.home, **place) if hasattr(entry, "size")}
    return commit, found


@contextmanager
def _library(location: Location) -> Iterator[tuple[Any, str | None]]:
    """The hub's library, and the server that it is to ask. What it raises is raised as FileSystemError."""
    try:
        import huggingface_hub
    except ImportError:
        raise location.system("reading the hub needs huggingface_hub", hint="pip install 'chkpt-channels[hf]'") from None
    try:
        # where it is asked for only at its import, whoever sets it later would read another server
        yield huggingface_hub, os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    except (UsageError, FileSystemError):
        raise
    except Exception as error:
        name = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in WORDS), "")
        if not name and not type(error).__module__.startswith(("huggingface_hub", *TRANSPORTS)):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = WORDS.get(name) or (f"its server answers {status}" if status else "its server cannot be reached")
        is_refused = name in ("GatedRepoError", "RepositoryNotFoundError") or status in (401, 403)
        raise location.system(what, hint=TOKEN if is_refused else "") from error


def _answered(ask: Callable[[], Any]) -> Any:
    """What the hub answers. The library keeps connections, which the server may close: then it is asked once more."""
    try:
        return ask()
    except Exception as error:
        if getattr(error, "response", None) is not None or not type(error).__module__.startswith(TRANSPORTS):
            raise
        return ask()


def _checked(commit: object, location: Location) -> str:
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise location.system("its server does not say which commit the file is of")
    return commit

"""URLs of stores: what each names, those that are refused, and the commands that fetch or upload instead.

s3://BUCKET/KEY    https://HOST/PATH[?QUERY]    hf://OWNER/REPO[@REVISION]/FILE
"""

from __future__ import annotations

import ipaddress
import os
import shlex
from urllib.parse import parse_qsl, unquote, urlsplit

from chkpt_channels.core.errors import Location, UnsupportedError, UsageError
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.storage.urls import SECRET, shown

_HUB = pattern(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<file>.*))?")
ALLOW_HTTP = "AWS_ALLOW_HTTP"
_FETCHED_BY = {"s3": "aws s3 cp {} .", "gs": "gcloud storage cp {} .", "http": "curl -LO {}", "https": "curl -LO {}"}
_UPLOADED_BY = {"s3": "aws s3 cp FILE {}", "gs": "gcloud storage cp FILE {}", "hf": "hf upload {} FILE"}
_AZURE_FETCHED, _AZURE_UPLOADED = "azcopy copy {} .", "azcopy copy FILE {}"


class Address(NamedTuple):
    """One object: the URL as it was given, its scheme, and what names it there: bucket and key, or repository and file."""

    url: str
    scheme: str
    home: str
    name: str
    revision: str = "main"


def parsed(url: str) -> Address:
    """What a URL names. Raises UsageError for one that holds credentials, is not encrypted or names no object, UnsupportedError
    for a store that is not read and for a folder."""
    file = shown(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"is no URL: {error}", file=file) from None
    scheme = parts.scheme.lower()
    has_user = scheme in ("s3", "http", "https")
    secret = next((name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if SECRET.fullmatch(name)), "")
    if secret or (parts.username is not None and has_user) or parts.password is not None:
        what = "holds credentials, which would be seen in lists of processes and in logs"
        raise UsageError(what, file=file, hint="take them out: the store's usual environment variables are read")
    if scheme not in ("s3", "http", "https", "hf"):
        raise UnsupportedError("is in a store that is not read", file=file, hint=f"{fetching(url)}   and convert the file")
    check_plain(url, Location(file))
    if scheme == "hf":
        return _on_hub(url, Location(file))
    if scheme == "s3" and (parts.query or parts.fragment):
        parts = parts._replace(path=url.split("://", 1)[1].partition("/")[2], query="", fragment="")
    key = parts.path.lstrip("/")
    if not host:
        raise UsageError("names no object", file=file, hint="s3://BUCKET/KEY" if scheme == "s3" else "https://HOST/PATH")
    if not key or key.endswith("/"):
        raise _folder(url, Location(file))
    return Address(url, scheme, parts.netloc, key)


def _on_hub(url: str, location: Location) -> Address:
    match = _HUB.fullmatch(url)
    if match is None:
        raise UsageError(
            "names no file of a repository", file=location.file, hint="hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE"
        )
    if not match["file"] or match["file"].endswith("/"):
        raise _folder(url, location)
    return Address(url, "hf", match["repo"], match["file"], unquote(match["revision"] or "main"))


def check_plain(url: str, location: Location) -> None:
    """Raise UsageError for a server that would be read without encryption: that is for this machine, and where AWS_ALLOW_HTTP
    says so."""
    if urlsplit(url).scheme == "http" and not allows_plain(url):
        what = "is not encrypted: whoever is in between could change the weights"
        raise UsageError(what, file=location.file, hint=f"https://, or {ALLOW_HTTP}=true")


def allows_plain(url: str) -> bool:
    """Whether the host of a URL may be read over http://."""
    if is_switched_on(ALLOW_HTTP):
        return True
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_switched_on(variable: str) -> bool:
    """Whether a variable of the environment says so."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _folder(url: str, location: Location) -> UnsupportedError:
    return location.unsupported("is a folder in a store, and one file is read", hint=f"{fetching(url)}   and convert the folder")


def fetching(url: str) -> str:
    """The command that fetches what a URL names."""
    scheme, _, rest = url.partition("://")
    scheme, is_folder = scheme.lower(), not rest.partition("/")[2] or url.endswith("/")
    if scheme == "hf":
        match = _HUB.fullmatch(url)
        repo, revision, file = (match["repo"], match["revision"], match["file"]) if match else ("OWNER/REPO", None, "FILE")
        words = [repo] if is_folder or not file else [repo, file]
        words += ["--revision", revision] if revision else []
        return shlex.join(["hf", "download", *words, "--local-dir", repo.partition("/")[2]])
    command = _FETCHED_BY.get(scheme, _AZURE_FETCHED)
    if is_folder and scheme == "s3":
        command = "aws s3 sync {} DIR"
    return command.format(shlex.quote(url))


def uploading(url: str) -> str:
    """The commands that convert to a file and upload it."""
    scheme = url.partition("://")[0].lower()
    target = shown(url)
    if scheme == "hf" and (match := _HUB.fullmatch(url)):
        return f"-o FILE, and hf upload {shlex.quote(match['repo'])} FILE {shlex.quote(match['file'] or '.')}"
    command = "curl -T FILE {}" if scheme.startswith("http") else _UPLOADED_BY.get(scheme, _AZURE_UPLOADED)
    return f"-o FILE, and {command.format(shlex.quote(target))}"

"""Ranges of one object, each by a GET that is pinned to the version that the first one saw.

A store may ignore a condition, cut a body, send another range or the whole object: each answer is compared with what was asked.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from chkpt_channels.core.errors import ChkptChannelsError, Location
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.stores import hub
from chkpt_channels.storage.stores.address import Address, allows_plain, check_plain, fetching, is_switched_on

CHANGED = "was changed while it was read"
RETRIES = 3
FIRST_WAIT_SECONDS = 0.2
"""Before the first retry; it doubles."""
SILENT_SECONDS = 10
"""After so long without a byte a request has failed."""
STREAM_BYTES = 4 << 20
"""How much of a body is held at once."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket"
_WORDS = {"s3": CREDENTIALS, "hf": hub.TOKEN}
"""What lets one in."""


class Pin(NamedTuple):
    """The version of an object: its size and its entity tag, "" where the address itself names one version."""

    size: int
    tag: str


class Connection:
    """An object of a store. `is_fixed` where its address names one version that never changes; `requests` and `read_bytes`
    count."""

    def __init__(self, address: Address, location: Location) -> None:
        self.location, self._address, self.is_fixed = location, address, address.scheme == "hf"
        try:
            import obstore
        except ImportError:
            raise location.system("reading a store needs obstore", hint="pip install 'chkpt-channels[remote]'") from None
        self._library = obstore
        self.requests, self.read_bytes, self._lock = 0, 0, threading.Lock()
        self._store, self._path = _opened(address, location)

    def first(self, size: int) -> tuple[Pin, bytes]:
        """The version of the object, and its first bytes, at most `size`. Raises FileSystemError, UnsupportedError for an object
        whose version cannot be told."""
        got = self._retried(lambda: self._answer(size))
        self._count(len(got[1]) if got else 0)
        if got is None:
            return Pin(0, ""), b""
        meta, body = got
        tag = "" if self.is_fixed else str(meta["e_tag"] or "")
        if not self.is_fixed and (not tag or tag.startswith("W/")):
            what = "its server does not say which version it sends (no strong ETag), so that ranges may not belong together"
            raise self.location.unsupported(what, hint=f"{fetching(self._address.url)}   and convert the file")
        return Pin(int(meta["size"]), tag), body

    def _answer(self, size: int) -> tuple[Mapping[str, Any], bytes] | None:
        """One small GET; None where the object is empty, which has no ranges."""
        try:
            answer = self._library.get(self._store, self._path, options={"range": (0, size)})
            return answer.meta, bytes(answer.bytes())
        except Exception as error:
            if "416" in str(error).partition("\n")[0] and not self._library.head(self._store, self._path)["size"]:
                return None
            raise

    def pieces(self, start: int, stop: int, pin: Pin) -> Iterator[bytes]:
        """The bytes [start, stop) of the pinned version, a few MiB at a time. Raises FileSystemError, also where the object is
        another version now."""
        at = start
        for attempt in range(RETRIES + 1):
            try:
                for piece in self._stream(at, stop, pin):
                    at += len(piece)
                    yield piece
                return
            except Exception as error:
                self._wait_or_raise(error, attempt)

    def _stream(self, start: int, stop: int, pin: Pin) -> Iterator[bytes]:
        condition = {} if self.is_fixed else {"if_match": pin.tag}
        self._count(stop - start)
        answer = self._library.get(self._store, self._path, options={"range": (start, stop), **condition})
        meta = answer.meta
        if int(meta["size"]) != pin.size or (pin.tag and meta["e_tag"] != pin.tag):
            raise self.location.system(CHANGED)
        if tuple(answer.range) != (start, stop):
            raise self.location.system("its server answers with another range than was asked for")
        got = start
        for piece in answer.stream(min_chunk_size=STREAM_BYTES):
            got += len(piece)
            yield bytes(piece)
        if got != stop:
            raise ConnectionError("IncompleteBody")

    def _count(self, size: int) -> None:
        with self._lock:
            self.requests, self.read_bytes = self.requests + 1, self.read_bytes + size

    def _retried(self, work: Callable[[], Any]) -> Any:
        for attempt in range(RETRIES + 1):
            try:
                return work()
            except Exception as error:
                self._wait_or_raise(error, attempt)
        raise RuntimeError("the last attempt raises")

    def _wait_or_raise(self, error: Exception, attempt: int) -> None:
        """Wait where it may be better the next time. Raises FileSystemError otherwise."""
        if isinstance(error, (ChkptChannelsError, MemoryError)):
            raise error
        what, is_passing, hint = _reading(error, self._address)
        if not is_passing or attempt == RETRIES:
            raise self.location.system(what + (f", {RETRIES + 1} times" if is_passing else ""), hint=hint) from error
        time.sleep(FIRST_WAIT_SECONDS * 2**attempt)


def endpoint(location: Location) -> str:
    """The server of S3 that the environment names; "" where it names none. Raises as `check_plain`."""
    url = next(filter(None, map(os.environ.get, ENDPOINTS)), "")
    check_plain(url, location)
    return url


def _opened(address: Address, location: Location) -> tuple[Any, str]:
    """The library's store, and the path of the object in it: for the web the store is the whole URL, as it was given."""
    from obstore.store import HTTPStore, S3Store

    url, headers = address.url.partition("#")[0], dict[str, str]()
    if address.scheme == "s3":
        url = endpoint(location)
    elif address.scheme == "hf":
        url, headers = hub.resolved(address, location)
    settings = _settings(url, headers)
    try:
        if address.scheme == "s3":
            return S3Store(address.home, **({"endpoint": url} if url else {}), **_credentials(), **settings), address.name
        return HTTPStore.from_url(url, **settings), ""
    except Exception as error:
        raise location.system(f"its store cannot be opened: {_first_words(error)}") from error


def _credentials() -> dict[str, Any]:
    """What lets one in where the environment does not say: a profile of ~/.aws, and whatever else boto3 knows, where that is
    installed."""
    is_said = bool(os.environ.get("AWS_ACCESS_KEY_ID")) or is_switched_on("AWS_SKIP_SIGNATURE")
    if is_said or importlib.util.find_spec("boto3") is None:
        return {}
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.session.Session()
    return {"credential_provider": Boto3CredentialProvider(session)} if session.get_credentials() else {}


def _settings(url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """Retries are counted here, so that a signal is heard between two of them."""
    silent, is_plain = timedelta(seconds=SILENT_SECONDS), urlsplit(url).scheme == "http"
    options: dict[str, Any] = {"read_timeout": silent, "connect_timeout": silent, "timeout": timedelta(days=1)}
    options |= {"allow_http": is_plain and allows_plain(url), "default_headers": dict(headers)}
    return {"client_options": options, "retry_config": {"max_retries": 0}}


def _reading(error: Exception, address: Address) -> tuple[str, bool, str]:
    """What went wrong, in words of our own, for the library's show URLs, keys and whole answers; whether it may pass; a hint."""
    text, kind = str(error), type(error).__name__
    status = re.search(r"status code: (\d{3}(?: [A-Z][A-Za-z]+)*)", text)
    if isinstance(error, FileNotFoundError):
        return "no such object in the store", False, ""
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        number = status[1] if status else "403"
        return f"its server refuses access ({number})", False, _WORDS.get(address.scheme, "")
    if kind == "PreconditionError":
        return CHANGED, False, ""
    if kind == "NotSupportedError" or "non-partial response" in text:
        what = "its server sends the whole object where a range was asked for"
        return what, False, f"{fetching(address.url)}   and convert the file"
    if kind == "InvalidPathError":
        return "its key cannot be read: it has empty parts, or parts that are dots", False, ""
    if "169.254.169.254" in text or "CredentialsError" in text:
        return "no credentials are found", False, _WORDS.get(address.scheme, "")
    if status:
        passing = status[1][0] == "5" or status[1][:3] in ("408", "429")
        hint = "AWS_REGION names the bucket's region" if status[1][0] == "3" and address.scheme == "s3" else ""
        return f"its server answers {status[1]}", passing, hint
    if re.search(r"Requested \d+\.\.\d+, got", text):
        return "its server answers with another range than was asked for", False, ""
    if re.search(r"IncompleteBody|UnexpectedEof|kind: Interrupted", text):
        return "its server cut the answer short", True, ""
    if re.search(r"TimedOut|kind: Timeout|timed out", text):
        return "its server stopped answering", True, ""
    if re.search(r"kind: Connect|error sending request|Connect", text):
        return "its server cannot be reached", True, ""
    return f"its store cannot be read: {_first_words(error)}", False, ""


def _first_words(error: Exception) -> str:
    """The beginning of the library's message, up to where an address or an answer could follow."""
    return re.split(r"\n|https?:|\bat \S*/|: <", str(error), maxsplit=1)[0].strip(" :-")[:160] or type(error).__name__

"""A proxy in front of a store that counts requests and bytes, and lies; and servers of the tests' own.

Each answer of the store passes through `Lie`, which may change it: what a store, a cache or a proxy in between does wrong.
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Request(NamedTuple):
    """One request as it came in, and how many bytes of body went out."""

    method: str
    path: str
    span: str
    if_match: str
    sent: int
    received: int = 0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


Store = Callable[[str, str, dict[str, str], bytes], Answer]
"""The right answer to a request: its method, path, headers and body."""
Lie = Callable[[int, str, Answer], Answer | None]
"""Called with the number of the request, its method and the right answer; None where the connection is to hang."""


def honest(number: int, method: str, answer: Answer) -> Answer:
    return answer


AGENTS = "/api/agent-harnesses"
"""What huggingface_hub asks for before its first request of a day: nothing that we ask, so it is not counted."""


class Lying(http.server.ThreadingHTTPServer):
    """What stands in front of a store: `log` has every request, `lie` changes answers, `store` gives the right ones."""

    daemon_threads = True

    def __init__(self, store: Store) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.store, self.lie, self.log = store, honest, list[Request]()
        self.before: Callable[[str, str], Answer | None] = lambda method, path: None
        """What is answered in the place of the store, which then hears nothing of the request."""
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.hang, self.lock = threading.Event(), threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away before the end of an answer is none of the tests' errors."""

    @property
    def read_bytes(self) -> int:
        return sum(request.sent for request in self.log)


class _Passing(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Lying

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == AGENTS:
            self.send_error(404)
            return
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() != "expect"}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        right = self.server.before(self.command, self.path) or self.server.store(self.command, self.path, headers, body)
        with self.server.lock:
            number = len(self.server.log)
            size = len(right.body) if self.command == "GET" else 0
            request = Request(self.command, self.path, headers.get("range", ""), headers.get("if-match", ""), size, len(body))
            self.server.log.append(request)
        answer = self.server.lie(number, self.command, right)
        if answer is None:
            self.server.hang.wait(60)
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "content-length" not in answer.headers:
            self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        if len(answer.body) != int(answer.headers.get("content-length", len(answer.body))):
            self.close_connection = True

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 # the library's names


@contextmanager
def lying(store: Store) -> Iterator[Lying]:
    server = Lying(store)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.hang.set()
        server.shutdown()
        server.server_close()
        thread.join()


def folder(root: Path) -> Store:
    """A web server of a folder: ranges, strong ETags, If-Match."""

    def store(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        file = root / unquote(urlsplit(path).path).lstrip("/")
        if not file.is_file():
            return Answer(404, {}, b"no such file")
        status = file.stat()
        tag = f'"{hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]}"'
        if headers.get("if-match", tag) != tag:
            return Answer(412, {}, b"")
        return ranged(file, headers.get("range", ""), {"etag": tag, "last-modified": "Tue, 15 Nov 1994 12:45:26 GMT"})

    return store


def ranged(file: Path, span: str, headers: dict[str, str]) -> Answer:
    size = file.stat().st_size
    if not span:
        return Answer(200, headers, file.read_bytes())
    first, last = (int(number) for number in span.removeprefix("bytes=").split("-"))
    if first >= size:
        return Answer(416, {"content-range": f"bytes */{size}"}, b"")
    last = min(last, size - 1)
    with file.open("rb") as opened:
        opened.seek(first)
        body = opened.read(last + 1 - first)
    return Answer(206, {**headers, "content-range": f"bytes {first}-{last}/{size}"}, body)


def behind(host: str) -> Store:
    """Another server, such as moto's."""

    def store(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(host, timeout=30)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            kept = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in OF_THE_CONNECTION}
            return Answer(answer.status, kept, answer.read())
        finally:
            connection.close()

    return store


OF_THE_CONNECTION = {"connection", "transfer-encoding", "server", "date"}

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub(root: Path) -> Store:
    """A hub as HF_ENDPOINT names one: root/OWNER/REPO/FILE at /OWNER/REPO/resolve/REVISION/FILE, `main` being COMMIT; the files
    of a folder at /api/models/OWNER/REPO/tree/COMMIT/FOLDER."""

    def store(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        asked = unquote(urlsplit(path).path).strip("/")
        owner, repository, question, revision, *parts = asked.removeprefix("api/models/").split("/")
        file = root.joinpath(owner, repository, *parts)
        if not (root / owner / repository).is_dir():
            return Answer(404, {"x-error-code": "RepoNotFound"}, b"")
        if revision not in ("main", COMMIT):
            return Answer(404, {"x-error-code": "RevisionNotFound"}, b"")
        if question == "revision":
            return Answer(200, {"content-type": "application/json"}, json.dumps({"id": repository, "sha": COMMIT}).encode())
        if question == "tree" and file.is_dir():
            return Answer(
                200, {"content-type": "application/json"}, json.dumps(list(tree(root / owner / repository, file))).encode()
            )
        if not file.is_file():
            return Answer(404, {"x-error-code": "EntryNotFound", "x-repo-commit": COMMIT}, b"")
        size = str(file.stat().st_size)
        named = {"x-repo-commit": COMMIT, "etag": '"tag"', "last-modified": "Tue, 15 Nov 1994 12:45:26 GMT"}
        if method == "HEAD":
            return Answer(200, {**named, "content-length": size}, b"")
        return ranged(file, headers.get("range", ""), named)

    return store


def tree(repository: Path, folder: Path) -> Iterator[dict[str, object]]:
    for path in sorted(folder.rglob("*")):
        kind = {"type": "file", "size": path.stat().st_size} if path.is_file() else {"type": "directory"}
        yield {**kind, "path": str(path.relative_to(repository)), "oid": "0" * 40}


def cut(after: int) -> Lie:
    """Bodies end after so many bytes, from the second request on."""

    def lie(number: int, method: str, answer: Answer) -> Answer:
        if not number or method != "GET":
            return answer
        return answer._replace(headers={**answer.headers, "content-length": str(len(answer.body))}, body=answer.body[:after])

    return lie


def from_the(number: int, change: Callable[[Answer], Answer | None]) -> Lie:
    """What happens to every answer from this one on, the first being 0."""
    return lambda n, method, answer: answer if n < number else change(answer)


def once(number: int, change: Callable[[Answer], Answer | None]) -> Lie:
    """What happens to one answer."""
    return lambda n, method, answer: change(answer) if n == number else answer

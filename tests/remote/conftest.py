"""Servers: a web server of a folder, a hub, and moto's S3, each behind the proxy that counts and lies."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from chkpt_channels.storage.stores import connection
from tests.support.stores import Lying, behind, folder, hub, lying


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment of the machine's own, and no long waits."""
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_ALLOW_HTTP", "HF_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connection, "SILENT_SECONDS", 1)
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.01)


class Zoo(NamedTuple):
    """A store: put a file into `root`, read it at `url(name)`; `server` is the proxy in front."""

    root: Path
    server: Lying
    prefix: str

    def url(self, name: str) -> str:
        return self.prefix + name


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Zoo]:
    root = tmp_path / "web"
    root.mkdir()
    with lying(folder(root)) as server:
        yield Zoo(root, server, f"{server.url}/")


@pytest.fixture
def hugging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Zoo]:
    root = tmp_path / "hub"
    (root / "owner" / "repo").mkdir(parents=True)
    with lying(hub(root)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield Zoo(root / "owner" / "repo", server, "hf://owner/repo/")


@contextmanager
def serving() -> Iterator[str]:
    """The host of a server of moto's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", host.partition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", int(host.partition(":")[2])), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield host
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    with serving() as host:
        yield host


class Bucket(NamedTuple):
    server: Lying
    client: object

    def put(self, key: str, file: Path) -> str:
        """The URL of an object with a file's content."""
        self.client.put_object(Bucket="zoo", Key=key, Body=file.read_bytes())  # type: ignore[attr-defined]
        return f"s3://zoo/{key}"


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import boto3

    for name, value in (("ACCESS_KEY_ID", "a key"), ("SECRET_ACCESS_KEY", "a secret"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    words = {"aws_access_key_id": "a key", "aws_secret_access_key": "a secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{moto}", **words)
    client.create_bucket(Bucket="zoo")
    with lying(behind(moto)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield Bucket(server, client)
    for entry in client.list_objects_v2(Bucket="zoo").get("Contents", ()):
        client.delete_object(Bucket="zoo", Key=entry["Key"])
    for entry in client.list_multipart_uploads(Bucket="zoo").get("Uploads", ()):
        client.abort_multipart_upload(Bucket="zoo", Key=entry["Key"], UploadId=entry["UploadId"])

"""The folder that stands for one in a bucket; tests/remote/test_prefixes.py has the rest, against a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chkpt_channels.core.errors import DamagedError, FileSystemError, UnsupportedError, UsageError
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.stores import mirror
from chkpt_channels.storage.stores.mirror import Mirror, folder_address


@pytest.mark.parametrize(("url", "prefix"), [("s3://zoo/", ""), ("s3://zoo/a/", "a/"), ("s3://zoo/a/b?/", "a/b?/")])
def test_what_a_folder_names(url: str, prefix: str):
    assert folder_address(url)[:4] == (url, "s3", "zoo", prefix)


def test_credentials_are_refused():
    with pytest.raises(UsageError, match="holds credentials"):
        folder_address("s3://user:word@zoo/a/")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The content of a bucket, in the place of a server."""
    objects: dict[str, bytes] = {}

    class Client:
        def __init__(self, *_: Any) -> None:
            pass

        def listed(self, prefix: str) -> dict[str, int]:
            return {key: len(data) for key, data in objects.items() if key.startswith(prefix)}

    class Remote(Source):
        first = None

        def __init__(self, url: str, _: object = None) -> None:
            path = tmp_path / "object"
            path.write_bytes(objects[url.removeprefix("s3://zoo/")])
            super().__init__(path)

    monkeypatch.setattr(mirror, "Client", Client)
    monkeypatch.setattr(mirror, "RemoteSource", Remote)
    return objects


def test_small_files_are_here_and_others_are_holes(bucket: dict[str, bytes]):
    bucket |= {"a/config.json": b"{}", "a/w/model.pth": b"12345", "a/w/": b"", "b": b"x"}
    made = Mirror("s3://zoo/a/")
    assert made.sizes == {"config.json": 2, "w/model.pth": 5}
    assert (made.path / "config.json").read_bytes() == b"{}"
    assert (made.path / "w" / "model.pth").read_bytes() == bytes(5)
    with made.source("w/model.pth") as source:
        assert source.read(0, 5) == b"12345"
    with pytest.raises(DamagedError) as raised, made.telling():
        raise DamagedError("is odd", file=str(made.path / "config.json"))
    assert raised.value.file == "s3://zoo/a/config.json"
    made.close()
    assert not made.path.exists()


@pytest.mark.parametrize("key", ["a/../../evil", "a//b", "a/./b", "a/\0"])
def test_keys_that_are_no_names_are_refused(key: str, bucket: dict[str, bytes]):
    bucket |= {"a/config.json": b"{}", key: b"x"}
    with pytest.raises(UnsupportedError, match="no name of a file"):
        Mirror("s3://zoo/a/")


def test_nothing_and_too_much(bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileSystemError, match="no objects are under it"):
        Mirror("s3://zoo/a/")
    bucket |= {"a/1": b"", "a/2": b""}
    monkeypatch.setattr(mirror, "MOST_FILES", 1)
    with pytest.raises(UnsupportedError, match="holds 2 objects"):
        Mirror("s3://zoo/a/")

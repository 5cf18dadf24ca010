"""The folder that stands for one in a bucket; tests/remote/test_prefixes.py has the rest, against a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chkpt_channels.core.errors import DamagedError, FileSystemError, UnsupportedError, UsageError
from chkpt_channels.storage.opening import contents, is_mirrored, mirrored, named, open_file
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.stores import hub, mirror, upload
from chkpt_channels.storage.stores.address import Address
from chkpt_channels.storage.stores.mirror import Mirror, folder_address

COMMIT = "0" * 40


@pytest.mark.parametrize(
    ("url", "home", "name"),
    [
        ("s3://zoo/", "zoo", ""),
        ("s3://zoo/a/", "zoo", "a/"),
        ("s3://zoo/a/b?/", "zoo", "a/b?/"),
        ("hf://o/r/", "o/r", ""),
        ("hf://o/r@v1/a/", "o/r", "a/"),
    ],
)
def test_what_a_folder_names(url: str, home: str, name: str):
    assert folder_address(url)[:4] == (url, url[:2], home, name)
    assert folder_address("hf://o/r@v1") == ("hf://o/r@v1/", "hf", "o/r", "", "v1")


def test_credentials_are_refused():
    with pytest.raises(UsageError, match="holds credentials"):
        folder_address("s3://user:word@zoo/a/")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The content of a bucket, and of a repository of the hub, in the place of a server."""
    objects: dict[str, bytes] = {}

    class Client:
        def __init__(self, *_: Any) -> None:
            pass

        def listed(self, prefix: str) -> dict[str, int]:
            return {key: len(data) for key, data in objects.items() if key.startswith(prefix)}

    class Remote(Source):
        first = None

        def __init__(self, url: str, _: object = None, *, name: str, first_bytes: int, place: Path) -> None:
            path = tmp_path / "object"
            path.write_bytes(objects[url.removeprefix("s3://zoo/").removeprefix(f"hf://o/r@{COMMIT}/")])
            super().__init__(path, name)

    def listed(address: Address, _: object) -> tuple[str, dict[str, int]]:
        return COMMIT, Client().listed(address.name)

    monkeypatch.setattr(upload, "Client", Client)
    monkeypatch.setattr(hub, "listed", listed)
    monkeypatch.setattr(mirror, "RemoteSource", Remote)
    return objects


@pytest.mark.parametrize("url", ["s3://zoo/a/", "hf://o/r/a/"])
def test_files_are_holes_and_are_read_where_they_are(url: str, bucket: dict[str, bytes]):
    bucket |= {"a/config.json": b"{}", "a/w/model.pth": b"12345", "a/w/": b"", "b": b"x"}
    with mirrored(url) as home:
        path = Path(home)
        files = {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}
        assert files == {"config.json": 2, "w/model.pth": 5}
        weights = path / "w" / "model.pth"
        assert weights.read_bytes() == bytes(5)
        with open_file(weights) as source:
            assert (source.read(0, 5), source.name) == (b"12345", f"{url}w/model.pth")
        assert (named(path), named(weights), is_mirrored(weights)) == (url, f"{url}w/model.pth", True)
        bucket["a/config.json"] = b"[]"
        assert contents(path / "config.json", 2) == b"[]"
        bucket["a/config.json"] = b"{}"
        assert contents(path / "config.json", 2) == b"[]"  # it is fetched once
        with pytest.raises(DamagedError, match=rf"^{url}w/model\.pth: .* 5 "):
            contents(weights, 4)
    assert not path.exists()
    assert named(weights) == str(weights)


def test_a_path_is_no_mirror(tmp_path: Path):
    with mirrored(tmp_path) as home:
        assert (home, named(home), is_mirrored(home)) == (tmp_path, str(tmp_path), False)


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

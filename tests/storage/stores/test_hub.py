"""The hub's address of a file. A server of the tests' own is in tests/remote."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from chkpt_channels.core.errors import FileSystemError, Location, UsageError
from chkpt_channels.storage.stores import hub
from chkpt_channels.storage.stores.address import parsed
from chkpt_channels.storage.stores.mirror import folder_address

PLACE = Location("hf://a/b/c.pth")


def library(monkeypatch: pytest.MonkeyPatch, **answers: object) -> None:
    def url(repository: str, name: str, *, revision: str, endpoint: str | None) -> str:
        return f"{endpoint or 'https://hub'}/{repository}/resolve/{revision}/{name}"

    def metadata(url: str, **_: object) -> object:
        if isinstance(answers["commit"], Exception):
            raise answers["commit"]
        return SimpleNamespace(commit_hash=answers["commit"])

    class Hub:
        def __init__(self, **_: object) -> None:
            pass

        def model_info(self, repository: str, *, revision: str, timeout: float) -> object:
            return SimpleNamespace(sha=metadata("").commit_hash)  # type: ignore[attr-defined]

        def list_repo_tree(self, repository: str, *, path_in_repo: str | None, recursive: bool, revision: str) -> list[object]:
            assert (path_in_repo, recursive, revision) == ("c", True, "0" * 40)
            return [SimpleNamespace(path="c/d"), SimpleNamespace(path="c/d/e.pth", size=7)]

    headers = SimpleNamespace(build_hf_headers=lambda **_: {"Authorization": "Bearer x"})
    fake = SimpleNamespace(HfApi=Hub, hf_hub_url=url, get_hf_file_metadata=metadata, utils=headers)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


def test_a_revision_becomes_a_commit(monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, commit="0" * 40)
    url, headers = hub.resolved(parsed("hf://a/b@v1/c.pth"), PLACE)
    assert url == f"https://hub/a/b/resolve/{'0' * 40}/c.pth"
    assert headers == {"authorization": "Bearer x"}


def test_the_files_of_a_folder(monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, commit="0" * 40)
    assert hub.listed(folder_address("hf://a/b/c/"), PLACE) == ("0" * 40, {"c/d/e.pth": 7})


def test_what_is_no_commit_is_refused(monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, commit=None)
    with pytest.raises(FileSystemError, match="does not say which commit"):
        hub.resolved(parsed("hf://a/b/c.pth"), PLACE)


@pytest.mark.parametrize(("kind", "words"), hub.WORDS.items())
def test_what_the_library_raises(kind: str, words: str, monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, commit=type(kind, (Exception,), {})("x"))
    with pytest.raises(FileSystemError) as told:
        hub.resolved(parsed("hf://a/b/c.pth"), PLACE)
    assert told.value.what == words
    with pytest.raises(FileSystemError) as told:
        hub.listed(folder_address("hf://a/b/c/"), PLACE)
    assert told.value.what == words


def test_an_error_of_ours_is_no_error_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, commit=ZeroDivisionError("x"))
    with pytest.raises(ZeroDivisionError):
        hub.resolved(parsed("hf://a/b/c.pth"), PLACE)


def test_a_hub_without_encryption_is_refused(monkeypatch: pytest.MonkeyPatch):
    library(monkeypatch, commit="0" * 40)
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://a.org")
    with pytest.raises(UsageError, match="is not encrypted"):
        hub.resolved(parsed("hf://a/b/c.pth"), PLACE)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileSystemError, match="reading the hub needs huggingface_hub") as refused:
        hub.resolved(parsed("hf://a/b/c.pth"), PLACE)
    assert refused.value.hint == "pip install 'chkpt-channels[hf]'"

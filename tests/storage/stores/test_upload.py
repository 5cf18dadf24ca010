"""What is said where nothing can be uploaded; tests/remote/test_writing.py has the calls, against a server."""

from __future__ import annotations

import sys

import pytest

from chkpt_channels.core.errors import FileSystemError, Location, UsageError
from chkpt_channels.storage.stores.address import parsed
from chkpt_channels.storage.stores.upload import Client, taken

ADDRESS, PLACE = parsed("s3://zoo/a/b.pth"), Location("s3://zoo/a/b.pth")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(FileSystemError, match="needs boto3") as raised:
        Client(ADDRESS, PLACE)
    assert raised.value.hint == "pip install 'chkpt-channels[s3]'"


def test_a_name_that_another_took():
    assert str(taken(PLACE)) == "s3://zoo/a/b.pth: was made or changed by another meanwhile, and is not replaced"
    assert taken(PLACE).exit_code == 5


def test_a_server_without_encryption_is_refused(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example.org")
    with pytest.raises(UsageError, match="not encrypted"):
        Client(ADDRESS, PLACE)

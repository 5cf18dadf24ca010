"""What the library of stores raises becomes one line of our own words. Real servers are in tests/remote."""

from __future__ import annotations

import sys

import pytest

from chkpt_channels.core.errors import FileSystemError, Location
from chkpt_channels.storage.stores import connection
from chkpt_channels.storage.stores.address import parsed

PLACE = Location("s3://zoo/a.pth")
ADDRESS = parsed("s3://zoo/a.pth")


def raised(kind: str, text: str) -> Exception:
    return type(kind, (Exception,), {})(text)


@pytest.mark.parametrize(
    ("error", "words", "passes"),
    [
        (FileNotFoundError("Object at location"), "no such object in the store", False),
        (raised("PermissionDeniedError", "status code: 403 Forbidden: AKIA"), "its server refuses access (403 Forbidden)", False),
        (raised("UnauthenticatedError", "no status"), "its server refuses access (403)", False),
        (raised("PreconditionError", "x"), "was changed while it was read", False),
        (raised("GenericError", "status code: 503 Service Unavailable: <E>"), "its server answers 503 Service Unavailable", True),
        (raised("GenericError", "status code: 429 Too Many Requests"), "its server answers 429 Too Many Requests", True),
        (raised("GenericError", "status code: 301 Moved"), "its server answers 301 Moved", False),
        (raised("GenericError", "Requested 0..5, got 1..5"), "its server answers with another range than was asked for", False),
        (raised("GenericError", "error: IncompleteBody"), "its server cut the answer short", True),
        (raised("GenericError", "kind: Timeout"), "its server stopped answering", True),
        (raised("GenericError", "HTTP error: error sending request"), "its server cannot be reached", True),
        (raised("GenericError", "PUT http://169.254.169.254/latest"), "no credentials are found", False),
        (
            raised("GenericError", "Generic S3 error: Received non-partial response when range requested"),
            "its server sends the whole object where a range was asked for",
            False,
        ),
        (raised("InvalidPathError", "x"), "its key cannot be read: it has empty parts, or parts that are dots", False),
        (raised("GenericError", "odd at https://a?X-Amz-Signature=1"), "its store cannot be read: odd", False),
    ],
)
def test_what_went_wrong(error: Exception, words: str, passes: bool):
    what, is_passing, _ = connection._reading(error, ADDRESS)
    assert (what, is_passing) == (words, passes)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(FileSystemError, match="reading a store needs obstore") as refused:
        connection.Connection(ADDRESS, PLACE)
    assert refused.value.hint == "pip install 'chkpt-channels[remote]'"

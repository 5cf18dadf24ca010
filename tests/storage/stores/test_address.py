"""What URLs name, and which are refused."""

from __future__ import annotations

import pytest

from chkpt_channels.core.errors import ChkptChannelsError, UnsupportedError, UsageError
from chkpt_channels.storage.stores import address
from chkpt_channels.storage.stores.address import Address


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("s3://zoo/a/b c.pth", ("s3", "zoo", "a/b c.pth", "main")),
        ("s3://zoo/a?b#c.pth", ("s3", "zoo", "a?b#c.pth", "main")),
        ("https://a.org:8080/x/y.pth?download=1", ("https", "a.org:8080", "x/y.pth", "main")),
        ("http://127.0.0.1:9000/y.pth", ("http", "127.0.0.1:9000", "y.pth", "main")),
        ("http://[::1]/y.pth", ("http", "[::1]", "y.pth", "main")),
        ("hf://timm/resnet50/model.safetensors", ("hf", "timm/resnet50", "model.safetensors", "main")),
        ("hf://a/b@v1.0/c/d.onnx", ("hf", "a/b", "c/d.onnx", "v1.0")),
        ("hf://a/b@refs%2Fpr%2F1/c.pth", ("hf", "a/b", "c.pth", "refs/pr/1")),
    ],
)
def test_what_a_url_names(url: str, named: tuple[str, ...]):
    assert address.parsed(url) == Address(url, *named)


REFUSED = [
    ("https://user:word@a.org/b.pth", UsageError, "holds credentials"),
    ("s3://key:secret@zoo/b.pth", UsageError, "holds credentials"),
    ("https://a.org/b.pth?X-Amz-Signature=12&X-Amz-Credential=3", UsageError, "holds credentials"),
    ("https://a.org/b.pth?sig=12", UsageError, "holds credentials"),
    ("https://a.org/b.pth?access_token=12", UsageError, "holds credentials"),
    ("http://a.org/b.pth", UsageError, "is not encrypted"),
    ("http://127.0.0.1.a.org/b.pth", UsageError, "is not encrypted"),
    ("s3://zoo", UnsupportedError, "is a folder in a store"),
    ("s3://zoo/models/", UnsupportedError, "is a folder in a store"),
    ("hf://a/b", UnsupportedError, "is a folder in a store"),
    ("hf://a", UsageError, "names no file of a repository"),
    ("s3:///a.pth", UsageError, "names no object"),
    ("https://[a/b", UsageError, "is no URL"),
    ("https://a:b/c", UsageError, "is no URL"),
    ("gs://zoo/a.pth", UnsupportedError, "is in a store that is not read"),
    ("az://zoo/a.pth", UnsupportedError, "is in a store that is not read"),
    ("abfss://zoo@account.dfs.core.windows.net/a.pth", UnsupportedError, "is in a store that is not read"),
]


@pytest.mark.parametrize(("url", "kind", "what"), REFUSED)
def test_what_is_refused(url: str, kind: type[ChkptChannelsError], what: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(address.ALLOW_HTTP, raising=False)
    with pytest.raises(kind, match=what) as refused:
        address.parsed(url)
    assert not any(secret in str(refused.value) for secret in ("word", "secret@", "=12"))


def test_http_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(address.ALLOW_HTTP, "true")
    assert address.parsed("http://a.org/b.pth").scheme == "http"


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("s3://zoo/a b.pth", "aws s3 cp 's3://zoo/a b.pth' ."),
        ("s3://zoo/a/", "aws s3 sync s3://zoo/a/ DIR"),
        ("gs://zoo/a.pth", "gcloud storage cp gs://zoo/a.pth ."),
        ("az://zoo/a.pth", "azcopy copy az://zoo/a.pth ."),
        ("https://a.org/b.pth", "curl -LO https://a.org/b.pth"),
        ("hf://a/b@v1/c.pth", "hf download a/b c.pth --revision v1 --local-dir b"),
        ("hf://a/b", "hf download a/b --local-dir b"),
    ],
)
def test_what_fetches_it(url: str, command: str):
    assert address.fetching(url) == command


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("s3://zoo/a.pth", "-o FILE, and aws s3 cp FILE s3://zoo/a.pth"),
        ("gs://zoo/a.pth", "-o FILE, and gcloud storage cp FILE gs://zoo/a.pth"),
        ("az://zoo/a.pth", "-o FILE, and azcopy copy FILE az://zoo/a.pth"),
        ("hf://a/b/c.pth", "-o FILE, and hf upload a/b FILE c.pth"),
        ("https://a.org/b", "-o FILE, and curl -T FILE https://a.org/b"),
    ],
)
def test_what_uploads_to_it(url: str, command: str):
    assert address.uploading(url) == command

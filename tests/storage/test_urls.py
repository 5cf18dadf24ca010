"""What is a URL, and what of it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from chkpt_channels.storage import urls


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("s3://zoo/a.pth", True),
        ("HTTPS://a.org/b", True),
        ("hf://a/b/c", True),
        ("gs://zoo/a", True),
        ("a.pth", False),
        ("-", False),
        ("s3:/zoo/a.pth", False),
        ("ftp://a/b", False),
        ("folder/s3://a", False),
    ],
)
def test_what_is_a_url(name: str, is_one: bool):
    assert urls.is_url(name) is is_one
    assert urls.is_url(Path("a") / "b") is False


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("https://user:word@a.org/b?sig=1", "https://…a.org/b?…"),
        ("https://a.org/b?download=1", "https://a.org/b?…"),
        ("s3://zoo/a@b.pth", "s3://zoo/a@b.pth"),
        ("s3://zoo/what?.pth", "s3://zoo/what?.pth"),
        ("s3://zoo/a.pth?X-Amz-Signature=1", "s3://zoo/a.pth?…"),
        ("s3://zoo/a.pth?b=1&password=word", "s3://zoo/a.pth?…"),
        ("s3://zoo/a.pth?AWSAccessKeyId=word", "s3://zoo/a.pth?…"),
        ("hf://owner/repo@v1/a.pth", "hf://owner/repo@v1/a.pth"),
        ("user:word@a.pth", "user:word@a.pth"),
    ],
)
def test_no_credentials_are_shown(name: str, seen: str):
    assert urls.shown(name) == seen


def test_the_name_of_a_file():
    assert urls.file_name("https://a.org/b/c.pth?download=1") == "c.pth"
    assert urls.file_name(Path("a") / "c.pth") == "c.pth"


def test_a_bucket_is_written_to():
    assert urls.is_bucket("s3://zoo/a.pth")
    assert urls.is_bucket("S3://zoo/a.pth")
    folders = ("s3://zoo/", "s3://zoo/a/", "hf://owner/repo", "hf://owner/repo@v1", "hf://owner/repo/", "hf://owner/repo/a/")
    assert all(map(urls.is_prefix, folders))
    assert not any(
        map(urls.is_prefix, ("s3://zoo/a", "hf://owner", "hf://owner/repo/a.pth", "https://zoo.org/a/", "a/", Path("a")))
    )
    assert not any(map(urls.is_bucket, ("https://zoo.org/a.pth", "hf://a/b/c", "gs://zoo/a", "s3/a.pth", Path("a"))))

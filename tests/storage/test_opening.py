"""What a name opens, and which outputs are none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chkpt_channels.core.errors import FileSystemError, UnsupportedError, UsageError
from chkpt_channels.storage import opening


def test_a_file_is_opened_as_one(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    with opening.open_source(tmp_path / "a") as source:
        assert source.read(0, 3) == b"abc"
        source.expect([(0, 1)])  # costs nothing


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(FileSystemError, match="standard input: is closed"):
        opening.open_source("-")


def test_outputs_are_files_and_objects_of_s3():
    opening.check_output("a/b.pth")
    opening.check_output("s3://zoo/out.pth")
    with pytest.raises(UnsupportedError) as refused:
        opening.check_output("gs://zoo/out.pth")
    assert refused.value.hint == "-o FILE, and gcloud storage cp FILE gs://zoo/out.pth"


def test_the_output_of_a_url_is_named():
    opening.check_named("a.pth", None)
    opening.check_named("s3://zoo/a.pth", "a.pth")
    opening.check_named("s3://zoo/a.pth", None)
    with pytest.raises(UsageError, match="not written to: name a file"):
        opening.check_named("https://zoo.org/a.pth", None)

from __future__ import annotations

import io
import os
import sys
from types import SimpleNamespace

import pytest

from chkpt_channels.core.errors import UsageError
from chkpt_channels.storage.standard_output import StandardOutput


def stream(*, terminal: bool) -> SimpleNamespace:
    return SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: terminal)


def test_standard_output_gets_the_whole_file_or_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", fake := stream(terminal=False))
    with StandardOutput() as out:
        os.write(out.fd, b"unpublished")
    assert fake.buffer.getvalue() == b""
    with StandardOutput() as out:
        os.write(out.fd, b"x" * 3_000_000)
        out.publish()
    assert fake.buffer.getvalue() == b"x" * 3_000_000


def test_no_binary_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", stream(terminal=True))
    with pytest.raises(UsageError, match="terminal"):
        StandardOutput()

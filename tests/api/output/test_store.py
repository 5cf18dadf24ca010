"""What an output in a store may not be; tests/remote/test_writing.py writes there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import convert
from chkpt_channels.core.errors import ChkptChannelsError
from tests.support.files import FIXTURES

PTH = FIXTURES / "torch_zip" / "state_dict.pth"
REFUSED: dict[str, tuple[Any, str, dict[str, Any], int, str]] = {
    "sha256": (PTH, "s3://zoo/a.pth", {"sha256": True}, 2, "need the whole content"),
    "a hash in its name": (PTH, "s3://zoo/a.pth", {"hash_name": True}, 2, "need the whole content"),
    "a state dict": (PTH, "s3://zoo/a.pth", {"state_dict": "model"}, 2, "needs an output in another format"),
    "another format": (PTH, "s3://zoo/a.safetensors", {}, 2, "a store gets files of the source's format"),
    "another store": (PTH, "gs://zoo/a.pth", {}, 4, "to files and to s3://"),
    "data files": (FIXTURES / "onnx" / "external.onnx", "s3://zoo/a.onnx", {}, 4, "go beside it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_written_to_a_store(name: str):
    source, target, more, code, says = REFUSED[name]
    with pytest.raises(ChkptChannelsError, match=says) as raised:
        convert(source, target, to="gray", **more)
    assert raised.value.exit_code == code
    assert raised.value.hint


def test_a_folder_is_written_to_a_folder(tmp_path: Path):
    """In a store too: its URL ends with a slash."""
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "num_channels": 3}')
    shutil.copy(PTH, tmp_path)
    with pytest.raises(ChkptChannelsError, match="its URL ends with a slash") as raised:
        convert(tmp_path, "s3://zoo/a", to="gray")
    assert (raised.value.exit_code, raised.value.hint) == (2, "-o s3://zoo/a/")


def test_a_dry_run_needs_no_store():
    report = convert(PTH, "s3://zoo/out/a.pth", to="gray", dry_run=True)
    assert (report.status, report.target, report.transfer) == ("would_convert", "s3://zoo/out/a.pth", None)
    assert report.load_lines
    assert "'a.pth'" in "\n".join(report.load_lines)

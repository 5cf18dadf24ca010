"""The JSON records: one shape for every command, null or empty where it does not apply."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chkpt_channels import AmbiguousError, Candidate, convert, inspect, verify
from chkpt_channels.api import report
from tests.support.files import FIXTURES

TRAINING = FIXTURES / "torch_zip" / "training.ckpt"
MODULE = FIXTURES / "torch_zip" / "module.pth"
KEYS = {
    "status", "input", "output", "beside", "next", "architecture", "notes", "in_channels", "method",
    "method_why", "matrix", "offset", "first_convs", "candidates",
    "declarations", "tensors", "pipeline", "options", "parity", "differences", "warnings", "error", "transfer",
}  # fmt: skip
STATUSES = {
    "converted", "unchanged", "would_convert", "inspected", "identical", "different", "agrees", "disagrees", "skipped", "failed",
}  # fmt: skip


def records(tmp_path: Path) -> dict[str, dict[str, Any]]:
    gray = tmp_path / "gray.ckpt"
    error = AmbiguousError("many", file="a.pth", candidates=[Candidate("k", (1, 2), "why")])
    return {
        "converted": convert(TRAINING, gray).result(),
        "unchanged": convert(TRAINING, tmp_path / "same.ckpt", to="rgb").result(),
        "would_convert": convert(MODULE, dry_run=True).result(),
        "inspected": inspect(MODULE).result(),
        "identical": verify(TRAINING, gray).result(),
        "different": verify(TRAINING, gray, optimizer="drop").result(),
        "failed": report.failure_record("a.pth", error),
    }


def test_every_record_has_the_same_shape(tmp_path: Path):
    for status, record in records(tmp_path).items():
        assert record["status"] == status
        assert status in STATUSES
        assert record.keys() == KEYS
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["input"].keys() == {"path", "format", "bytes"}
        assert record["output"] is None or record["output"].keys() == {"path", "bytes", "sha256"}
        assert record["in_channels"] is None or record["in_channels"].keys() == {"before", "after"}
        assert record["tensors"] is None or record["tensors"].keys() == {"total", "changed"}
        assert record["parity"] is None or record["parity"].keys() == {"max_abs", "max_ulp"}
        assert record["architecture"] is None or record["architecture"].keys() == {"library", "names", "how"}
        assert all(isinstance(line, str) for line in record["next"])
        for conv in record["first_convs"]:
            assert conv.keys() == {"key", "layout", "dtype", "shape_before", "shape_after", "found_by", "why"}
            assert conv["found_by"] in {"user", "graph", "sidecar", "shapes", "names"}
        for rows, keys in [
            ("candidates", {"key", "shape", "why_not"}),
            ("declarations", {"file", "where", "before", "after"}),
            ("differences", {"key", "message"}),
            ("warnings", {"code", "message"}),
            ("notes", {"code", "message"}),
        ]:
            assert all(row.keys() == keys for row in record[rows])


def test_a_conversion_in_numbers(tmp_path: Path):
    record = convert(TRAINING, tmp_path / "gray.ckpt").result()
    assert record["input"] == {"path": str(TRAINING), "format": "torch_zip", "bytes": TRAINING.stat().st_size}
    assert record["output"] == {
        "path": str(tmp_path / "gray.ckpt"),
        "bytes": (tmp_path / "gray.ckpt").stat().st_size,
        "sha256": None,
    }
    assert record["in_channels"] == {"before": 3, "after": 1}
    assert (record["method"], record["matrix"], record["offset"]) == ("sum", [[1.0], [1.0], [1.0]], None)
    assert [conv["key"] for conv in record["first_convs"]] == ["model/module.conv1.weight", "model_ema/conv1.weight"]
    assert record["first_convs"][0] | {"why": ""} == {
        "key": "model/module.conv1.weight", "layout": "OIHW", "dtype": "F32", "shape_before": [6, 3, 7, 7],
        "shape_after": [6, 1, 7, 7], "found_by": "shapes", "why": "",
    }  # fmt: skip
    assert record["tensors"] == {"total": 136, "changed": 5}
    assert 0 <= record["parity"]["max_ulp"] < 64
    assert [warning["code"] for warning in record["warnings"]] == ["foreign_globals", "hyper_parameters"]


def test_declarations_before_and_after(tmp_path: Path):
    (row,) = convert(MODULE, tmp_path / "gray.pth").result()["declarations"]
    assert row == {"file": str(MODULE), "where": "conv1.in_channels", "before": 3, "after": 1}
    (row,) = inspect(MODULE).result()["declarations"]
    assert row == {"file": str(MODULE), "where": "conv1.in_channels", "before": 3, "after": None}


def test_an_unchanged_file_has_no_matrix_to_speak_of(tmp_path: Path):
    record = convert(TRAINING, tmp_path / "same.ckpt", to="rgb").result()
    assert record["tensors"]["changed"] == 0
    assert record["parity"] is None
    assert record["matrix"] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_a_failure():
    error = AmbiguousError("many", file="a.pth", candidates=[Candidate("k", (1, 2))])
    record = report.failure_record("a.pth", error)
    candidates = [{"key": "k", "shape": [1, 2], "why_not": ""}]
    assert record["error"] == {"code": "ambiguous", "message": "a.pth: many", "hint": None, "candidates": candidates}
    assert record["candidates"] == candidates
    assert record["input"] == {"path": "a.pth", "format": None, "bytes": None}


def test_the_document_around_the_records():
    document = report.document("convert", 3, [{"status": "failed"}], "1.2.3")
    assert document == {
        "schema_version": "1.5",
        "tool": {"name": "chkpt-channels", "version": "1.2.3"},
        "command": "convert",
        "exit_code": 3,
        "results": [{"status": "failed"}],
    }

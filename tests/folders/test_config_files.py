"""Configurations beside weights: which files are read, and the report that verify goes by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import UsageError
from chkpt_channels.folders.config_files import names, options_in_report
from chkpt_channels.transform.options import as_keywords, build_options

WORDS = [
    {"to": "gray"},
    {"to": "bgr", "norm": "clip", "input_range": 255, "layers": ["conv1"]},
    {"to": "gray", "norm": "caffe"},
    {"to": "gray", "norm": "caffe", "channel_order": "rgb", "input_range": 1},
    {"to": "gray", "mean": "0.1,0.2,0.3", "channel_order": "bgr"},
    {"to": 4, "luma": None, "method": "zero", "mean": "0.1,0.2,0.3", "std": [1, 1.2, 1.3], "optimizer": "drop", "strict": True},
    {"to": None, "bands": "A=0,B=mean", "new_mean": "1,0.2", "norm": "half", "layout": "OIHW", "from_channels": 3},
    {"to": None, "matrix": [[1, 2], [3, 4], [5, 6]], "set_hparams": True, "allow_nonfinite": True, "inputs": ["x"]},
    {"to": None, "select": "R,1", "channel_order": "bgr"},
    {"to": 3, "luma": "bt601"},
]


@pytest.mark.parametrize("words", WORDS, ids=str)
def test_a_report_asks_for_the_same_again(words: dict[str, Any], tmp_path: Path):
    asked = build_options(**words)
    report = tmp_path / "r.json"
    report.write_text(json.dumps({"results": [{"options": as_keywords(asked)}]}))
    assert build_options(**{"to": None, **options_in_report(report)}) == asked


@pytest.mark.parametrize(
    "document",
    [
        "[]", "{}", '{"results": []}', '{"results": [{}]}', '{"results": [{"options": []}]}',
        '{"results": [{"options": {}}, {"options": {}}]}',
        *(json.dumps({"results": [{"options": {key: value}}]}) for key, value in [
            ("foo", 1), ("force", True), ("layers", 5), ("select", {"a": 1}), ("method", 3), ("to", {}), ("matrix", [[None]]),
            ("mean", [[[1]]]), ("strict", "no"),
        ]),
    ],
)  # fmt: skip
def test_hostile_reports(document: str, tmp_path: Path):
    (tmp_path / "r.json").write_text(document)
    with pytest.raises(UsageError):
        options_in_report(tmp_path / "r.json")


def test_the_configurations_of_a_folder_are_known_by_their_names(tmp_path: Path):
    for name in ("config.json", "preprocessor.json", "task.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["config.json", "preprocessor.json", "task.json"]

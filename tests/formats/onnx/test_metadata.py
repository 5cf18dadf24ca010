"""The number of channels in a model's metadata: it follows, is compared, and nothing else under that name is."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from chkpt_channels import check, convert, verify
from tests.support.onnx_models import model, node, noise

KERNEL = {"kernel": noise(5, 3, 3, 3)}
EXPORTED = {"stride": "32", "imgsz": "[8, 8]", "channels": "3"}


def saved(path: Path, entries: dict[str, str]) -> Path:
    made = model([node("Conv", ["image", "kernel"], ["out"])], KERNEL)
    onnx.helper.set_model_props(made, entries)
    onnx.save(made, path)
    return path


def entries(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize(("to", "method"), [("gray", "sum"), ("gray", "stack"), (12, "repeat")])
def test_it_follows(to: str | int, method: str, tmp_path: Path):
    source, out = saved(tmp_path / "a.onnx", EXPORTED), tmp_path / "b.onnx"
    report = convert(source, out, to, method=method)
    count = 1 if to == "gray" else 12
    assert [(d.where, d.before, d.after) for d in report.declarations][-1] == ("metadata_props channels", 3, count)
    assert entries(out) == {**EXPORTED, "channels": str(count)}
    assert verify(source, out, to, method=method).ok
    assert check(out, to).ok


def test_a_swap_leaves_it(tmp_path: Path):
    convert(saved(tmp_path / "a.onnx", EXPORTED), tmp_path / "b.onnx", "bgr")
    assert entries(tmp_path / "b.onnx") == EXPORTED


@pytest.mark.parametrize("value", ["64", "three", "", "3.0", "\u0663", "3" * 40])
def test_another_value_stays(value: str, tmp_path: Path):
    other = {"channels": value, "note": "3"}
    convert(saved(tmp_path / "a.onnx", other), tmp_path / "b.onnx", "gray")
    assert entries(tmp_path / "b.onnx") == other
    assert check(tmp_path / "b.onnx", "gray").ok


def test_a_stale_one_is_found(tmp_path: Path):
    (mismatch,) = check(saved(tmp_path / "a.onnx", {**EXPORTED, "channels": "1"})).mismatches
    assert (mismatch.where, mismatch.found, mismatch.expected) == ("metadata_props channels", 1, 3)
    convert(tmp_path / "a.onnx", tmp_path / "b.onnx", 4)
    assert entries(tmp_path / "b.onnx")["channels"] == "1"

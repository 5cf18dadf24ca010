"""One row as a worker does it, and what a ledger keeps of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels.api.fleet import work
from chkpt_channels.api.fleet.ledger import stamp
from chkpt_channels.api.manifest import Job
from chkpt_channels.api.output.target import Settings
from chkpt_channels.api.report import Report
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
EXTERNAL = FIXTURES / "onnx" / "external.onnx"


def test_an_answer_has_the_stamps_of_before_and_after(tmp_path: Path):
    job = Job(str(RGB), str(tmp_path / "x.pth"), "gray", {})
    answer = work.task(job, "1", Settings())
    assert isinstance(answer.result, Report)
    assert (answer.source_stamp, answer.target_stamp) == (stamp(RGB), stamp(tmp_path / "x.pth"))
    line = work.line_of("id", job, answer)
    assert (line.status, line.exit, line.dst, line.size) == (
        "converted",
        0,
        str(tmp_path / "x.pth"),
        os.path.getsize(line.dst or ""),
    )
    assert line.holds(force=False)


def test_a_refusal_is_kept_with_its_place(tmp_path: Path):
    (tmp_path / "bad.pth").touch()
    job = Job(str(tmp_path / "bad.pth"), None, "gray", {})
    line = work.line_of("id", job, work.task(job, "1", Settings()))
    assert (line.status, line.exit, line.dst) == ("failed", 3, str(tmp_path / "bad_gray.pth"))
    assert line.holds(force=False)
    shutil.copy(RGB, tmp_path / "bad.pth")
    assert not line.holds(force=False)


@pytest.mark.parametrize(
    ("raised", "code", "exit_code"),
    [(MemoryError(), "system", 5), (ImportError("no h5py"), "system", 5), (KeyError("x"), "error", 70)],
)
def test_what_is_no_error_of_this_package(
    raised: Exception, code: str, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(work, "convert", fails)
    job = Job(str(RGB), str(tmp_path / "x.pth"), "gray", {})
    answer = work.task(job, "1", Settings())
    assert answer.result is raised
    line = work.line_of("id", job, answer)
    assert line.error is not None
    assert (line.error["code"], line.exit) == (code, exit_code)
    assert not line.holds(force=False)


def test_a_result_that_hangs_on_more_than_the_source_is_not_relied_on(tmp_path: Path):
    """Data files and configurations beside it: nobody has looked whether these have changed."""
    home = tmp_path / "resnet-50"
    home.mkdir()
    shutil.copy(RGB, home / "pytorch_model.bin")
    (home / "config.json").write_text('{"model_type": "resnet", "num_channels": 3}')
    (home / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    shutil.copytree(EXTERNAL.parent, tmp_path / "onnx")
    jobs = {
        "data": (Job(str(tmp_path / "onnx" / EXTERNAL.name), str(tmp_path / "x.onnx"), "gray", {}), Settings()),
        "auto": (Job(str(home / "pytorch_model.bin"), str(tmp_path / "x.bin"), "gray", {"norm": "auto"}), Settings()),
        "folder": (Job(str(home), str(tmp_path / "whole"), "gray", {"norm": "auto"}), Settings()),
    }
    relied = {name: work.line_of("id", job, work.task(job, "1", how)).holds(force=False) for name, (job, how) in jobs.items()}
    assert relied == {"data": False, "auto": False, "folder": True}


def test_the_first_line_of_an_error():
    assert work.first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert work.first_line(KeyError()) == "KeyError: "


def test_the_output_that_a_row_names():
    assert work._named(Job("a.pth", "x.pth", "gray", {})) == "x.pth"
    assert work._named(Job("s3://zoo/a.pth", None, "gray", {})) == "s3://zoo/a_gray.pth"
    assert work._named(Job("a.pth", None, "gray", {})) == "a_gray.pth"
    assert work._named(Job("a.pth", None, None, {"like": "b.pth"})) is None

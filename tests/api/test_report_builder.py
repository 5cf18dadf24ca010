"""Records of a planned model: inputs, kernels with the names of their parts, what a conversion declares anew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from chkpt_channels.api.report_builder import conversion_report, file_info, kernel_reports
from chkpt_channels.folders.model_folder import open_model
from chkpt_channels.folders.planning import plan_model
from chkpt_channels.transform.options import build_options
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "module.pth"


def test_a_file():
    options = build_options("gray")
    with open_model(RGB, options) as model:
        planned = plan_model(model, options)
        report = conversion_report(model, planned, options, None)
        assert file_info(model).bytes == RGB.stat().st_size
    assert (report.status, report.in_channels, report.why) == ("converted", (3, 1), "exact for a gray image stacked 3 times")
    assert (report.output, report.target, report.parity) == (None, "", None)
    assert report.options == {"to": 1}
    assert {(d.before, d.after, d.file) for d in report.declarations} == {(3, 1, "")}
    assert report.parameters_fewer > 0


def test_a_folder(tmp_path: Path):
    for name in ("a", "b"):
        safetensors.numpy.save_file({"conv1.weight": np.ones((8, 3, 7, 7), np.float32)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    options = build_options("gray")
    with open_model(tmp_path, options) as model:
        planned = plan_model(model, options)
        names = [kernel.conv.tensor.name for kernel in kernel_reports(model, planned)]
        report = conversion_report(model, planned, options, None)
        whole, unmeasured = file_info(model), file_info(model, measured=False)
    assert names == ["a.safetensors/conv1.weight", "b.safetensors/conv1.weight"]
    assert whole.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert unmeasured.bytes == 0
    (change,) = report.declarations  # a count that was left to the default has no value before
    assert (change.where, change.before, change.after) == ("num_channels", None, 1)
    assert change.file == str(tmp_path / "config.json")

"""Plain PyTorch, safetensors and ONNX files are converted without numpy, ml_dtypes and h5py: to the bytes that numpy makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chkpt_channels import convert
from chkpt_channels.core import elements
from chkpt_channels.discovery.find import find_first_convs
from tests.contract.test_contract import PLAIN
from tests.support.files import FIXTURES, Truth, opened

WITHOUT = """
import importlib.abc, json, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("numpy", "ml_dtypes", "h5py"):
            raise ImportError(f"{name} is missing")

sys.meta_path.insert(0, Missing())
from chkpt_channels.cli.app import run

with open(sys.argv[1]) as asked:
    commands = json.load(asked)
print(json.dumps([(command, code) for command in commands if (code := run([*command, "-q"]))]), file=sys.stderr)
"""


def is_plain(truth: Truth) -> bool:
    with opened(truth.path) as checkpoint:
        dtypes = {conv.tensor.dtype.name for conv in find_first_convs(checkpoint).first_convs}
        return dtypes <= elements.PLAIN and truth.path.parent.name in ("torch_zip", "torch_legacy", "safetensors", "onnx")


FILES = [truth.path for truth in PLAIN if is_plain(truth)]
OTHERS = {"0": ["--to", "5"], "1": ["--select", "2,1,0"], "2": ["--to", "gray", "--luma", "bt709"], "3": ["--to", "bgr"]}
"""Ways beside the sum, of some files."""


def test_plain_files_need_no_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    outputs = {tmp_path / f"{i}{path.suffix}": (path, ["--to", "gray"]) for i, path in enumerate(FILES)}
    rgb = FIXTURES / "torch_zip" / "state_dict.pth"
    outputs |= {tmp_path / f"other{i}.pth": (rgb, ways) for i, ways in OTHERS.items()}
    commands = [["convert", str(path), *ways, "-o", str(out)] for out, (path, ways) in outputs.items()]
    commands += [["verify", str(path), str(out), *ways] for out, (path, ways) in outputs.items()]
    commands += [[command, str(path)] for path in FILES for command in ("inspect", "check")]
    (tmp_path / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    code = [sys.executable, "-c", WITHOUT, str(tmp_path / "commands.json")]
    done = subprocess.run(code, cwd=FIXTURES.parent, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1:] == ["[]"], done.stderr
    assert len(FILES) > 30
    monkeypatch.setattr(elements, "MOST", 0)
    (tmp_path / "numpy").mkdir()
    for out, (path, ways) in outputs.items():
        words = {way.removeprefix("--"): value for way, value in zip(ways[::2], ways[1::2], strict=True)}
        convert(path, tmp_path / "numpy" / out.name, **words)
        assert out.read_bytes() == (tmp_path / "numpy" / out.name).read_bytes(), (path, ways)

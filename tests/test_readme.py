"""Every command of the README runs as it stands there, on files of the names that it uses."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.support.files import FIXTURES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ ").strip()
    for line in re.findall(r"^(?:    |\$ )(.*)$", README, re.MULTILINE)
    if re.match(r"(\$ )?(chkpt-channels|curl) ", line)
]
STUBS = {
    "chkpt-channels": f'exec "{sys.executable}" -m chkpt_channels "$@"',
    "curl": 'cat "$URL"',
    "aws": "cat > uploaded.safetensors",
    "jq": "cat",
}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with everything that the README speaks of, and the programs on its path."""
    zip_ = FIXTURES / "torch_zip"
    shutil.copy(zip_ / "state_dict.pth", tmp_path / "resnet50.pth")
    shutil.copy(zip_ / "lightning.ckpt", tmp_path / "epoch_12.ckpt")
    for name in ("model", "vit"):
        shutil.copy(FIXTURES / "safetensors" / f"{name}.safetensors", tmp_path)
    (tmp_path / "zoo").mkdir()
    for name in ("a", "b"):
        shutil.copy(zip_ / "state_dict.pth", tmp_path / "zoo" / f"{name}.pth")
    (tmp_path / "unet").mkdir()
    latent = {"conv_in.weight": np.ones((8, 4, 3, 3), np.float32), "conv_out.weight": np.ones((4, 8, 3, 3), np.float32)}
    safetensors.numpy.save_file(latent, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "resnet-50").mkdir()
    shutil.copy(zip_ / "state_dict.pth", tmp_path / "resnet-50" / "pytorch_model.bin")
    (tmp_path / "resnet-50" / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": 3}))
    images = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "resnet-50" / "preprocessor_config.json").write_text(json.dumps(images))
    (tmp_path / "bin").mkdir()
    for name, body in STUBS.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def test_there_are_commands():
    assert len(COMMANDS) > 12


def test_every_command_runs(desk: Path):
    environment = {
        **os.environ,
        "PATH": f"{desk / 'bin'}:{os.environ['PATH']}",
        "URL": "model.safetensors",
        "MPLCONFIGDIR": str(desk),
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    gray = desk / "resnet50_gray.pth"
    for command in COMMANDS:
        if command.startswith("chkpt-channels convert resnet50.pth") and gray.exists():
            gray.replace(desk / "kept.pth")  # the README makes it more than once, and nothing is overwritten unasked
        run = ["bash", "-o", "pipefail", "-c", command]
        done = subprocess.run(run, cwd=desk, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (command, done.stderr)
        if not gray.exists():
            shutil.copy(desk / "kept.pth", gray)
    assert (desk / "uploaded.safetensors").stat().st_size > 1000
    assert json.loads((desk / "resnet-50-gray" / "config.json").read_text())["num_channels"] == 1

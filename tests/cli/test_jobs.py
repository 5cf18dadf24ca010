from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import fleet
from chkpt_channels.api.fleet.row import with_output_dir
from chkpt_channels.cli.app import run
from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
COUNT = 60
SHAPES = {"conv1.weight": (8, 3, 7, 7), "conv2.weight": (8, 8, 3, 3), "fc.weight": (4, 8)}


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Sixty models of different weights."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(COUNT):
        tensors = {name: random.random(shape, np.float32) for name, shape in SHAPES.items()}
        safetensors.numpy.save_file(tensors, folder / f"m{i:02}.safetensors")
    return folder


def jobs(zoo: Path, out: Path) -> list[fleet.Job]:
    names = sorted(path.name for path in zoo.iterdir())
    return with_output_dir(str(out), [fleet.Job(str(zoo / name), None, "gray", {}) for name in names])


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def expected(zoo: Path, tmp_path: Path) -> dict[str, str]:
    """The hashes that one process gives."""
    for outcome in fleet.run(jobs(zoo, tmp_path / "one")):
        outcome.get()
    return hashes(tmp_path / "one")


def test_workers_that_are_killed_behind_any_result(zoo: Path, expected: dict[str, str], tmp_path: Path):
    for kill_at in range(1, COUNT, 6):
        out = tmp_path / f"killed{kill_at}"
        statuses = []
        for i, outcome in enumerate(fleet.run(jobs(zoo, out), workers=2), 1):
            statuses.append(outcome.get().status)
            if i == kill_at:
                active_children()[0].kill()
        # killed behind its publishing and before its answer, a conversion is found to be up to date by the next
        assert len(statuses) == COUNT, kill_at
        assert statuses.count("converted") >= COUNT - 1, kill_at
        assert set(statuses) <= {"converted", "current"}, kill_at
        assert hashes(out) == expected


DYING = """
import os, signal, sys
from chkpt_channels.cli import session
from chkpt_channels.cli.app import run

add, told = session.Session.add, []

def counted(self, *arguments, **named):
    add(self, *arguments, **named)
    told.append(1)
    if len(told) == 20:
        os.kill(os.getpid(), signal.SIGKILL)

session.Session.add = counted
sys.exit(run(sys.argv[1:]))
"""
"""A command that is killed behind its twentieth result."""


def ended(group: int) -> bool:
    """Whether no process of the group is left: the workers end when they see that nobody listens."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_driver_that_is_killed_and_the_same_command_again(workers: str, zoo: Path, expected: dict[str, str], tmp_path: Path):
    arguments = ["convert", *sorted(str(path) for path in zoo.iterdir()), "--to", "gray", "--output-dir", str(tmp_path / "out")]
    arguments += ["-j", workers, "--output-format", "jsonl"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.Popen(
        [sys.executable, "-c", DYING, *arguments], stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    assert killed.wait() == -signal.SIGKILL
    for _ in range(3000):  # not for ever: where nobody collects orphans, the dead stay in the group
        if ended(killed.pid):
            break
        time.sleep(0.01)
    done = len(os.listdir(tmp_path / "out"))  # twenty, and what was under way
    again = subprocess.run(
        [sys.executable, "-m", "chkpt_channels", *arguments], stdout=subprocess.PIPE, env=environment, check=True
    )
    statuses = [json.loads(line)["status"] for line in again.stdout.splitlines()]
    assert statuses.count("current") == done >= 20
    assert statuses.count("converted") == COUNT - done
    assert workers == "2" or done == 20
    assert hashes(tmp_path / "out") == expected


def test_a_stale_result_is_never_up_to_date(zoo: Path, expected: dict[str, str], tmp_path: Path, capsys):
    names = [str(zoo / f"m{i:02}.safetensors") for i in range(4)]
    command = ["convert", *names, "--to", "gray", "--output-dir", str(tmp_path / "out")]
    assert run(command) == 0
    shutil.copy(zoo / "m09.safetensors", names[1])  # a source that has changed
    stale = tmp_path / "out" / "m02_gray.safetensors"
    stale.write_bytes(stale.read_bytes()[:-1] + b"\0")
    capsys.readouterr()
    assert run(command) == 5
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "2 up to date, 2 failed (exit 5)"
    assert err.count("exists already, and is not what this conversion gives") == 2
    assert run([*command, "--force"]) == 0
    assert hashes(tmp_path / "out")["m02_gray.safetensors"] == expected["m02_gray.safetensors"]
    capsys.readouterr()
    assert run(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 up to date"


def test_other_options_make_what_is_there_stale(tmp_path: Path, capsys):
    out = str(tmp_path / "out.pth")
    assert run(["convert", str(RGB), "--to", "gray", "-o", out]) == 0
    assert run(["convert", str(RGB), "--to", "gray", "-o", out]) == 0
    assert capsys.readouterr().out.splitlines()[-1] != ""
    for options in (["--method", "mean"], ["--norm", "half", "--input-range", "255"]):
        assert run(["convert", str(RGB), "--to", "gray", "-o", out, *options]) in (4, 5), options


def test_a_manifest_that_is_run_twice_and_names_its_sources_by_a_pattern(zoo: Path, tmp_path: Path, capsys):
    manifest = tmp_path / "chkpt-channels.toml"
    manifest.write_text('[[convert]]\nsrc = "zoo/m0*.safetensors"\ndst = "gray/"\nto = "gray"\n')
    for last in ("10 converted", "10 up to date"):
        assert run(["convert", "--manifest", str(manifest)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == last
    assert len(list((tmp_path / "gray").iterdir())) == 10


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('src = "zoo/x*.pth"', "no file is called like src"),
        ('src = "zoo/m*.safetensors"\ndst = "out.safetensors"', "src means 60 files, and dst names one"),
    ],
)
def test_a_pattern_that_cannot_be_meant(table: str, words: str, zoo: Path, tmp_path: Path, capsys):
    (tmp_path / "m.toml").write_text(f'[[convert]]\nto = "gray"\n{table}\n')
    assert run(["convert", "--manifest", str(tmp_path / "m.toml")]) == 2
    assert words in capsys.readouterr().err


def test_an_output_that_ends_like_a_folder(zoo: Path, tmp_path: Path):
    assert run(["convert", str(RGB), "--to", "gray", "-o", f"{tmp_path}/new/"]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["state_dict_gray.pth"]


def test_a_second_file_is_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(RGB, "a.pth")
    assert run(["convert", "a.pth", "b.pth", "--to", "gray"]) == 2
    assert "try: chkpt-channels convert a.pth -o b.pth" in capsys.readouterr().err
    assert os.listdir() == ["a.pth"]


def test_no_default_output_in_a_model_folder(tmp_path: Path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.numpy.save_file(
        {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text('{"model_type": "resnet", "num_channels": 3}')
    assert run(["convert", str(folder / "model.safetensors"), "--to", "gray"]) == 2
    assert "would lie in a model folder" in capsys.readouterr().err
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert run(["convert", str(folder / "model.safetensors"), "--to", "gray", "-o", str(tmp_path / "x.safetensors")]) == 0


def test_a_manifest_into_another_folder_which_a_dry_run_does_not_make(zoo: Path, tmp_path: Path):
    manifest = tmp_path / "m.toml"
    manifest.write_text(
        '[[convert]]\nsrc = "zoo/m00.safetensors"\nto = "gray"\n[[convert]]\nsrc = "zoo/m1*"\ndst = "x/"\nto = 4\n'
    )
    command = ["convert", "--manifest", str(manifest)]
    for words in ([*command, "--dry-run"], [*command, "--output-dir", str(tmp_path / "out"), "--dry-run"]):
        assert run(words) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.toml", "zoo"]
    assert run([*command, "--output-dir", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 11
    assert not (tmp_path / "x").exists()


def test_words_of_any_case_are_understood(zoo: Path, capsys):
    assert run(["convert", str(zoo / "m00.safetensors"), "--to", "gray", "--layout", "hwio"]) == 2
    assert "try: --layout HWIO" in capsys.readouterr().err

"""Many files at once: in order, in one process or several, and one that fails does not stop the others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import UsageError, convert
from chkpt_channels.api.manifest import read
from chkpt_channels.api.output.naming import with_hash
from chkpt_channels.cli.app import run
from tests.support.files import FIXTURES, snapshot

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
SAFE = FIXTURES / "safetensors" / "model.safetensors"


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Five good files and a bad one."""
    (tmp_path / "zoo").mkdir()
    for i in range(4):
        shutil.copy(RGB, tmp_path / "zoo" / f"m{i}.pth")
    shutil.copy(SAFE, tmp_path / "zoo" / "z.safetensors")
    (tmp_path / "zoo" / "bad.pth").write_bytes(b"")
    return tmp_path / "zoo"


def sources(zoo: Path) -> list[str]:
    return [str(path) for path in sorted(zoo.iterdir())]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_one_that_fails_does_not_stop_the_others(jobs: str, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    code = run(["convert", *sources(zoo), "--to", "gray", "--output-dir", str(out), "-j", jobs, "--json"])
    shown = capsys.readouterr()
    results = json.loads(shown.out)["results"]
    assert code == 3
    assert [Path(r["input"]["path"]).name for r in results] == [
        "bad.pth",
        "m0.pth",
        "m1.pth",
        "m2.pth",
        "m3.pth",
        "z.safetensors",
    ]
    assert [r["status"] for r in results] == ["failed", *["converted"] * 5]
    assert shown.err.splitlines()[0].endswith("is empty (0 bytes); nothing was written")
    alone = tmp_path / "alone.pth"
    convert(RGB, alone)
    assert snapshot(out).keys() == {"m0_gray.pth", "m1_gray.pth", "m2_gray.pth", "m3_gray.pth", "z_gray.safetensors"}
    assert all((out / f"m{i}_gray.pth").read_bytes() == alone.read_bytes() for i in range(4))


def test_lines_of_json_as_they_come(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(["convert", *sources(zoo), "--to", "gray", "--output-dir", str(tmp_path / "out"), "--output-format", "jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == ["failed", *["converted"] * 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "x.pth"], "cannot become one output"),
        (["--output-dir", "o", "-j", "0"], "-j takes a number of processes from 1 on, not 0"),
        (["--output-format", "xml"], "one of human, json, jsonl"),
        (["--manifest", "m.toml"], "--manifest lists sources, targets and options"),
    ],
)
def test_wrong_usage(
    arguments: list[str], words: str, zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(zoo.parent)
    assert run(["convert", *sources(zoo), "--to", "gray", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_two_that_would_get_one_name(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "other").mkdir()
    shutil.copy(RGB, tmp_path / "other" / "m0.pth")
    arguments = [str(zoo / "m0.pth"), str(tmp_path / "other" / "m0.pth"), "--to", "gray", "--output-dir", str(tmp_path / "out")]
    assert run(["convert", *arguments]) == 2
    assert "would both become" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


MANIFEST = """
[[convert]]
src = "m0.pth"
dst = "gray.pth"
to = "gray"
norm = "imagenet"

[[convert]]
src = "m1.pth"
dst = "bands.pth"
bands = "B,G,R,NIR=R"
layer = "conv1"
channel-order = "rgb"
"""


def test_a_manifest(zoo: Path, capsys: pytest.CaptureFixture[str]):
    (zoo / "chkpt-channels.toml").write_text(MANIFEST)
    arguments = ["convert", "--manifest", str(zoo / "chkpt-channels.toml")]
    assert run([*arguments, "--check"]) == 1
    assert "is missing" in capsys.readouterr().out
    assert run(arguments) == 0
    assert run([*arguments, "--check"]) == 0
    convert(zoo / "m0.pth", zoo / "by_hand.pth", norm="imagenet")
    assert (zoo / "gray.pth").read_bytes() == (zoo / "by_hand.pth").read_bytes()
    convert(zoo / "m0.pth", zoo / "gray.pth", force=True)
    assert run([*arguments, "--check"]) == 1
    assert "bn1.running_mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "is not TOML"),
        ("[convert]", r"must hold \[\[convert\]\] tables"),
        ("[[convert]]\nsrc = 3", "src and dst must be paths"),
        ('[[convert]]\nsrc = "a"\nmetod = "sum"', "'metod' is not an option"),
        ('[[convert]]\nsrc = "a"\n[other]', r"must hold \[\[convert\]\] tables"),
    ],
)
def test_a_manifest_that_means_nothing(text: str, words: str, tmp_path: Path):
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read(tmp_path / "m.toml")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50.pth", "resnet50-01234567.pth"),
        ("resnet50-0676ba61.pth", "resnet50-01234567.pth"),
        ("resnet50-0676ba61_gray.pth", "resnet50_gray-01234567.pth"),
        ("a-b.pth.tar", "a-b-01234567.pth.tar"),
        ("x-deadbeef00.safetensors", "x-01234567.safetensors"),
    ],
)
def test_hashed_names(name: str, expected: str):
    assert with_hash(Path(name), "0123456789abcdef").name == expected


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_hash_is_that_of_the_file(suffix: str, tmp_path: Path):
    report = convert(RGB, tmp_path / f"x-0676ba61{suffix}", hash_name=True)
    (path,) = tmp_path.iterdir()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"x-{digest[:8]}{suffix}"
    assert (report.output.path, report.output.sha256) == (str(path), digest)
    assert path.name in report.load_lines[-1]
    assert convert(RGB, tmp_path / f"y{suffix}", sha256=True).output.sha256 == digest
    assert run(["check", str(path), "--expect", "gray"]) == 0


def test_configurations_go_with_another_container(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    shutil.copy(RGB, tmp_path / "in" / "pytorch_model.bin")
    (tmp_path / "in" / "config.json").write_text('{"num_channels": 3, "model_type": "resnet"}')
    convert(tmp_path / "in" / "pytorch_model.bin", tmp_path / "out" / "model.safetensors", with_sidecars=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_channels"] == 1


@pytest.mark.parametrize("setting", [{"hash_name": True}, {"with_sidecars": True}])
def test_standard_output_has_no_name(setting: dict[str, Any]):
    with pytest.raises(UsageError, match="standard output has neither a name nor a folder"):
        convert(RGB, "-", **setting)


KILLER = """
import os, pathlib, signal, sys

def kill(event, args, killed=pathlib.Path({counter!r})):
    if event == "open" and str(args[0]).endswith("m2.pth") and "--multiprocessing-fork" in sys.orig_argv:
        before = killed.read_text() if killed.exists() else ""
        if len(before) < {times}:
            killed.write_text(before + "x")
            os.kill(os.getpid(), {signal})

sys.addaudithook(kill)
"""


@pytest.mark.parametrize(("times", "number"), [(1, 9), (2, 9), (99, 11)])
def test_a_worker_that_is_killed_takes_nothing_with_it(times: int, number: int, zoo: Path, tmp_path: Path):
    """Whenever it opens m2.pth: once, and it is converted after all; twice, and that is said of it, and of nothing else."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        KILLER.format(counter=str(tmp_path / "killed"), times=times, signal=number)
    )
    for i in range(4, 12):
        shutil.copy(RGB, zoo / f"m{i}.pth")
    arguments = [*sources(zoo), "--to", "gray", "--output-dir", str(tmp_path / "out"), "-j", "2", "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "hook"), *sys.path])}
    command = [sys.executable, "-m", "chkpt_channels", "convert", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    results = {Path(r["input"]["path"]).name: r for r in json.loads(done.stdout)["results"]}
    assert list(results) == [Path(source).name for source in sources(zoo)]
    failed = {name for name, result in results.items() if result["status"] == "failed"}
    assert failed == {"bad.pth", *(["m2.pth"] if times > 1 else [])}
    assert done.returncode == (5 if times > 1 else 3)
    assert len((tmp_path / "killed").read_text()) == min(times, 2)
    if times > 1:
        assert (
            f"m2.pth: its process was killed by signal {number}, as the system does when memory runs out; nothing was written"
            in done.stderr
        )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{Path(name).stem}_gray{Path(name).suffix}" for name in results if name not in failed
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path):
    """Twelve files of 40 MB in two processes, stopped on the way."""
    import numpy as np
    import safetensors.numpy

    (tmp_path / "zoo").mkdir()
    named: dict[str, Any] = {"conv1.weight": np.ones((8, 3, 7, 7), np.float32), "fc.weight": np.ones((1000, 10_000), np.float32)}
    safetensors.numpy.save_file(named, tmp_path / "zoo" / "m0.safetensors")
    for i in range(1, 12):
        shutil.copy(tmp_path / "zoo" / "m0.safetensors", tmp_path / "zoo" / f"m{i}.safetensors")
    arguments = ["convert", *sources(tmp_path / "zoo"), "--to", "gray", "--output-dir", str(tmp_path / "out"), "-j", "2", "-q"]
    child = subprocess.Popen([sys.executable, "-m", "chkpt_channels", *arguments], start_new_session=True, stderr=subprocess.PIPE)
    while child.poll() is None and not (tmp_path / "out").exists():
        time.sleep(0.01)
    while child.poll() is None and len(list((tmp_path / "out").iterdir())) < 2:
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(child.pid, number)  # as a terminal does
    else:
        child.send_signal(number)
    _, told = child.communicate(timeout=60)
    assert child.returncode in (128 + number, 0), told
    sizes = {path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert len(sizes) == 1
    assert b"Traceback" not in told


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_like_for_many(jobs: str, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Names of outputs need a target before any source is opened."""
    like = ["--like", str(RGB.with_name("state_dict_gray.pth"))]
    assert run(["convert", *sources(zoo)[1:5], *like, "--output-dir", str(tmp_path / "out")]) == 2
    assert "try: --to gray" in capsys.readouterr().err
    assert run(["convert", *sources(zoo)[1:5], *like, "--to", "gray", "--output-dir", str(tmp_path / "out"), "-j", jobs]) == 0
    assert len(snapshot(tmp_path / "out")) == 4
    assert run(["convert", *sources(zoo)[:5], *like, "-j", jobs]) == 3  # the bad one does not stop the others
    assert [path.name for path in sorted(zoo.glob("*_gray*"))] == [f"m{i}_gray.pth" for i in range(4)]

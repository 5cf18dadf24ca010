"""Runs that go on by their ledger: drivers and workers are killed at counted results, and each file is there once and right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import PostPublishError, UsageError, fleet
from chkpt_channels.api.fleet.ledger import read
from chkpt_channels.api.fleet.row import with_output_dir
from chkpt_channels.api.report import Report
from chkpt_channels.cli.app import run

COUNT = 60
SHAPES = {"conv1.weight": (8, 3, 7, 7), "conv2.weight": (8, 8, 3, 3), "fc.weight": (4, 8)}
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
DYING = """
import os, signal, sys
from chkpt_channels.api.fleet import ledger
from chkpt_channels.cli.app import run

add, told = ledger.Ledger.add, []

def counted(self, line):
    add(self, line)
    told.append(1)
    if len(told) == {at}:
        os.kill(os.getpid(), {signal})

ledger.Ledger.add = counted
sys.exit(run(sys.argv[1:]))
"""
"""A command that gets a signal behind so many lines of its ledger."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty models of different weights."""
    folder = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(0)
    for i in range(COUNT):
        tensors = {name: random.random(shape, np.float32) for name, shape in SHAPES.items()}
        safetensors.numpy.save_file(tensors, folder / f"m{i:02}.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes that one process gives."""
    out = tmp_path_factory.mktemp("one")
    for outcome in fleet.run(rows(models, out)):
        outcome.get()
    return hashes(out)


@pytest.fixture
def zoo(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models, tmp_path / "zoo"))


def rows(zoo: Path, out: Path) -> list[fleet.Job]:
    return with_output_dir(str(out), [fleet.Job(str(path), None, "gray", {}) for path in sorted(zoo.iterdir())])


def hashes(folder: Path) -> dict[str, str]:
    """Of all files, those of hidden names too: a leftover is none of those that are expected."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def words(zoo: Path, tmp_path: Path, *more: str, ledger: str = "zoo.jsonl") -> list[str]:
    sources = sorted(str(path) for path in zoo.iterdir())
    goes = ["--to", "gray", "--output-dir", str(tmp_path / "out"), "--ledger", str(tmp_path / ledger)]
    return ["convert", *sources, *goes, *more]


def statuses(printed: str) -> Counter[str]:
    return Counter(json.loads(line)["status"] for line in printed.splitlines())


def workers_of(group: int) -> list[str]:
    """The processes of a pool that are alive in a group: of Linux, where /proc lists them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"--multiprocessing-fork" in (path / "cmdline").read_bytes() and os.getpgid(int(path.name)) == group:
                found.append(path.name)
    return found


def wait_for_the_end_of(group: int) -> None:
    """Not for ever: where nobody collects orphans, the dead stay in the group."""
    for _ in range(3000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)


@pytest.mark.parametrize(("workers", "number"), [("1", 9), ("2", 9), ("2", 15)])
def test_a_driver_that_is_ended_and_resumed(
    workers: str, number: int, zoo: Path, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """SIGKILL, and SIGTERM, with which its workers end too."""
    arguments = words(zoo, tmp_path, "-j", workers, "--output-format", "jsonl")
    program = [sys.executable, "-c", DYING.format(at=20, signal=number), *arguments]
    ended = subprocess.Popen(program, stdout=subprocess.DEVNULL, env=ENVIRONMENT, start_new_session=True)
    assert ended.wait() == (143 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert workers_of(ended.pid) == []
    wait_for_the_end_of(ended.pid)
    assert len(read(tmp_path / "zoo.jsonl").lines) == 20
    assert run(["status", str(tmp_path / "zoo.jsonl")]) == 1
    assert capsys.readouterr().out == "20 done, 40 left\n"
    done = len(hashes(tmp_path / "out"))
    assert run([*arguments, "--resume"]) == 0
    found = statuses(capsys.readouterr().out)
    # what was done, and had no line yet, is compared
    assert found == Counter(skipped=20, current=done - 20, converted=COUNT - done) - Counter()
    assert 20 <= done <= 20 + 2 * int(workers)
    assert hashes(tmp_path / "out") == expected
    assert run([*arguments, "--resume"]) == 0
    assert statuses(capsys.readouterr().out) == {"skipped": COUNT}
    assert run(["status", str(tmp_path / "zoo.jsonl"), "--json"]) == 0
    assert {r["status"] for r in json.loads(capsys.readouterr().out)["results"]} <= {"converted", "current"}


def test_resuming_opens_no_checkpoint(zoo: Path, tmp_path: Path):
    arguments = words(zoo, tmp_path, "-q")
    assert run(arguments) == 0
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    assert run([*arguments, "--resume"]) == 0
    assert [name for name in opened if name.endswith(".jsonl")]
    assert not [name for name in opened if name.endswith(".safetensors")]


def test_what_somebody_changed_is_left_alone_and_what_is_gone_is_made_again(
    zoo: Path, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = words(zoo, tmp_path, "--output-format", "jsonl")
    assert run(arguments) == 0
    out = tmp_path / "out"
    (out / "m01_gray.safetensors").unlink()
    mine = (out / "m02_gray.safetensors").read_bytes()[:-1] + b"\0"
    (out / "m02_gray.safetensors").write_bytes(mine)
    os.utime(out / "m03_gray.safetensors", ns=(1, 1))  # touched, and the same
    shutil.copy(zoo / "m09.safetensors", zoo / "m04.safetensors")
    capsys.readouterr()
    assert run([*arguments, "--resume"]) == 5
    printed = capsys.readouterr()
    assert statuses(printed.out) == {"skipped": COUNT - 4, "converted": 1, "current": 1, "failed": 2}
    assert printed.err.count("exists already, and is not what this conversion gives; nothing was written") == 2
    assert (out / "m02_gray.safetensors").read_bytes() == mine
    assert run(["status", str(tmp_path / "zoo.jsonl")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "58 done, 2 failed (exit 5), 0 left"
    # nothing has changed since: it is told again, and nothing is opened for it
    assert run([*arguments, "--resume"]) == 5
    assert statuses(capsys.readouterr().out) == {"skipped": COUNT - 2, "failed": 2}
    assert run([*arguments, "--resume", "--force"]) == 0
    assert statuses(capsys.readouterr().out) == {"skipped": COUNT - 2, "converted": 2}
    changed = {"m04_gray.safetensors": expected["m09_gray.safetensors"]}
    assert hashes(out) == expected | changed


KILLER = """
import os, signal, sys

def kill(event, args):
    if event == "open" and str(args[0]).endswith("m07.safetensors") and "--multiprocessing-fork" in sys.orig_argv:
        with open({log!r}, "a") as log:
            log.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""


def test_a_row_that_kills_its_worker_twice_is_named_and_done_later(
    zoo: Path, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(KILLER.format(log=str(tmp_path / "killed")))
    arguments = words(zoo, tmp_path, "-j", "2", "--output-format", "jsonl")
    path = os.pathsep.join([str(tmp_path / "hook"), *sys.path])
    program = [sys.executable, "-m", "chkpt_channels", *arguments]
    done = subprocess.run(program, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert statuses(done.stdout) == {"converted": COUNT - 1, "failed": 1}
    assert "m07.safetensors: its process was killed by signal 9" in done.stderr
    assert (tmp_path / "killed").read_text() == "xx"
    assert run([*arguments, "--resume"]) == 0
    assert statuses(capsys.readouterr().out) == {"skipped": COUNT - 1, "converted": 1}
    assert hashes(tmp_path / "out") == expected


def test_shards_are_all_of_it(zoo: Path, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two runs of the first at once, each with a ledger of its own, give each file once."""
    program = [sys.executable, "-m", "chkpt_channels"]
    twice = [
        subprocess.Popen([*program, *words(zoo, tmp_path, "--shard", "1/3", "--sha256", ledger=name)], env=ENVIRONMENT)
        for name in ("1.jsonl", "again.jsonl")
    ]
    assert [one.wait() for one in twice] == [0, 0]
    assert run(words(zoo, tmp_path, "--shard", "3/3", "-q", ledger="3.jsonl")) == 0
    ledgers = [str(tmp_path / name) for name in ("1.jsonl", "again.jsonl", "3.jsonl")]
    capsys.readouterr()
    assert run(["status", *ledgers]) == 1
    assert "no ledger of the shards 2/3 is given" in capsys.readouterr().err
    assert run(words(zoo, tmp_path, "--shard", "2/3", "-q", ledger="2.jsonl")) == 0
    assert run(["status", *ledgers, str(tmp_path / "2.jsonl")]) == 0
    assert capsys.readouterr().out == f"{COUNT} done, 0 left\n"
    assert hashes(tmp_path / "out") == expected


def test_more_shards_than_rows(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for path in sorted(zoo.iterdir())[2:]:
        path.unlink()
    for i in range(1, 6):
        assert run(words(zoo, tmp_path, "--shard", f"{i}/5", "-j", "2", ledger=f"{i}.jsonl")) == 0
    capsys.readouterr()
    assert run(["status", *(str(tmp_path / f"{i}.jsonl") for i in range(1, 6))]) == 0
    assert capsys.readouterr().out == "2 done, 0 left\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words_"),
    [
        (["--resume"], 2, "--resume goes on with a ledger"),
        (["--shard", "0/3"], 2, "--shard takes i/n"),
        (["--ledger", "{}/l.jsonl", "--dry-run"], 2, "nothing is to be written"),
        (["--ledger", "{}/l.jsonl", "--check"], 2, "nothing is to be written"),
        (["--ledger", "{}/m.pth"], 5, "m.pth: exists already"),
        (["--ledger", "{}/m.pth", "--resume"], 3, "is no ledger of chkpt-channels"),
        (["--ledger", "{}/l.jsonl", "-o", "-"], 2, "standard input and output are of this process alone"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, words_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    safetensors.numpy.save_file({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}, tmp_path / "m.pth")
    given = [argument.format(tmp_path) for argument in arguments]
    assert run(["convert", str(tmp_path / "m.pth"), "--to", "gray", *given]) == code
    assert words_ in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor(kind: Any, zoo: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Workers are told whole paths: they may work in another folder."""
    monkeypatch.chdir(tmp_path)
    (zoo / "bad.safetensors").touch()
    shown: list[int] = []
    how = {} if kind is ThreadPoolExecutor else {"mp_context": get_context("spawn")}
    with kind(2, **how) as executor:
        progress = lambda more, total: shown.append(more)  # noqa: E731
        found = list(fleet.run(rows(Path("zoo"), Path("out")), executor, ledger="l.jsonl", progress=progress))
    assert [outcome.job.src for outcome in found] == [f"zoo/{path.name}" for path in sorted(zoo.iterdir())]
    failed = [outcome for outcome in found if outcome.error]
    assert [Path(outcome.job.src).name for outcome in failed] == ["bad.safetensors"]
    assert all(isinstance(outcome.report, Report) for outcome in found if not outcome.error)
    assert hashes(tmp_path / "out") == expected
    assert sum(shown) == sum(path.stat().st_size for path in zoo.iterdir())
    assert {line.status for line in read("l.jsonl").lines.values()} == {"converted", "failed"}


class Breaking(Executor):
    """It does so many calls, and then takes no more."""

    def __init__(self, calls: int, error: Exception | None = None) -> None:
        self._left, self._error = calls, error

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self._left:
            raise RuntimeError("cannot schedule new futures\nafter shutdown")
        self._left -= 1
        future: Future[Any] = Future()
        if self._error:
            future.set_exception(self._error)
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_an_executor_that_ends_is_an_error_and_the_rest_is_left(zoo: Path, tmp_path: Path):
    ledger = str(tmp_path / "l.jsonl")
    with pytest.raises(PostPublishError, match=r"takes no more work: RuntimeError: cannot schedule new futures$"):
        list(fleet.run(rows(zoo, tmp_path / "out"), Breaking(50), ledger=ledger))
    assert len(hashes(tmp_path / "out")) == 50
    found = [outcome.get().result()["status"] for outcome in fleet.run(rows(zoo, tmp_path / "out"), ledger=ledger, resume=True)]
    assert set(found) <= {"skipped", "current", "converted"}
    assert found.count("converted") == COUNT - 50


def test_a_worker_of_a_cluster_that_dies_twice(zoo: Path, tmp_path: Path):
    jobs = rows(zoo, tmp_path / "out")[:3]
    found = list(fleet.run(jobs, Breaking(6, OSError("lost")), ledger=str(tmp_path / "l.jsonl")))
    told = [str(outcome.error) for outcome in found]
    assert told == [f"{job.src}: its process was killed, or gave no answer: OSError: lost" for job in jobs]
    assert [line.exit for line in read(tmp_path / "l.jsonl").lines.values()] == [5, 5, 5]


def test_options_in_memory_do_not_go_to_a_cluster(tmp_path: Path):
    job = fleet.Job("a.pth", None, "gray", {"like": {"conv1.weight": np.ones(1)}})
    with pytest.raises(UsageError, match="options in words"):
        list(fleet.run([job], Breaking(1)))
    with pytest.raises(UsageError, match="from 1 on"):
        list(fleet.run([job], workers=0))
    with pytest.raises(TypeError):
        list(fleet.run([job], dryrun=True))

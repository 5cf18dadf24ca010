"""Rows on a cluster of Dask: processes of this machine, killed at counted results."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

distributed = pytest.importorskip("distributed", reason="Dask is not in this environment")
dask = pytest.importorskip("dask")

from chkpt_channels import FileSystemError, PostPublishError, fleet  # noqa: E402
from chkpt_channels.api.fleet.clusters import executor_on  # noqa: E402
from chkpt_channels.api.fleet.row import with_output_dir  # noqa: E402
from chkpt_channels.cli.app import run  # noqa: E402

COUNT = 200
SHAPES = {"conv1.weight": (8, 3, 7, 7), "conv2.weight": (8, 8, 3, 3), "fc.weight": (4, 8)}
POISON = """
import os, signal, sys

def kill(event, args):
    if event == "open" and str(args[0]).endswith("m007.safetensors") and os.path.exists({armed!r}):
        with open({log!r}, "a") as log:
            log.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""


class Cluster:
    """A scheduler, and two workers in the care of a nanny each; a worker that opens m007 dies, where `armed` is there."""

    def __init__(self, folder: Path) -> None:
        self.armed, self.killed = folder / "armed", folder / "killed"
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(POISON.format(armed=str(self.armed), log=str(self.killed)))
        path = os.pathsep.join([str(folder / "hook"), *sys.path])
        # a row that has killed one worker goes to no second by itself: how often is then the driver's doing
        setting = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
        self._environment = os.environ | {"PYTHONPATH": path} | setting
        self._file, self._folder = folder / "scheduler.json", folder
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not self._file.exists() or not self._file.read_text().endswith("}"):
            assert self.scheduler.poll() is None
            time.sleep(0.05)
        self.nannies = [self._start("worker", "--nthreads", "1", "--local-directory", str(folder)) for _ in range(2)]
        self.address = json.loads(self._file.read_text())["address"].replace("tcp://", "dask://")

    def _start(self, what: str, *words: str) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(self._file), "--no-dashboard"]
        settings: dict[str, Any] = {"env": self._environment, "stderr": subprocess.DEVNULL, "cwd": self._folder}
        return subprocess.Popen([*program, *words], start_new_session=True, **settings)

    def end(self) -> None:
        for process in (*self.nannies, self.scheduler):
            process.terminate()
        for process in (*self.nannies, self.scheduler):
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):  # a nanny whose scheduler is gone may wait for ever, and so its worker
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.end()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    random = np.random.default_rng(0)
    for i in range(COUNT):
        tensors = {name: random.random(shape, np.float32) for name, shape in SHAPES.items()}
        safetensors.numpy.save_file(tensors, folder / f"m{i:03}.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("one")
    for outcome in fleet.run(rows(zoo, out)):
        outcome.get()
    return hashes(out)


def rows(zoo: Path, out: Path) -> list[fleet.Job]:
    return with_output_dir(str(out), [fleet.Job(str(path), None, "gray", {}) for path in sorted(zoo.iterdir())])


def hashes(folder: Path) -> dict[str, str]:
    """Of all files, those of hidden names too: a leftover is none of those that are expected."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_worker_and_a_nanny_are_killed(cluster: Cluster, zoo: Path, expected: dict[str, str], tmp_path: Path):
    """The worker behind the fiftieth result: its nanny starts another. Then the nanny of one: its worker ends with it."""
    statuses = Counter[str]()
    with executor_on(cluster.address) as executor, distributed.Client(cluster.address.replace("dask", "tcp")) as client:
        client.wait_for_workers(2)
        for number, outcome in enumerate(fleet.run(rows(zoo, tmp_path / "out"), executor, ledger=str(tmp_path / "l.jsonl")), 1):
            statuses[outcome.get().result()["status"]] += 1
            if number == 50:
                os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
            if number == 120:
                cluster.nannies[0].kill()
    # killed behind its publishing and before its answer, a conversion is found to be up to date by the next
    assert statuses.total() == COUNT
    assert statuses.keys() <= {"converted", "current"}
    assert hashes(tmp_path / "out") == expected


def test_the_command_goes_on_where_a_row_killed_its_workers(
    cluster: Cluster, zoo: Path, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cluster.armed.touch()
    goes = [
        "--to",
        "gray",
        "--output-dir",
        str(tmp_path / "out"),
        "--output-format",
        "jsonl",
        "--ledger",
        str(tmp_path / "l.jsonl"),
    ]
    command = ["convert", *sorted(map(str, zoo.iterdir())), *goes, "--resume"]
    assert run([*command, "--on", cluster.address]) == 5
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [Path(r["input"]["path"]).name for r in found if r["status"] == "failed"] == ["m007.safetensors"]
    assert "m007.safetensors: its process was killed, or gave no answer: KilledWorker" in printed.err
    assert cluster.killed.read_text() == "xx"
    cluster.armed.unlink()
    assert run([*command, "--on", cluster.address]) == 0
    statuses = Counter(json.loads(line)["status"] for line in capsys.readouterr().out.splitlines())
    assert statuses == {"skipped": COUNT - 1, "converted": 1}
    assert hashes(tmp_path / "out") == expected


def test_a_scheduler_that_is_gone(cluster: Cluster, zoo: Path, expected: dict[str, str], tmp_path: Path):
    """The run ends with an error of the system, and goes on elsewhere."""
    ledger, found = str(tmp_path / "l.jsonl"), []

    def until_it_ends(executor: Executor) -> None:
        for outcome in fleet.run(rows(zoo, tmp_path / "out"), executor, ledger=ledger):
            found.append(outcome.get().result()["status"])
            if len(found) == 30:
                cluster.scheduler.kill()

    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}), executor_on(cluster.address) as executor:
        with pytest.raises(PostPublishError, match=r"its scheduler is gone|takes no more work"):
            until_it_ends(executor)
        assert 30 <= len(found) < COUNT
    again = [outcome.get().result()["status"] for outcome in fleet.run(rows(zoo, tmp_path / "out"), ledger=ledger, resume=True)]
    assert again.count("skipped") >= 30
    assert hashes(tmp_path / "out") == expected


def test_nobody_answers(tmp_path: Path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
        pytest.raises(FileSystemError, match=r"dask://127\.0\.0\.1:9: does not answer: "),
        executor_on("dask://127.0.0.1:9"),
    ):
        raise AssertionError

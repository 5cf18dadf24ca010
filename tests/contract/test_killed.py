"""A conversion, ended at any moment: its name shows the old file or the complete new one, and nothing else is there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import convert, verify
from chkpt_channels.cli.app import run
from chkpt_channels.storage import atomic
from chkpt_channels.storage.atomic import Output
from tests.support import big_files
from tests.support.apart import Ended, run_apart
from tests.support.builders import conv, floats, pickled, storage, tensor
from tests.support.files import FIXTURES
from tests.support.sandbox import WARM

SIZE = 24 << 20
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PROGRAM = """
import json, os, signal, sys
from itertools import count

from chkpt_channels.__main__ import main
from chkpt_channels.storage import stream_copy

number, moment, *sys.argv[1:] = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
process, events, calls = os.getpid(), count(), []

def tick(frame, event, what):
    now = next(events)
    if now == moment:
        os.kill(process, number)
    if moment < 0 and getattr(what, "__module__", "") in ("posix", "fcntl"):
        calls.append(now)

stream_copy.WRITE_EARLY_FROM_BYTES = 4 << 20
signal.signal(signal.SIGINT, signal.SIG_DFL)  # as main begins
sys.setprofile(tick)
try:
    main()
finally:
    sys.setprofile(None)
    if moment < 0:
        print(json.dumps([next(events), calls]), file=sys.stderr)
"""
"""The command, its clock the calls and returns of its main thread and of what forks from that: at one of them a signal comes.
Without one it tells how many there are, and which of them are system calls. SIZE is written as the largest files are."""
linux = pytest.mark.skipif(not atomic.UNNAMED, reason="without O_TMPFILE a killed run leaves a file, which the next one sweeps")


def big_zip(path: Path) -> Path:
    """A kernel, and zeros."""
    root = pickled({"conv1.weight": conv(), "fc.weight": tensor(storage("1", SIZE // 4), (SIZE // 4,))})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": root, "data/0": floats(108), "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        with archive.open(zipfile.ZipInfo("archive/data/1"), "w") as member:
            for _ in range(SIZE >> 20):
                member.write(bytes(1 << 20))
    return path


def folder(path: Path) -> Path:
    """Two shards and a configuration."""
    path.mkdir()
    parts = {"a": {"conv1.weight": np.ones((8, 3, 7, 7), "f4")}, "b": {"fc.weight": np.zeros((1000, 2_000), "f4")}}
    for name, part in parts.items():
        safetensors.numpy.save_file(part, path / f"{name}.safetensors")
    places = {key: f"{name}.safetensors" for name, part in parts.items() for key in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (path / "config.json").write_text('{"model_type": "resnet", "num_channels": 3}')
    return path


def big_h5(path: Path) -> Path:
    """Weights only, as Keras 2 kept them."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"], file.attrs["backend"] = [b"conv", b"dense"], b"tensorflow"
        for name, values in {"conv": np.ones((3, 3, 3, 8), "f4"), "dense": np.zeros((1_000, 2_000), "f4")}.items():
            file.create_group(name).attrs["weight_names"] = [f"{name}/kernel:0".encode()]
            file[name][f"{name}/kernel:0"] = values
    return path


class Runs:
    """One conversion, again and again: in forks of a process that has imported everything, or as a `whole` process each time."""

    def __init__(self, source: Path, place: Path, *options: str, whole: bool = False) -> None:
        self.source, self.out, self.options, self.whole = source, place / f"out{source.suffix}", options, whole
        place.mkdir()
        self.began = written(source)
        self.clear()
        told = self._run(0, -1)
        assert told.code == 0, told
        self.total, self.calls = json.loads(told.err)
        self.after = shown(self.out)
        assert verify(source, self.out).ok

    def _run(self, number: int, moment: int) -> Ended:
        """Of the `moment` -1 it comes to its end."""
        arguments = [str(number), str(moment), "convert", str(self.source), "-o", str(self.out), "--to", "gray", *self.options]
        if not self.whole:
            return run_apart(PROGRAM, self.out.parent.parent, [*arguments, "-q"], imported=WARM)
        command = [sys.executable, "-c", PROGRAM, *arguments, "-q"]
        done = subprocess.run(command, cwd=FIXTURES.parent, capture_output=True, text=True, timeout=60, check=False)
        return Ended(done.returncode, done.stdout, done.stderr)

    def moments(self, count: int) -> Iterator[int]:
        """Half of them spread over the whole run and a little beyond, half over its system calls."""
        chance = random.Random(count)
        for i in range(0, count, 2):
            yield int(self.total * 1.05 * (i + 2 * chance.random()) / count)
            yield self.calls[int(len(self.calls) * (i + 2 * chance.random()) / count)]

    def clear(self) -> None:
        if self.out.is_dir():
            for file in self.out.iterdir():
                file.unlink()
            self.out.rmdir()
        self.out.unlink(missing_ok=True)
        if "--force" in self.options:
            self.out.write_bytes(b"old")

    def ended(self, number: signal.Signals, moment: int) -> tuple[int, bool]:
        """(exit code, whether the new file is there) after a signal. Everything that is promised holds."""
        self.clear()
        before = shown(self.out)
        code, _, err = self._run(number, moment)
        after = shown(self.out)
        assert err == "", (moment, err)
        assert after in (before, self.after), (moment, "half a file")
        assert written(self.source) == self.began
        assert code in (0, -number, 128 + number), (moment, code)
        assert code or after == self.after, moment
        return code, after == self.after

    def litter(self) -> list[str]:
        return sorted(path.name for path in self.out.parent.iterdir() if path != self.out)


def shown(path: Path) -> object:
    """What stands there."""
    if path.is_dir():
        return {file.name: shown(file) for file in path.iterdir()}
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def written(path: Path) -> object:
    """When something was last written there."""
    files = path.iterdir() if path.is_dir() else [path]
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big_zip(tmp_path_factory.mktemp("big") / "big.pth")


@linux
@pytest.mark.parametrize(("whole", "count"), [(False, 60), (True, 10)], ids=["a fork", "a process"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_at_any_moment(number: signal.Signals, whole: bool, count: int, big: Path, tmp_path: Path):
    """A whole process is ended while it imports, too."""
    runs = Runs(big, tmp_path / "out", whole=whole)
    found = Counter()
    for moment in runs.moments(count):
        found[runs.ended(number, moment)] += 1
        assert runs.litter() == [], moment
    early = sum(count for (_, done), count in found.items() if not done)
    assert early > count // 2, found
    asked = {code for code, done in found if not done}
    assert asked <= {-number, 128 + number}, found


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_at_any_moment_over_an_old_file(number: signal.Signals, big: Path, tmp_path: Path):
    """Between link and rename the new file has two names, the one of which the next run sweeps."""
    runs = Runs(big, tmp_path / "out", "--force")
    for moment in runs.moments(60):
        runs.ended(number, moment)
        assert len(runs.litter()) <= (number == signal.SIGKILL), moment
        assert all(atomic._LEFTOVER.fullmatch(name) for name in runs.litter())
    convert(big, runs.out, to="gray", force=True)
    assert runs.litter() == []


def descendants(group: int) -> list[int]:
    """The processes of a process group that are at work."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


BIG = {"keras_h5": ("big.h5", big_h5, SIGNALS), "folder": ("big", folder, SIGNALS)}
BIG |= {
    suffix: (f"big.{suffix}", lambda path: big_files.big(path, 24), (number,))
    for suffix, number in zip(("msgpack", "npz", "pkl"), SIGNALS, strict=True)
}


@linux
@pytest.mark.parametrize(
    ("name", "number"), [pytest.param(name, n, id=f"{name}-{n.name}") for name, row in BIG.items() for n in row[2]]
)
def test_every_other_kind(name: str, number: signal.Signals, tmp_path: Path):
    """In processes, in folders, arrays by name. A folder appears as a whole; what a killed run left is swept by the next."""
    file, make, _ = BIG[name]
    runs = Runs(make(tmp_path / file), tmp_path / "out")
    for moment in runs.moments(12):
        runs.ended(number, moment)
        left = runs.litter()
        assert len(left) <= (name == "folder" and number == signal.SIGKILL), (moment, left)
        runs.clear()
        convert(runs.source, runs.out, to="gray")
        assert runs.litter() == []


HELD = """
import os, time
from chkpt_channels.containers.hdf5 import reader as hdf5
walk = hdf5.Hdf5._walk
def slowly(self, root):
    os.write(1, b".")
    time.sleep(1)
    walk(self, root)
hdf5.Hdf5._walk = slowly
from chkpt_channels.__main__ import main
main()
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_child_does_not_outlive_its_parent(number: signal.Signals, tmp_path: Path):
    """Ended while libhdf5 works in a process of its own: that one is ended too, or has nobody to tell, and ends."""
    arguments = ["convert", str(FIXTURES / "keras_h5" / "gray.h5"), "--to", "rgb", "-o", str(tmp_path / "out.h5")]
    parent = subprocess.Popen(
        [sys.executable, "-c", HELD, *arguments], cwd=FIXTURES.parent, start_new_session=True, stdout=subprocess.PIPE
    )
    assert os.read(parent.stdout.fileno(), 1) == b"."
    assert len(descendants(parent.pid)) == 2
    parent.send_signal(number)
    assert parent.wait() in (-number, 128 + number)
    until = time.monotonic() + 30
    while left := descendants(parent.pid):
        assert time.monotonic() < until, left
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_what_is_lost_in_a_callback_is_found_again(number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """As in importlib's callbacks, in which CPython only prints what is raised: nothing gets its name, and nothing is printed."""

    class Sensitive:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def sentenced(self: Output, *arguments: object, **more: object) -> None:
        made(self, *arguments, **more)
        Sensitive()

    with pytest.MonkeyPatch.context() as patch:
        made = Output.__init__
        patch.setattr(Output, "__init__", sentenced)
        code = run(["convert", str(FIXTURES / "torch_zip" / "conv1d.pth"), "--to", "gray", "-o", str(tmp_path / "out.pth")])
    assert (code, list(tmp_path.iterdir())) == (128 + number, [])
    assert capfd.readouterr() == ("", "")

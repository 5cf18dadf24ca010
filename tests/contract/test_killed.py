"""A conversion of 300 MB, ended at any moment: its name shows the old file or the complete new one, and nothing else is there."""

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
from collections.abc import Sequence
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
from tests.support.builders import conv, floats, pickled, storage, tensor
from tests.support.files import FIXTURES

SIZE = 300 << 20
MOMENTS = 50
PROGRAM = "import os; from chkpt_channels.__main__ import main; os.write(1, b'.'); main()"
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
    parts = {"a": {"conv1.weight": np.ones((8, 3, 7, 7), "f4")}, "b": {"fc.weight": np.zeros((1000, 20_000), "f4")}}
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
        for name, values in {"conv": np.ones((3, 3, 3, 8), "f4"), "dense": np.zeros((5_000, 2_000), "f4")}.items():
            file.create_group(name).attrs["weight_names"] = [f"{name}/kernel:0".encode()]
            file[name][f"{name}/kernel:0"] = values
    return path


class Runs:
    """One conversion, again and again."""

    def __init__(self, source: Path, place: Path, *options: str) -> None:
        self.source, self.out, self.options = source, place / f"out{source.suffix}", options
        place.mkdir()
        self.began = written(source)
        self.seconds = min(self._whole() for _ in range(2))
        self.after = shown(self.out)
        assert verify(source, self.out).ok

    def _whole(self) -> float:
        self.clear()
        child, began = self._begun(), time.monotonic()
        assert child.wait() == 0
        return time.monotonic() - began

    def _begun(self) -> subprocess.Popen[bytes]:
        arguments = ["convert", str(self.source), "--to", "gray", "-o", str(self.out), "-q", *self.options]
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], cwd=FIXTURES.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert os.read(child.stdout.fileno(), 1) == b"."
        return child

    def clear(self) -> None:
        if self.out.is_dir():
            for file in self.out.iterdir():
                file.unlink()
            self.out.rmdir()
        self.out.unlink(missing_ok=True)
        if "--force" in self.options:
            self.out.write_bytes(b"old")

    def ended(self, number: signal.Signals, moment: float) -> tuple[int, bool]:
        """(exit code, whether the new file is there) after a signal. Everything that is promised holds."""
        self.clear()
        before = shown(self.out)
        child = self._begun()
        time.sleep(moment)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
        after = shown(self.out)
        assert err == b"", (moment, err)
        assert after in (before, self.after), (moment, "half a file")
        assert written(self.source) == self.began
        assert child.returncode in (0, -number, 128 + number), (moment, child.returncode)
        assert child.returncode or after == self.after, moment
        return child.returncode, after == self.after

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


def moments(seconds: float, count: int, seed: object) -> Sequence[float]:
    """Spread over the whole run, and a little beyond."""
    chance = random.Random(str(seed))
    return [seconds * 1.05 * (i + chance.random()) / count for i in range(count)]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big_zip(tmp_path_factory.mktemp("big") / "big.pth")


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_at_any_moment(number: signal.Signals, big: Path, tmp_path: Path):
    runs = Runs(big, tmp_path / "out")
    found = Counter()
    count = MOMENTS if number == signal.SIGKILL else MOMENTS // 2
    for moment in moments(runs.seconds, count, number):
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
    for moment in moments(runs.seconds, MOMENTS // 4, number):
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


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
BIG = {"keras_h5": ("big.h5", big_h5, SIGNALS), "folder": ("big", folder, SIGNALS)}
BIG |= {
    suffix: (f"big.{suffix}", lambda path: big_files.big(path, 100), (number,))
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
    for moment in moments(runs.seconds, 6, number):
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

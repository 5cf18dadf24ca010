"""Every system call of a conversion goes wrong once: the output name shows what it showed before, or exactly what it should."""

from __future__ import annotations

import errno
import gc
import io
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from chkpt_channels.cli import app as cli
from chkpt_channels.formats import known
from chkpt_channels.storage import atomic, isolation, stream_copy
from tests.folders.test_model_folder import shard
from tests.support.faults import CAN_BE_SHORT, READS, SHORT, Fault, Shim
from tests.support.files import FIXTURES, smallest, snapshot

Patch = pytest.MonkeyPatch
Entries = Mapping[str, tuple[int, str]]
REPORT = "report.json"


class Scene(NamedTuple):
    """A conversion of the first of these files. Where only some `calls` go wrong, another scene has the rest; `tolerates` names
    calls that something else can stand in for."""

    files: tuple[str, ...]
    options: tuple[str, ...] = ("--to", "gray")
    out: str = ""
    old: bool = False
    stdin: bool = False
    prepare: Callable[[Patch], object] = bool
    calls: frozenset[str] = frozenset()
    tolerates: frozenset[str] = frozenset()
    besides: Mapping[str, str] = {}


class Attempt(NamedTuple):
    """How one run ended."""

    code: int
    out: bytes
    err: list[str]
    after: Entries

    @property
    def message(self) -> str:
        """The one line that says what is wrong, without its prefix; empty where no line has that."""
        return next((line for line in reversed(self.err) if line.startswith("error: ")), "").removeprefix("error: ")


def of_blocks(patch: Patch) -> None:
    """As an object of a store is written, block by block, and a file where the kernel cannot copy."""
    patch.setattr(stream_copy, "BLOCK_BYTES", 8192)
    patch.delattr(os, "copy_file_range", raising=False)


def without_threads(patch: Patch) -> None:
    """As the smallest files are written."""
    patch.setattr(stream_copy, "THREADS_FROM_BYTES", 1 << 30)


def without_unnamed(patch: Patch) -> None:
    patch.setattr(atomic, "UNNAMED", 0)


def forking(patch: Patch) -> None:
    patch.setattr(isolation, "may_fork", lambda: sys.platform == "linux")


ZIP, LEGACY, SAFE = "torch_zip/conv1d.pth", "torch_legacy/quantised.pth", "safetensors/half.safetensors"
H5, KERAS, DEFLATED = "keras_h5/channels_first.h5", "keras_zip/signal.keras", "keras_zip/deflated.keras"
PIPES = frozenset({"pipe2", "fork", "read", "write"})
LOOKS = frozenset({"stat", "lstat", "fcntl"})
"""Looking for what need not be there."""
WRITTEN = frozenset({"posix_fallocate", "pwrite", "copy_file_range", "fsync", "ftruncate", "fchmod", "flock", "link", "replace"})
WRITTEN |= {"scandir", "open", "fcntl", "lstat"}
SPOOLED = frozenset({"open", "file", "raw_write", "readinto", "dup", "fstat"})
UNNAMED = frozenset({"open", "file"})
"""Python's temporary files have a name where they can have none."""
SCENES = {
    "torch_zip": Scene((ZIP,)),
    "torch_zip, forced": Scene((ZIP,), old=True, calls=WRITTEN),
    "torch_zip, forced, named": Scene((ZIP,), old=True, prepare=without_unnamed, calls=WRITTEN),
    "torch_zip, without threads": Scene((ZIP,), prepare=without_threads, calls=WRITTEN),
    "torch_zip, the same": Scene((ZIP,), ("--to", "rgb"), calls=WRITTEN),
    "torchscript": Scene(("torch_zip/frozen.pt",)),
    "torch_legacy": Scene((LEGACY,)),
    "safetensors": Scene((SAFE,)),
    "safetensors, by blocks": Scene((SAFE,), old=True, prepare=of_blocks),
    "onnx": Scene(("onnx/plain_ts.onnx",)),
    "keras_h5": Scene((H5,)),
    "keras_h5, forked": Scene((H5,), prepare=forking, calls=PIPES),
    "keras_zip": Scene((KERAS,)),
    "keras_zip, deflated": Scene((DEFLATED,), calls=WRITTEN | SPOOLED, tolerates=UNNAMED),
    "keras_zip, forked": Scene((DEFLATED,), prepare=forking, calls=PIPES),
    "with a report": Scene((SAFE,), ("--to", "gray", "--report", f"OUT/{REPORT}"), calls=WRITTEN),
    "to safetensors": Scene((ZIP,), out="out.safetensors"),
    "to torch": Scene((SAFE,), out="out.pth"),
    "from standard input": Scene((SAFE,), stdin=True, tolerates=UNNAMED),
    "to standard output": Scene((SAFE,), out="-", tolerates=UNNAMED),
}
SCENES |= {form.name: Scene((f"{form.name}/{smallest(form.name).name}",)) for form in known() if form.name not in SCENES}
"""Of a format that is not listed, its smallest fixture."""
CONFIG = '{"model_type": "resnet", "num_channels": 3}'
SCENES |= {
    "onnx, two files": Scene(("onnx/external.onnx", "onnx/external.onnx.data")),
    "named by its hash": Scene((SAFE,), ("--to", "gray", "--hash-name")),
    "with configurations": Scene((SAFE,), ("--to", "gray", "--sidecars"), besides={"config.json": CONFIG}),
}


class Stage:
    """A scene in two folders, and the shim in front of the system."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.shim = scene, Shim()
        self.home, self.place = folder / "in", folder / "out"
        self.home.mkdir()
        for name in scene.files:
            shutil.copy(FIXTURES / name, self.home)
        for name, content in scene.besides.items():
            (self.home / name).write_text(content)
        self.source = self.home / Path(scene.files[0]).name
        self.out = self.place / (scene.out or f"out{self.source.suffix}")
        self._rewind()
        self.before, self.began = snapshot(self.place), snapshot(self.home)
        self.run()  # what is imported now is not looked for again
        self.whole = self.run()
        self.counts = self.shim.counts
        assert self.whole.code == 0, self.whole.err

    def _arguments(self) -> list[str]:
        source, out = "-" if self.scene.stdin else str(self.source), "-" if self.scene.out == "-" else str(self.out)
        options = [option.replace("OUT", str(self.place)) for option in self.scene.options]
        return ["convert", source, "-o", out, *options, *(["--force"] if self.scene.old else [])]

    def _rewind(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        if self.scene.old:
            self.out.write_bytes(b"old content")
            self.out.chmod(0o640)

    def run(self, fault: Fault | None = None) -> Attempt:
        """The command, from the beginning."""
        self._rewind()
        given = self.source.read_bytes() if self.scene.stdin else b""
        told = [io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") for data in (given, b"", b"")]
        with pytest.MonkeyPatch.context() as patch:
            for name, stream in zip(("stdin", "stdout", "stderr"), told, strict=True):
                patch.setattr(sys, name, stream)
            with self.shim.armed(*([fault] if fault else [])):
                code = cli.run(self._arguments())
        out, err = (stream.flush() or stream.buffer.getvalue() for stream in told[1:])
        return Attempt(code, out, err.decode().splitlines(), snapshot(self.place))

    def faults(self) -> Iterator[Fault]:
        """Every call of a sound run, with every fault that it can have."""
        calls = self.scene.calls or self.counts.keys()
        for name in self.counts.keys() & calls:
            kinds = [errno.EIO, *([] if name in READS else [errno.ENOSPC]), *([SHORT] if name in CAN_BE_SHORT else [])]
            yield from (Fault(name, k, kind) for kind in kinds for k in range(self.counts[name]))

    def problem(self, got: Attempt, fault: Fault) -> str:
        """What is wrong with how a run ended."""
        show = f"{fault}: exit {got.code}: {got.err}"
        before, whole, after = (without_report(shown) for shown in (self.before, self.whole.after, got.after))
        if snapshot(self.home) != self.began:
            return f"{show}: the input is another"
        if got.code == 0:
            right = after == whole and (self.scene.out != "-" or got.out == self.whole.out)
            may = fault.kind == SHORT or fault.call in LOOKS | self.scene.tolerates
            return "" if right and may else f"{show}: success"
        if is_half_an_answer(fault):
            return "" if (got.code, after) == (3, before) else show
        if got.code != 5 or "Traceback" in str(got.err):
            return show
        if got.message.endswith("; nothing was written"):
            return "" if after == before and not got.out else f"{show}: {after}"
        late = (
            *(f"{self.place / name}: is complete, but its folder cannot be synced" for name in whole),
            f"{self.place / REPORT}: ",
        )
        late += ("standard output: cannot be written completely: ",) if self.scene.out == "-" else ()
        return "" if after == whole and got.message.startswith(late) else f"{show}: {after}"


def is_half_an_answer(fault: Fault) -> bool:
    """A child that cannot write to its pipe looks as if it had crashed. No pipe between two living processes fails."""
    return fault.call == "write"


def without_report(shown: Entries) -> Entries:
    """The report says how long it took, and is written when everything else failed."""
    return {name: entry for name, entry in shown.items() if name != REPORT}


@pytest.fixture(params=SCENES)
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Patch) -> Stage:
    monkeypatch.setattr(isolation, "may_fork", lambda: False)
    monkeypatch.setattr(stream_copy, "THREADS_FROM_BYTES", 0)  # as files of a size that people have are written
    SCENES[request.param].prepare(monkeypatch)
    return Stage(SCENES[request.param], tmp_path)


def descriptors() -> list[str]:
    gc.collect()
    return os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []


def test_every_call_fails_once(stage: Stage, record_property: Callable[[str, object], None]):
    """Exit 5, one line that says so, and nothing new in any folder; what was short only is gone on with."""
    opened, threads, problems, tried = descriptors(), threading.active_count(), [], 0
    for fault in stage.faults():
        if problem := stage.problem(stage.run(fault), fault):
            problems.append(problem)
        if threading.active_count() != threads:
            problems.append(f"{fault}: a thread is left")
        tried += 1
    record_property("faults", (tried, stage.counts))
    assert tried >= len(stage.scene.calls)
    assert not problems, "\n".join(problems)
    assert len(descriptors()) == len(opened)


def replaced(path: Path) -> None:
    """Another file takes the name."""
    (path.parent / "other").write_bytes(b"another file")
    (path.parent / "other").rename(path)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    os.utime(path)  # two writes within one tick of the clock look like one


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "emptied": (lambda path: os.truncate(path, 0), "was changed|was cut short"),
    "cut": (lambda path: os.truncate(path, random.Random(0).randrange(path.stat().st_size)), "was changed|was cut short"),
    "longer": (lambda path: path.open("ab").write(b"more"), "was changed"),
    "overwritten": (overwritten, "was changed"),
}
CHANGING = ["torch_zip", "torchscript", "torch_legacy", "safetensors", "safetensors, by blocks", "onnx", "keras_h5", "keras_zip"]
CHANGING += [form.name for form in known() if form.name not in CHANGING]


@pytest.mark.parametrize("name", CHANGING)
def test_a_source_that_changes_while_it_is_read(name: str, tmp_path: Path, monkeypatch: Patch):
    """At every read, in each way in turn: exit 5 and nothing written, or, where it came behind the last one, the exact result."""
    monkeypatch.setattr(isolation, "may_fork", lambda: False)
    monkeypatch.setattr(stream_copy, "THREADS_FROM_BYTES", 0)  # as files of a size that people have are written
    SCENES[name].prepare(monkeypatch)
    stage = Stage(SCENES[name], tmp_path)
    data, refused = stage.source.read_bytes(), 0
    for k in range(stage.counts["preadv"]):
        change, words = list(CHANGES.values())[k % len(CHANGES)]
        stage.source.write_bytes(data)
        got = stage.run(Fault("preadv", k, lambda change=change: change(stage.source)))
        if got.code == 0 and refused:
            assert got.after == stage.whole.after, k
            continue
        assert got.code == 5, (k, got)
        assert re.match(rf"{re.escape(str(stage.source))}: .*({words})", got.message), (k, got)
        assert got.after == stage.before, k
        refused += 1
    assert refused > stage.counts["preadv"] // 4  # the others read what was written


@pytest.mark.parametrize("name", CHANGING)
def test_a_source_whose_name_is_taken_over_is_read_to_its_end(name: str, tmp_path: Path, monkeypatch: Patch):
    """What was opened is what is converted, as by every copy: the result is that of one whole file."""
    monkeypatch.setattr(isolation, "may_fork", lambda: False)
    monkeypatch.setattr(stream_copy, "THREADS_FROM_BYTES", 0)  # as files of a size that people have are written
    SCENES[name].prepare(monkeypatch)
    stage = Stage(SCENES[name], tmp_path)
    data = stage.source.read_bytes()
    for k in range(0, stage.counts["preadv"], 7):
        stage.source.write_bytes(data)
        got = stage.run(Fault("preadv", k, lambda: replaced(stage.source)))
        assert (got.code, got.after) == (0, stage.whole.after), k


def test_a_failed_read_of_hdf5_is_no_crash_at_the_end(tmp_path: Path):
    """A handle of the library that an error keeps alive would be closed behind the interpreter's end. Reading back what was
    written fails here, which is done in no child."""
    program = """
import errno, os, sys
from chkpt_channels.cli import app as cli
from chkpt_channels.storage import overlay
real = overlay.OverlayFile.readinto
def readinto(self, buffer):
    if self._source.made_here and self.tell():
        os.preadv = fail
    return real(self, buffer)
def fail(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))
overlay.OverlayFile.readinto = readinto
sys.exit(cli.run(sys.argv[1:]))
"""
    command = [sys.executable, "-c", program, "convert", str(FIXTURES / H5), "--to", "gray", "-o", str(tmp_path / "out.h5")]
    done = subprocess.run(command, cwd=FIXTURES.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, f"error: {tmp_path / 'out.h5'}: input/output error; nothing was written\n")
    assert snapshot(tmp_path) == {}


def inside(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name from there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("options", [(), ("--hard-link",)], ids=["copied", "linked"])
def test_every_call_of_a_folder_fails_once(options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two shards, their index and configurations: all of it, or nothing."""
    source, place, shim, problems = shard(tmp_path / "in"), tmp_path / "out", Shim(), []
    place.mkdir()
    began = inside(source)
    arguments = ["convert", str(source), "--to", "gray", "-o", str(place / "model"), "-q", *options]
    assert cli.run(arguments) == 0
    whole = inside(place)
    shutil.rmtree(place / "model")
    with shim.armed():
        assert cli.run(arguments) == 0
    calls = [(name, k) for name, count in shim.counts.items() for k in range(count)]
    for name, k in calls:
        for kind in (errno.EIO, *([SHORT] if name in CAN_BE_SHORT else [])):
            shutil.rmtree(place)
            place.mkdir()
            with shim.armed(Fault(name, k, kind)):
                code = cli.run(arguments)
            err, after = capsys.readouterr().err, inside(place)
            refused = code == 5 and not after and not list(place.iterdir()) and err.endswith("; nothing was written\n")
            late = code == 5 and after == whole and "is complete, but its folder cannot be synced" in err
            may = kind == SHORT or name in LOOKS | {"ioctl", "link", "mkdir", "scandir", "open"}
            if not (refused or late or (code == 0 and after == whole and may)) or inside(source) != began:
                problems.append(f"{Fault(name, k, kind)}: exit {code}: {err[:200]}")
    assert not problems, "\n".join(problems)

"""Too little room: on the disk, in memory, for files and threads; and several runs for one name."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from chkpt_channels import verify
from chkpt_channels.cli import app as cli
from chkpt_channels.storage import stream_copy
from tests.support.builders import entry, safetensors
from tests.support.files import FIXTURES, snapshot
from tests.support.sandbox import Outcome, forked

EACH = ["torch_zip/conv1d.pth", "torch_zip/frozen.pt", "torch_legacy/quantised.pth", "safetensors/half.safetensors"]
EACH += ["onnx/plain_ts.onnx", "keras_h5/channels_first.h5", "keras_zip/deflated.keras"]
each = pytest.mark.parametrize("name", EACH)
MIB = 1 << 20


def assert_refused(outcome: Outcome, words: str, place: Path) -> None:
    """Exit 5, one line, nothing new."""
    lines = [line for line in outcome.err.splitlines() if not line.startswith("try: ")]
    assert (outcome.code, len(lines)) == (5, 1), outcome
    assert words in lines[0]
    assert lines[0].endswith("; nothing was written")
    assert {name for name in snapshot(place) if name not in ("stdout", "stderr")} == set()


def limited(kind: int, size: int) -> Callable[[], object]:
    return lambda: resource.setrlimit(kind, (size, resource.getrlimit(kind)[1]))


@each
@pytest.mark.parametrize("size", [0, 1000])
def test_files_that_may_not_grow(name: str, size: int, tmp_path: Path):
    """SIGXFSZ, which comes with it, ends nobody."""
    source, place = FIXTURES / name, tmp_path / "out"
    place.mkdir()
    arguments = ["convert", str(source), "--to", "gray", "-o", str(place / f"out{source.suffix}"), "-q"]
    reading, writing = os.pipe()  # the fork's stderr may not grow either

    def prepare() -> None:
        sys.stderr = os.fdopen(writing, "w", 1)
        limited(resource.RLIMIT_FSIZE, size)()

    outcome = forked(arguments, tmp_path, prepare)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert_refused(outcome._replace(err=pipe.read()), "file too large", place)


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@each
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")
def test_memory_that_runs_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With this much more than it has when it begins: refused, or done; never a bug, in threads and in forked children too.
    Below a MiB Python itself waits for ever for a thread that could not begin."""
    source, codes = FIXTURES / name, []
    monkeypatch.setattr(stream_copy, "THREADS_FROM_BYTES", 0)
    for i, room in enumerate([4, 9, 17, 26, 40, 1024]):
        place = tmp_path / str(i)
        place.mkdir()
        arguments = ["convert", str(source), "--to", "gray", "-o", str(place / f"out{source.suffix}"), "-q"]
        outcome = forked(arguments, tmp_path, lambda room=room: limited(resource.RLIMIT_AS, address_space() + room * MIB)())
        codes.append(outcome.code)
        if outcome.code:
            assert_refused(outcome, "", place)
        else:
            assert verify(source, next(place.iterdir())).ok
    assert codes[-1] == 0


@each
def test_no_room_for_a_thread(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(stream_copy, "THREADS_FROM_BYTES", 0)
    source = FIXTURES / name
    assert cli.run(["convert", str(source), "--to", "gray", "-o", str(tmp_path / f"out{source.suffix}")]) == 5
    assert "cannot be written: can't start new thread; nothing was written" in capsys.readouterr().err
    assert snapshot(tmp_path) == {}


def test_a_library_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """An installation that lost something, and memory that is too short for a library, look alike."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert cli.run(["convert", str(FIXTURES / EACH[-2]), "--to", "gray", "-o", str(tmp_path / "out.h5")]) == 5
    assert "a library cannot be imported: import of h5py halted" in capsys.readouterr().err
    assert snapshot(tmp_path) == {}


def large(path: Path, size: int = 32 * MIB) -> Path:
    header = {"conv1.weight": entry((4, 3, 3, 3)), "fc.weight": entry((size // 4,), 432)}
    begin = safetensors(header)
    with path.open("wb") as file:
        file.write(begin + struct.pack("<f", 1.0) * 108)
        file.truncate(len(begin) + 432 + size)
    return path


MOUNT = 'mount -t tmpfs -o size=16m none "$1" || exit 99; shift; "$@"; code=$?; ls -A out; exit $code'


@pytest.mark.parametrize("options", [(), ("--force",)], ids=["new", "old"])
def test_a_disk_that_is_too_small(options: Sequence[str], tmp_path: Path):
    """A file system of 16 MB, in a namespace that ends with the process, for an output of 32 MB."""
    source = large(tmp_path / "large.safetensors")
    (tmp_path / "out").mkdir()
    force = 'printf old >"$1/out.safetensors"; ' if options else ""
    program = MOUNT.replace("shift;", f"{force}shift;")
    command = [
        sys.executable,
        "-m",
        "chkpt_channels",
        "convert",
        str(source),
        "--to",
        "gray",
        "-o",
        "out/out.safetensors",
        *("--layer", "conv1.weight", "--layout", "OIHW"),
        *options,
    ]
    names = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare")
    done = subprocess.run(
        [*names, "sh", "-c", program, "sh", str(tmp_path / "out"), *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(FIXTURES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (1, 99) and not done.stderr.startswith("out/"):
        pytest.skip("no file system may be mounted here: test_files_that_may_not_grow stands for it")
    assert done.returncode == 5, done.stderr
    assert done.stderr == "error: out/out.safetensors: cannot be written: no space left on device; nothing was written\n"
    assert done.stdout == ("out.safetensors\n" if options else "")


@pytest.mark.parametrize("force", [False, True], ids=["new", "old"])
def test_two_runs_for_one_name(force: bool, tmp_path: Path):
    """Again and again: one wins, or by force both; what is there is whole. Two that write the same are both right."""
    source, place = FIXTURES / "torch_zip" / "conv1d.pth", tmp_path / "out"
    place.mkdir()
    out, codes = place / "out.pth", Counter[int]()
    arguments = ["convert", str(source), "-o", str(out), "-q", *(["--force"] if force else [])]
    for i in range(20):
        out.write_bytes(b"old") if force else out.unlink(missing_ok=True)
        ready, children = os.pipe(), []
        targets = ("gray", "gray" if force or i % 2 else "2")
        for target in targets:
            child = os.fork()
            if not child:
                code = 99
                try:
                    os.close(ready[1])
                    os.read(ready[0], 1)  # until both are there
                    sys.stderr = (tmp_path / f"err{i}").open("a")
                    code = cli.run([*arguments, "--to", target])
                    sys.stderr.flush()
                finally:
                    os._exit(code)
            children.append(child)
        os.close(ready[0])
        os.close(ready[1])
        ended = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        assert ended == [0, 0 if len({*targets}) == 1 else 5], ended
        codes.update(ended)
        assert "Traceback" not in (tmp_path / f"err{i}").read_text()
        assert snapshot(place).keys() == {"out.pth"}
        assert any(verify(source, out, target).ok for target in targets)
    assert codes.total() == 40


CLOSED = [sys.executable, "-m", "chkpt_channels", "convert", str(FIXTURES / EACH[0]), "--to", "gray", "-o"]


def with_closed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell starts it behind `>&-`."""
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *CLOSED, *arguments]
    return subprocess.run(command, cwd=FIXTURES.parent, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize("how", [(), ("--json",), ("--output-format", "jsonl")], ids=str)
def test_standard_output_is_closed(how: Sequence[str], tmp_path: Path):
    done = with_closed(str(tmp_path / "out.pth"), *how)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.pth").exists()


def test_a_result_for_a_standard_output_that_is_closed():
    done = with_closed("-")
    assert (done.returncode, done.stderr) == (5, "error: standard output: is closed; nothing was written\n")


def test_children_that_nobody_waits_for(tmp_path: Path):
    """Where a host program ignores SIGCHLD, the system buries the processes that read HDF5."""
    source, out = FIXTURES / "keras_h5" / "channels_first.h5", tmp_path / "out.h5"
    outcome = forked(
        ["convert", str(source), "--to", "gray", "-o", str(out)], tmp_path, lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    )
    assert outcome.code == 0, outcome.err

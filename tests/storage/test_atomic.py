"""All or nothing: who may be replaced, what the new file looks like, what is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import FileSystemError, OutputExistsError
from chkpt_channels.storage import atomic
from chkpt_channels.storage.atomic import Output, OutputFolder, sweep
from chkpt_channels.storage.source import Source
from tests.support.files import FIXTURES, Failing, snapshot

LEFTOVER = ".chkpt-channels-0123456789abcdef.tmp"


@pytest.fixture(params=[True, False], ids=["unnamed", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both ways of keeping the new file out of sight."""
    if request.param and not atomic.UNNAMED:
        pytest.skip("the platform has no O_TMPFILE")
    if not request.param:
        monkeypatch.setattr(atomic, "UNNAMED", 0)
    return


@pytest.fixture
def src(tmp_path: Path) -> Iterator[Source]:
    folder = tmp_path.with_name(tmp_path.name + "-in")
    folder.mkdir()
    (folder / "in.pth").write_bytes(b"input")
    with Source(folder / "in.pth") as opened:
        yield opened


def write(path: Path, src: Source, content: bytes = b"new content", *, force: bool = False) -> None:
    with Output(path, src, force=force) as out:
        os.write(out.fd, content)
        out.publish()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_any_new_file(mask: int, tmp_path: Path, src: Source):
    old = os.umask(mask)
    try:
        write(tmp_path / "out", src)
    finally:
        os.umask(old)
    assert snapshot(tmp_path).keys() == {"out"}
    assert (tmp_path / "out").read_bytes() == b"new content"
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o666 & ~mask


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o755])
def test_a_replaced_file_keeps_its_mode(mode: int, tmp_path: Path, src: Source):
    out = tmp_path / "out"
    out.write_bytes(b"old")
    out.chmod(mode)
    write(out, src, force=True)
    assert snapshot(tmp_path).keys() == {"out"}
    assert (out.read_bytes(), stat.S_IMODE(out.stat().st_mode)) == (b"new content", mode)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("force", [False, True])
def test_unpublished_it_vanishes(force: bool, tmp_path: Path, src: Source):
    if force:
        (tmp_path / "out").write_bytes(b"old")
    before = snapshot(tmp_path)
    with Output(tmp_path / "out", src, force=force) as out:
        os.write(out.fd, b"half")
    assert snapshot(tmp_path) == before


TAKEN: dict[str, tuple[Callable[[Path, Path], object], str, bool]] = {
    "file": (lambda out, src: out.write_bytes(b"old"), "exists already", False),
    "input": (lambda out, src: out.hardlink_to(src), "is the input itself", True),
    "link to the input": (lambda out, src: out.symlink_to(src), "is the input itself", True),
    "symlink": (lambda out, src: out.symlink_to(out.with_name("other")), "is a symbolic link", True),
    "link to a device": (lambda out, src: out.symlink_to("/dev/null"), "is a symbolic link", True),
    "folder": (lambda out, src: out.mkdir(), "is a folder", True),
    "FIFO": (lambda out, src: os.mkfifo(out), "is a FIFO", True),
}


@pytest.mark.parametrize(("make", "words", "force"), TAKEN.values(), ids=TAKEN)
def test_a_name_that_is_taken(make: Callable[[Path, Path], object], words: str, force: bool, tmp_path: Path, src: Source):
    """Nothing but a regular file is ever replaced, and that only by force."""
    make(tmp_path / "out", Path(src.name))
    before = snapshot(tmp_path)
    for forced in {False, force}:
        with pytest.raises(OutputExistsError, match=words):
            Output(tmp_path / "out", src, force=forced)
    assert snapshot(tmp_path) == before
    assert Path(src.name).read_bytes() == b"input"


def test_a_device_is_not_replaced(tmp_path: Path, src: Source):
    try:
        os.mknod(tmp_path / "out", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:
        pytest.skip("making a device takes root")
    with pytest.raises(OutputExistsError, match="is a device"):
        Output(tmp_path / "out", src, force=True)


def read_only(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write into every folder")
    folder.chmod(0o500)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no such file"),
        (lambda folder: folder.write_bytes(b""), "not a directory"),
        (lambda folder: (folder.mkdir(), read_only(folder)), "permission denied"),
    ],
    ids=["missing", "file", "read-only"],
)
def test_a_folder_that_cannot_be_written_to(make: Callable[[Path], object], words: str, tmp_path: Path, src: Source):
    make(tmp_path / "folder")
    with pytest.raises(FileSystemError, match=f"folder/out: cannot be written: {words}"):
        Output(tmp_path / "folder" / "out", src)


def test_a_missing_folder_can_be_made(tmp_path: Path, src: Source):
    for make in (lambda: Output(tmp_path / "a b" / "out", src), lambda: OutputFolder(tmp_path / "a b" / "out", tmp_path / "c")):
        with pytest.raises(FileSystemError, match="cannot be written: no such file") as caught:
            make()
        assert shlex.split(caught.value.hint) == ["mkdir", "-p", str(tmp_path / "a b")]


def test_a_file_system_that_takes_no_files(src: Source):
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    with pytest.raises(FileSystemError, match="/proc/out: cannot be written"):
        Output(Path("/proc/out"), src)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300], ids=["nul", "long"])
def test_a_name_that_cannot_be(name: str, tmp_path: Path, src: Source):
    with pytest.raises(FileSystemError), Output(tmp_path / name, src) as out:
        out.publish()
    assert snapshot(tmp_path) == {}


@pytest.mark.usefixtures("way")
def test_of_two_runs_one_wins(tmp_path: Path, src: Source):
    with Output(tmp_path / "out", src) as first, Output(tmp_path / "out", src) as second:
        os.write(first.fd, b"first")
        os.write(second.fd, b"second")
        second.publish()
        with pytest.raises(OutputExistsError, match="exists already"):
            first.publish()
    assert snapshot(tmp_path).keys() == {"out"}
    assert (tmp_path / "out").read_bytes() == b"second"


@pytest.mark.usefixtures("way")
def test_a_link_put_there_in_the_meantime_is_not_replaced(tmp_path: Path, src: Source):
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "other").write_bytes(b"other")
    with Output(tmp_path / "out", src, force=True) as out:
        (tmp_path / "out").unlink()
        (tmp_path / "out").symlink_to("other")
        before = snapshot(tmp_path)
        with pytest.raises(OutputExistsError, match="is a symbolic link"):
            out.publish()
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "other").read_bytes() == b"other"
    assert before.keys() >= snapshot(tmp_path).keys() == {"out", "other"}


def test_a_file_system_without_unnamed_files(tmp_path: Path, src: Source, monkeypatch: pytest.MonkeyPatch):
    if not atomic.UNNAMED:
        pytest.skip("the platform has no O_TMPFILE")
    monkeypatch.setattr(os, "open", Failing(os.open, 0, errno.EOPNOTSUPP))
    write(tmp_path / "out", src)
    assert snapshot(tmp_path).keys() == {"out"}


def test_leftovers_nobody_holds_are_swept(tmp_path: Path):
    (tmp_path / LEFTOVER).write_bytes(b"left by a killed run")
    held = tmp_path / LEFTOVER.replace("0", "f")
    others = {held.name, LEFTOVER + "x", ".chkpt-channels-0.tmp", "model.pth"}
    for name in others:
        (tmp_path / name).write_bytes(b"")
    with held.open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        sweep(tmp_path)
    assert snapshot(tmp_path).keys() == others


def test_a_leftover_that_is_a_link_keeps_what_it_names(tmp_path: Path):
    (tmp_path / "model.pth").write_bytes(b"a")
    (tmp_path / LEFTOVER).symlink_to("model.pth")
    sweep(tmp_path)
    assert (tmp_path / "model.pth").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: socket.socket(socket.AF_UNIX).bind(str(path))], ids=["fifo", "socket"])
def test_a_leftover_that_is_no_file_is_not_opened(make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Opening a FIFO waits for its writer, for ever."""
    monkeypatch.chdir(tmp_path)
    make(Path(LEFTOVER))
    sweep(tmp_path)
    assert snapshot_names(tmp_path) == {LEFTOVER}


def test_a_leftover_that_becomes_a_fifo_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the look and the opening."""
    (tmp_path / LEFTOVER).touch()
    real = os.open

    def swapped(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(LEFTOVER):
            os.unlink(path)
            os.mkfifo(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", swapped)
    sweep(tmp_path)
    assert snapshot_names(tmp_path) <= {LEFTOVER}


def snapshot_names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_killed_it_leaves_no_litter(tmp_path: Path, src: Source):
    """SIGKILL at its worst moment: the file is complete, and has no name yet."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from chkpt_channels.storage.atomic import Output\n"
        "from chkpt_channels.storage.source import Source\n"
        "out = Output(Path(sys.argv[2]), Source(sys.argv[1]))\n"
        "os.write(out.fd, b'complete')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = FIXTURES.parent
    done = subprocess.run([sys.executable, "-c", program, src.name, str(tmp_path / "out")], cwd=root, check=False)
    assert done.returncode == -9
    left = snapshot(tmp_path).keys()
    assert not left if atomic.UNNAMED else "out" not in left
    write(tmp_path / "out", src)
    assert snapshot(tmp_path).keys() == {"out"}


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Path.resolve leaves loops as they are")
def test_a_folder_behind_a_loop_of_links(tmp_path: Path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileSystemError, match="loop"):
        OutputFolder(tmp_path / "loop" / "out", tmp_path / "in")


def test_what_is_there_already_stays_and_what_differs_is_never_replaced(tmp_path: Path):
    there = tmp_path / "out"
    for old, is_new in ((None, True), (b"new", False)):
        if old is not None:
            there.write_bytes(old)
        before = there.stat().st_ino if old is not None else None
        with Output(there, None, or_same=True) as out:
            os.write(out.fd, b"new")
            assert out.publish() is is_new
        assert there.read_bytes() == b"new"
        assert before in (None, there.stat().st_ino)
    there.write_bytes(b"odd")
    with Output(there, None, or_same=True) as out:
        os.write(out.fd, b"new")
        with pytest.raises(OutputExistsError, match="is not what this conversion gives"):
            out.publish()
    assert there.read_bytes() == b"odd"


def test_a_name_that_is_taken_in_the_meantime(tmp_path: Path):
    with Output(tmp_path / "out", None, or_same=True) as out:
        os.write(out.fd, b"new")
        (tmp_path / "out").write_bytes(b"new")
        assert out.publish() is False
    with Output(tmp_path / "two", None, or_same=True) as out:
        os.write(out.fd, b"new")
        (tmp_path / "two").write_bytes(b"other")
        with pytest.raises(OutputExistsError):
            out.publish()
    assert (tmp_path / "two").read_bytes() == b"other"

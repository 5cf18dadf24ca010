"""Run the command on a file in a process of its own, bounded, and say what it broke of the ten promises."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, NoReturn

from chkpt_channels.cli import app as cli
from chkpt_channels.core.errors import printable
from chkpt_channels.storage import isolation

SECONDS = 10
PEAK = 250 << 20
FOLDER = Path(__file__).resolve().parents[2]
HASHED = 1 << 30
WARM = (__name__, "tests.support.warmed_up")
"""What the forks of small processes have imported."""

Entry = tuple[int, int, int, str]


class Outcome(NamedTuple):
    """How a run ended: `peak` in bytes, above what the process had when it began; `seconds` of processor time."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int


def entries(folder: Path) -> dict[str, Entry]:
    """Each entry of a folder, and of those in it: mode, size, time of change, and a hash of its content or its target."""
    found = {}
    for entry in folder.rglob("*"):
        status = entry.lstat()
        found[str(entry.relative_to(folder))] = (
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            _digest(entry, status.st_size),
        )
    return found


def _digest(entry: Path, size: int) -> str:
    if entry.is_symlink():
        return str(entry.readlink())
    if not entry.is_file() or size > HASHED:  # those are holes
        return ""
    return hashlib.sha256(entry.read_bytes()).hexdigest()


def forked(arguments: Sequence[str], folder: Path, prepare: Callable[[], object] = bool) -> Outcome:
    """The command in a fork, of this process where something is prepared in it: a crash or a hang is no crash or hang of ours."""
    # a process that has done nothing but import these forks in 5 ms; the tests' own is large, and takes 150
    multiprocessing.set_forkserver_preload([*WARM])
    kind = multiprocessing.get_context("forkserver" if prepare is bool else "fork")
    out, err = folder / "stdout", folder / "stderr"
    reading, writing = kind.Pipe(duplex=False)
    child = kind.Process(target=_run, args=(arguments, out, err, writing, prepare))
    child.start()
    writing.close()
    try:
        seconds, peak = reading.recv()
    except EOFError:  # a signal ended it
        seconds, peak = 0, 0
    reading.close()
    child.join()
    return _outcome(child.exitcode, out, err, seconds, peak)


def _run(arguments: Sequence[str], out: Path, err: Path, writing: Connection, prepare: Callable[[], object]) -> NoReturn:
    """The child's whole life."""
    began = _resident()
    try:
        redirect(out, err)
        prepare()
        signal.alarm(6 * SECONDS)
        code = cli.run(arguments)
        sys.stdout.flush()
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        peak = max(usage.ru_maxrss for usage in usages) << 10
        with contextlib.suppress(MemoryError):  # where memory is what was prepared
            writing.send((sum(usage.ru_utime + usage.ru_stime for usage in usages), max(0, peak - began)))
        os._exit(code)
    finally:
        os._exit(99)


def aside(work: Callable[[Callable[[bytes], object]], object], seconds: int = 0) -> bytes:
    """What `work` tells from a fork of this process, which needs no further ones, as far as it comes: libraries crash on such
    files, or never end, for which the processor's `seconds` are limited."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            isolation.may_fork = lambda: False
            if seconds:
                most = math.ceil(time.process_time()) + seconds
                resource.setrlimit(resource.RLIMIT_CPU, (most, most))
            work(lambda told: os.write(writing, told))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def redirect(out: Path, err: Path) -> None:
    """Let standard output and error be these files."""
    for number, path in ((1, out), (2, err)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.stderr.reconfigure(line_buffering=True)


MEASURED = """
import json, os, sys
child = os.fork()
if not child:
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    json.dump([status, *usage[:3]], file)
"""
"""Runs a command from a small process: Linux counts what a process was before exec as its peak, and the tests' own is large."""


def alone(arguments: Sequence[str], folder: Path, prepare: Callable[[], object] = bool) -> Outcome:
    """The command as a user starts it, its address space and its time limited."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (6 * SECONDS, 6 * SECONDS))
        prepare()

    out, err, measured = folder / "stdout", folder / "stderr", folder / "measured"
    command = [sys.executable, "-c", MEASURED, str(measured), sys.executable, "-m", "chkpt_channels", *arguments]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with out.open("wb") as to, err.open("wb") as to_err:
        child = subprocess.Popen(command, cwd=FOLDER, stdout=to, stderr=to_err, preexec_fn=limit, env=environment)
        child.wait()
    status, *usage = json.loads(measured.read_text())
    measured.unlink()
    user, system, peak = usage
    return _outcome(os.waitstatus_to_exitcode(status), out, err, user + system, peak << 10)


def _outcome(code: int, out: Path, err: Path, seconds: float, peak: int) -> Outcome:
    texts = [path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else "" for path in (out, err)]
    for path in (out, err):
        path.unlink(missing_ok=True)
    return Outcome(code, texts[0], texts[1], seconds, peak)


def broken(code: int, says: str, outcome: Outcome, root: Path, *, allowed: int = PEAK) -> list[str]:
    """What the run itself broke: each begins with one of conftest's KINDS."""
    found = []
    if outcome.code in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL) or outcome.seconds > SECONDS:
        found.append(f"hang: {outcome.seconds:.1f} s, ended as {outcome.code}")
    if outcome.code != code:
        found.append(f"unexpected exit: {outcome.code}, not {code}: {outcome.err[:400]}")
    if "Traceback" in outcome.err:
        found.append(f"traceback: {outcome.err[-2000:]}")
    if outcome.peak > allowed:
        found.append(f"memory: {outcome.peak >> 20} MiB")
    return found + [f"message: {problem}" for problem in _message_problems(code, says, outcome, root)]


def _message_problems(code: int, says: str, outcome: Outcome, root: Path) -> list[str]:
    lines = outcome.err.splitlines()
    problems = [f"not printable: {line[:100]!r}" for line in lines if not line.isprintable()]
    if code == 0:
        if says and not re.search(says, outcome.err):
            problems.append(f"no warning of {says!r}: {outcome.err[:300]!r}")
        if not says and "warning" in outcome.err:
            problems.append(f"a warning: {outcome.err[:300]!r}")
        return problems
    if not lines:
        return ["none"] if says else []
    if not lines[0].startswith(f"error: {printable(str(root), 4096)}") or not lines[0].endswith("; nothing was written"):
        problems.append(f"it does not begin with error: and the file, or end in what was done: {lines[0][:300]!r}")
    if not re.search(says, lines[0].replace(printable(str(root), 4096), "")):
        problems.append(f"it does not say {says!r}: {lines[0][:300]!r}")
    if len(lines[0]) > 5000 or any(not re.match(r"try: |  ", line) for line in lines[1:]):
        problems.append(f"it is no line: {outcome.err[:300]!r}")
    return problems

"""The interpreter's own audit events over conversions of every fixture: what is imported, run, opened, started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.files import FIXTURES, truths

PROGRAM = """
import json, os, sys

HOME, OUT, TEMPORARY, LOG = sys.argv[1:5]
LIBRARIES = tuple({os.path.realpath(p) for p in (*sys.path, sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)) if p})
FRAMEWORKS = {"torch", "torchvision", "keras", "tf_keras", "tensorflow", "jax", "flax", "transformers", "timm", "onnxruntime"}
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.", "ftplib.",
             "urllib.", "http.", "smtplib.", "pickle.find_class", "webbrowser.", "shutil.rmtree")
CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown")
READING = ("os.listdir", "os.scandir")
log, loaded = os.open(LOG, os.O_WRONLY | os.O_APPEND), False


def inside(path, *folders):
    if isinstance(path, int):
        return True
    path = os.path.realpath(os.fsdecode(path))
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


def is_wrong(event, args):
    if event == "import":
        return args[0].partition(".")[0] in FRAMEWORKS
    if event == "compile":
        return loaded or not (str(args[1]).startswith("<") or inside(args[1], *LIBRARIES))
    if event == "exec":
        return loaded or not (args[0].co_filename.startswith("<") or inside(args[0].co_filename, *LIBRARIES))
    if event == "open":
        read = (HOME, OUT, TEMPORARY, *LIBRARIES, "/proc/self", "/proc/%d" % os.getpid(), "/dev/null", "/dev/urandom")
        changes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return not inside(args[0], *(read if not changes else (OUT, TEMPORARY, "/dev/null")))
    if event == "subprocess.Popen" and not loaded:
        return args[1] != ["uname", "-p"]  # h5py, when it is imported
    if event in CHANGING and loaded:
        return not all(inside(path, OUT, TEMPORARY) for path in args if isinstance(path, (str, bytes)) and not path.isdigit())
    if event in READING and loaded:
        return not inside(args[0], HOME, OUT, TEMPORARY)
    return event.startswith(FORBIDDEN)


counts = {}


def hook(event, args):
    counts[event] = counts.get(event, 0) + 1
    if is_wrong(event, args):
        os.write(log, (f"{event} {args!r}"[:300] + "\\n").encode())  # a forked child writes here too


sys.addaudithook(hook)
from chkpt_channels import ChkptChannelsError, convert, inspect, verify

for loaded in (False, True):
    for source, count in json.loads(sys.argv[5]).items():
        out = os.path.join(OUT, "out_" + os.path.basename(source))
        inspect(source)
        try:
            convert(source, out, to=3 if count == 1 else 1, force=True)
            verify(source, out)
        except ChkptChannelsError as error:
            assert error.exit_code == 4, error
print(json.dumps({**counts, "frameworks": sorted(FRAMEWORKS & set(sys.modules))}))
"""


def audited(tmp_path: Path, sources: dict[str, int]) -> tuple[dict[str, int], str]:
    """How often which event was seen, and those that must not be."""
    out, temporary, log = tmp_path / "out", tmp_path / "temporary", tmp_path / "log"
    out.mkdir()
    temporary.mkdir()
    log.touch()
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    home = os.path.commonpath([Path(source).parent for source in sources])
    command = [sys.executable, "-c", PROGRAM, home, str(out), str(temporary), str(log), json.dumps(sources)]
    done = subprocess.run(command, cwd=FIXTURES.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), log.read_text()


def test_nothing_is_run_or_opened_but_what_must_be(tmp_path: Path):
    """Every fixture twice: at first the libraries are imported; the second time nothing at all is compiled or run.

    The one process that is started is the forked child that reads HDF5: a fork, no program. (h5py asks `uname -p` when it
    is imported.)"""
    counts, wrong = audited(tmp_path, {str(truth.path): truth.said["in_channels"] or 3 for truth in truths()})
    assert wrong == ""
    assert counts.pop("frameworks") == []
    assert counts["open"] > 200
    assert sys.platform != "linux" or counts["os.fork"] > 20


ODD = ("import socket; socket.socket()", "open('/etc/hostname')", "eval('1')", "import subprocess; subprocess.run('true')")


@pytest.mark.parametrize("words", ODD)
def test_the_hook_sees_what_must_not_be(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Otherwise the test above could not fail."""
    monkeypatch.setitem(globals(), "PROGRAM", PROGRAM.replace("        inspect(source)\n", f"        inspect(source); {words}\n"))
    _, wrong = audited(tmp_path, {str(FIXTURES / "safetensors" / "model.safetensors"): 3})
    assert wrong

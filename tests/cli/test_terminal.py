"""In a real terminal: progress after a second, color only there, Ctrl-C, and the shell's completion."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.support.files import FIXTURES

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
SLOW = """
import sys, time
import chkpt_channels.storage.source as source
read = source.Source.readinto
def slowly(self, buffer, start):
    time.sleep(PAUSE if len(buffer) > 1 << 20 else 0)
    return read(self, buffer, start)
source.Source.readinto = slowly
import os
del os.copy_file_range
from chkpt_channels.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "big.safetensors"
    named = {"conv1.weight": np.ones((8, 3, 7, 7), np.float32), "fc.weight": np.ones((1000, 45_000), np.float32)}
    safetensors.numpy.save_file(named, path)
    return path


def in_terminal(arguments: list[str], *, environment: dict[str, str] | None = None, interrupt_after: str = "") -> tuple[int, str]:
    """(exit code, everything that the terminal showed). Ctrl-C is typed once `interrupt_after` has appeared."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        arguments,
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **(environment or {})},
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(child)
    shown, began = b"", time.monotonic()
    while time.monotonic() - began < 120:
        if select.select([parent], [], [], 0.1)[0]:
            try:
                piece = os.read(parent, 1 << 16)
            except OSError:
                break
            if not piece:
                break
            shown += piece
            if interrupt_after and interrupt_after.encode() in shown:
                os.write(parent, b"\x03")
                interrupt_after = ""
        elif process.poll() is not None:
            break
    os.close(parent)
    return process.wait(timeout=30), shown.decode(errors="replace")


def convert(path: Path, out: Path, *, slow: bool = False, pause: float = 0.08) -> list[str]:
    program = ["-c", SLOW.replace("PAUSE", str(pause))] if slow else ["-m", "chkpt_channels"]
    return [sys.executable, *program, "convert", str(path), "--to", "gray", "-o", str(out)]


def test_what_is_quick_shows_no_bar(tmp_path: Path):
    code, shown = in_terminal(convert(RGB, tmp_path / "x.pth"))
    assert code == 0
    assert "━" not in shown
    assert "conv1.weight" in shown


def test_what_takes_longer_than_a_second_shows_how_far_it_is(large: Path, tmp_path: Path):
    code, shown = in_terminal(convert(large, tmp_path / "x.safetensors", slow=True))
    assert code == 0
    assert "━" in shown
    assert "MB/s" in shown or "MiB/s" in shown


def test_no_color_where_none_is_wanted(large: Path, tmp_path: Path):
    _, shown = in_terminal(convert(large, tmp_path / "x.safetensors", slow=True), environment={"NO_COLOR": "1"})
    assert "\x1b[38" not in shown
    assert "\x1b[3" not in shown


def test_control_c_leaves_nothing(large: Path, tmp_path: Path):
    """However late the key arrives on a busy machine: the work would take two minutes."""
    out = tmp_path / "out"
    out.mkdir()
    code, shown = in_terminal(convert(large, out / "x.safetensors", slow=True, pause=2), interrupt_after="━")
    assert code == 128 + signal.SIGINT
    assert "Traceback" not in shown
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_is_told_what_could_come(shell: str):
    environment = {"_CHKPT_CHANNELS_COMPLETE": f"complete_{shell}", "COMP_WORDS": "chkpt-channels conv", "COMP_CWORD": "1"}
    environment["_TYPER_COMPLETE_ARGS"] = "chkpt-channels conv"
    done = subprocess.run(
        [sys.executable, "-c", "from chkpt_channels.__main__ import main; main()"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "convert" in done.stdout, done.stderr

"""Code as a user runs it, in a process of its own: a fork of one that has imported what takes long: frameworks, 10 s."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.support.sandbox import redirect


class Ended(NamedTuple):
    """How it ended, and what it printed."""

    code: int
    out: str
    err: str


def run_apart(
    code: str, folder: Path, arguments: Sequence[str] = (), *, imported: Sequence[str] = ("tests.support.frameworks_imported",)
) -> Ended:
    """Run `code` in `folder` as `python -c` does: nothing is in its scope that it does not import."""
    multiprocessing.set_forkserver_preload([*imported])
    out, err = folder / "stdout", folder / "stderr"
    child = multiprocessing.get_context("forkserver").Process(target=_run, args=(code, folder, arguments, out, err))
    child.start()
    child.join()
    ended = Ended(child.exitcode, out.read_text(), err.read_text())
    out.unlink()
    err.unlink()
    return ended


def _run(code: str, folder: Path, arguments: Sequence[str], out: Path, err: Path) -> NoReturn:
    redirect(out, err)
    os.chdir(folder)
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)

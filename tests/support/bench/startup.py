"""How long the command takes to start, with the lowest typer, with 0.28 and with the newest.

From 0.29 on typer requires pydantic and imports it in every parse. Each typer has an environment of its own, into which the
package is installed as users install it.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from tests.support.bench.measure import TINY, run
from tests.support.lowest import ROOT, lowest


def startup(folder: Path, runs: int) -> None:
    """One row for each typer: milliseconds of `--help` and of a conversion of some kilobytes, the median of runs in turn."""
    pythons = {}
    for name, wanted in {"lowest": f"typer=={lowest()['typer']}", "0.28": "typer==0.28.*", "newest": "typer"}.items():
        python = folder / f"typer-{name}" / "bin" / "python"
        run([sys.executable, "-m", "venv", str(python.parent.parent)])
        run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(ROOT), wanted])
        pythons[f"typer {name}"] = str(python)
    output = folder / "startup.safetensors"
    words = {
        "empty Python": ["-c", "pass"],
        "--help": ["-P", "-m", "chkpt_channels", "--help"],
        "convert": ["-P", "-m", "chkpt_channels", "convert", str(TINY), "--to", "gray", "-o", str(output), "--quiet"],
    }
    figures: dict[tuple[str, str], list[float]] = {(name, what): [] for name in pythons for what in words}
    for _ in range(runs + 1):
        for name, what in figures:
            output.unlink(missing_ok=True)
            figures[name, what].append(run([pythons[name], *words[what]]).wall)
    for name in pythons:
        row = (f"{what} {1000 * statistics.median(figures[name, what][1:]):4.0f} ms" for what in words)
        print(f"start-up, {name:34}  {', '.join(row)}", flush=True)

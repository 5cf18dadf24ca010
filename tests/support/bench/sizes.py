"""Time against size: conversions beside cp and the scripts that everyone writes, and the picture of it, docs/speed.png."""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

from tests.support.bench import programs
from tests.support.bench.measure import OURS, in_turn, load, run
from tests.support.lowest import ROOT

PICTURE = ROOT / "docs" / "speed.png"
MEGABYTES = (1, 4, 16, 64, 256, 1000)
COPY = "cp and sync"
SCRIPTS = {
    ".pth": ("torch.load, sum, torch.save", programs.TORCH_SCRIPT),
    ".safetensors": ("load_file, sum, save_file of safetensors.numpy", programs.SAFETENSORS_SCRIPT),
}
CONVERSION = "chkpt-channels convert"
COLORS = {CONVERSION: "#1f6feb", COPY: "#8b949e"}

Curves = dict[str, dict[str, list[float]]]
"""Seconds for each of MEGABYTES, by ending and way."""


def sizes(folder: Path, runs: int, picture: Path | None = PICTURE) -> None:
    """A row for each size and format, in turn, and the slope between the two largest: 1 is linear."""
    curves: Curves = {suffix: {way: [] for way in (CONVERSION, COPY, name)} for suffix, (name, _) in SCRIPTS.items()}
    for size in MEGABYTES:
        files = {suffix: folder / f"sized{suffix}" for suffix in SCRIPTS}
        run([sys.executable, "-c", programs.MAKE_SIZED, *map(str, files.values()), str(size)])
        for suffix, source in files.items():
            for way, seconds in _measured(source, folder / f"out{suffix}", runs).items():
                curves[suffix][way].append(seconds)
            row = "   ".join(f"{way} {taken[-1]:.2f} s" for way, taken in curves[suffix].items())
            print(f"{f'{suffix} of {size} MB':24}  {row}   {load()}", flush=True)
            source.unlink()
    for suffix, ways in curves.items():
        print(
            f"{suffix}: slope from {MEGABYTES[-2]} to {MEGABYTES[-1]} MB: "
            + ", ".join(f"{w} {_slope(t):.2f}" for w, t in ways.items())
        )
    if picture:
        draw(curves, picture)


def _measured(source: Path, output: Path, runs: int) -> dict[str, float]:
    """The median seconds of each way."""
    name, text = SCRIPTS[source.suffix]
    places = [str(source), str(output)]
    ways = {
        CONVERSION: [*OURS, "convert", places[0], "--to", "gray", "-o", places[1], "--quiet"],
        COPY: ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", *places],
        name: [sys.executable, "-c", text, *places],
    }
    return {way: statistics.median(figure.wall for figure in taken) for way, taken in in_turn(ways, output, runs).items()}


def _slope(seconds: list[float]) -> float:
    return math.log(seconds[-1] / seconds[-2]) / math.log(MEGABYTES[-1] / MEGABYTES[-2])


def draw(curves: Curves, picture: Path) -> None:
    """The curves, a panel for each format, both axes logarithmic."""
    import matplotlib.pyplot as plt

    from chkpt_channels.api.display.picture import STYLE

    with plt.style.context(["default", STYLE]):
        figure, panels = plt.subplots(1, len(curves), figsize=(9, 3.6), sharey=True, layout="constrained")
        for panel, (suffix, ways) in zip(panels, curves.items(), strict=True):
            for way, seconds in ways.items():
                panel.loglog(MEGABYTES, seconds, marker="o", markersize=3, label=way, color=COLORS.get(way, "#d1572b"))
            panel.set_title(suffix)
            panel.set_xlabel("MB of the file")
            panel.set_xticks(MEGABYTES, [str(size) for size in MEGABYTES])
            panel.minorticks_off()
            panel.set_yticks([0.1, 0.3, 1, 3, 10, 30], ["0.1", "0.3", "1", "3", "10", "30"])
            panel.grid(color="#e6e6e6", linewidth=0.6)
            panel.legend(frameon=False)
        panels[0].set_ylabel("seconds, whole processes")
        figure.savefig(picture, dpi=130, metadata={"Software": None})
        plt.close(figure)

"""Whether work and memory grow with the file: one file with more and more of one thing, up to the limit of it and twice that.

    python -m tests.support.bench.conversions --only scale

A row is one kind, and its columns are counts, with processor time and peak memory. First sizes that people have: 10 to 200,000
tensors, 1 MB to 100 GB, shards, files in a folder, and with which power of the count time grows. Then what a limit is set to, in
`convert`, and what each doubling multiplies the time by: 2 where it grows with the count, 4 where with its square.
"""

from __future__ import annotations

import math
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from chkpt_channels.core.limits import LIMITS
from tests.support.bench import programs
from tests.support.bench.measure import OURS, TINY, load, run

STEPS = (8, 4, 2, 1, 0.5)
"""A limit divided by these."""

KINDS = {
    "narrow kernels that layers explain": ("a.safetensors", LIMITS.narrow_kernels, "explained({})"),
    "narrow kernels that nothing explains": ("a.safetensors", LIMITS.likely_kernels, "kernels({})"),
    "depthwise kernels": ("a.safetensors", LIMITS.narrow_kernels, "kernels({}, (8, 1, 3, 3))"),
    "names of one tensor": ("a.pth", 200_000, "one_under_many({})"),
    "bytes of names": ("a.pth", LIMITS.name_bytes, "long_names(30_000, {} // 30_010)"),
    "operations before a kernel": ("a.onnx", LIMITS.graph_operations, "chain({})"),
    "kernels on one image": ("a.onnx", LIMITS.first_convs, "stems({})"),
    "operations behind the stem": ("a.onnx", 100_000, "behind({})"),
    "values of a configuration": ("model", LIMITS.sidecar_values, "configured(numbers({}))"),
    "tensors of an index": ("model", LIMITS.sidecar_values // 2, "indexed({})"),
    "datasets of an HDF5 file": ("a.h5", 50_000, "groups('x', 1, {})"),
}
"""By what there is more and more of: the file's name, the most (its limit, where it has one), and a call of the hostile rows'
builders."""

MAKE = """
import sys
from pathlib import Path
from fixtures.generate.hostile import limits
content = eval(sys.argv[2], vars(limits))
path = Path(sys.argv[1])
path.write_bytes(content) if isinstance(content, bytes) else content(path.parent)
"""
"""In a process of its own: a child's peak counts what its parent holds."""


SIZES = {
    "tensors in one file": ("model", (10, 1_000, 10_000, 100_000, 200_000), "1 {0} {0}", 1.0),
    "MB of one file, sparse": ("model", (1, 100, 1_000, 10_000, 100_000), "1 322 {}250000", 0.0),
    "shards of 322 tensors, 1 GB each, sparse": ("model", (1, 10, 40, 163), "{} 322 250000000", 1.0),
    "files of 20 kB in check": ("files", (100, 1_000, 10_000), "{}", 1.0),
}
"""By what there is more and more of: what makes it, the counts, its arguments, and the power of the count with which time may
grow: 1 in proportion, 0 not at all."""


def of_size(name: str, folder: Path) -> str:
    """The row of one kind: plans, for which only indexes are read, so that 100 GB of holes need no disk."""
    kind, counts, arguments, power = SIZES[name]
    cells, points = [], []
    for count in counts:
        home = folder / f"{name} {count}"
        words = arguments.format(count).split()
        if kind == "model":
            run([sys.executable, "-c", programs.MAKE_SPARSE, str(home), *words])
            source = home if (home / "model.safetensors.index.json").exists() else home / "model.safetensors"
            command = ["convert", str(source), "--to", "gray", "--dry-run", "-q"]
        else:
            run([sys.executable, "-c", programs.MAKE_FILES, str(home), str(TINY), *words])
            command = ["check", str(home), "--expect", "rgb", "-q"]
        figure = run([*OURS, *command])
        shutil.rmtree(home)
        points.append((count, figure.processor))
        cells.append(f"{count}: {figure.processor:.2f} s, {figure.peak:.0f} MiB")
    return f"{name:40} {'   '.join(cells)}   grows with the power {slope(points[-3:]):.2f} (wanted ≤ {power + 0.1:.1f})"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The power of x with which y grows: the line through the logarithms, by least squares."""
    return statistics.linear_regression(*zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)).slope


def curve(name: str, folder: Path) -> str:
    """The row of one kind."""
    (file, most, call), cells, before = KINDS[name], [], 0.0
    for step in STEPS:
        count, home = int(most / step), folder / f"{name} {step}"
        home.mkdir()
        run([sys.executable, "-c", MAKE, str(home / file), call.format(count)])
        out = (home / file).with_name(f"out{Path(file).suffix}")
        figure = run([*OURS, "convert", str(home / file), "--to", "gray", "-o", str(out), "-q", "--force"], codes=range(6))
        growth = f" ×{figure.processor / before:.1f}" if before else ""
        cells.append(f"{count}: {figure.processor:.2f} s{growth}, {figure.peak:.0f} MiB, exit {figure.code}")
        before = figure.processor
    return f"{name:38} {'   '.join(cells)}"


def scale(folder: Path) -> None:
    """Print the curve of each kind."""
    for name in SIZES:
        print(of_size(name, folder), load(), flush=True)
    for name in KINDS:
        print(curve(name, folder), flush=True)

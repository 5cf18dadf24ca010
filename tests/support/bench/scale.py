"""Whether work and memory grow with the file: one file with more and more of one thing, up to the limit of it and twice that.

    python -m tests.support.bench.conversions --only scale

A row is one kind, and its columns are counts: processor time and peak memory of `convert`, and what each doubling multiplies the
time by: 2 where it grows with the count, 4 where with its square.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from chkpt_channels.core.limits import LIMITS

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


def figures(path: Path) -> tuple[float, float, int]:
    """(processor seconds, peak MiB, exit code) of one conversion."""
    out = path.with_name(f"out{path.suffix}")
    command = [sys.executable, "-m", "chkpt_channels", "convert", str(path), "--to", "gray", "-o", str(out), "-q", "--force"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, child.returncode


def curve(name: str, folder: Path) -> str:
    """The row of one kind."""
    (file, most, call), cells, before = KINDS[name], [], 0.0
    for step in STEPS:
        count, home = int(most / step), folder / f"{name} {step}"
        home.mkdir()
        subprocess.run([sys.executable, "-c", MAKE, str(home / file), call.format(count)], check=True)
        seconds, peak, code = figures(home / file)
        growth = f" ×{seconds / before:.1f}" if before else ""
        cells.append(f"{count}: {seconds:.2f} s{growth}, {peak:.0f} MiB, exit {code}")
        before = seconds
    return f"{name:38} {'   '.join(cells)}"


def scale(folder: Path) -> None:
    """Print the curve of each kind."""
    for name in KINDS:
        print(curve(name, folder), flush=True)

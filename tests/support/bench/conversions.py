"""Speed and memory of whole commands against the script everyone writes, and against cp. Prints ratios measured side by side.

    make bench                              # all of it: about 15 GB of disk, some minutes
    python -m tests.support.bench.conversions --only small      # the 100 MB part
    python -m tests.support.bench.conversions --only scale      # how work grows with what a file holds many of
    python -m tests.support.bench.conversions --only startup    # the start of the command, with each typer

The commands of a pair run in turn, A B A B …; the figure is the median of the ratios. This process imports nothing large: a
child's peak memory counts what its parent held when it forked.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.bench.scale import scale
from tests.support.bench.startup import startup

PYTHON = sys.executable
OURS = [PYTHON, "-m", "chkpt_channels"]

MAKE_SMALL = """
import sys, torch
from transformers import ResNetConfig, ResNetForImageClassification
from safetensors.torch import save_file
state = ResNetForImageClassification(ResNetConfig()).state_dict()
torch.save(state, sys.argv[1]); save_file(state, sys.argv[2])
"""
MAKE_LARGE = """
import sys, torch
from safetensors.torch import save_file
state = {"conv1.weight": torch.randn(64, 3, 7, 7)} | {f"blocks.{i}.weight": torch.randn(4096, 6144) for i in range(40)}
torch.save(state, sys.argv[1]); save_file(state, sys.argv[2])
"""
KERNEL = "next(k for k, v in s.items() if v.ndim == 4 and v.shape[1] == 3)"
TORCH_SCRIPT = f"""
import sys, torch
s = torch.load(sys.argv[1]); k = {KERNEL}
s[k] = s[k].sum(1, keepdim=True); torch.save(s, sys.argv[2])
"""
SAFETENSORS_SCRIPT = f"""
import sys
from safetensors.numpy import load_file, save_file
s = load_file(sys.argv[1]); k = {KERNEL}
s[k] = s[k].sum(1, keepdims=True); save_file(s, sys.argv[2])
"""
ONNX_SCRIPT = """
import sys, onnx
from onnx import numpy_helper
m = onnx.load(sys.argv[1])
for t in m.graph.initializer:
    if len(t.dims) == 4 and t.dims[1] == 3:
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).sum(1, keepdims=True), t.name))
m.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
onnx.save(m, sys.argv[2])
"""
MAKE_ONNX = """
import sys, torch
from transformers import ResNetConfig, ResNetForImageClassification
model = ResNetForImageClassification(ResNetConfig()).eval()
torch.onnx.export(model, (torch.rand(1, 3, 64, 64),), sys.argv[1], dynamo=False, input_names=["image"])
"""
MAKE_H5 = """
import os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras
keras.applications.ResNet50(weights=None).save(sys.argv[1])
"""
H5_SCRIPT = """
import shutil, sys, h5py
shutil.copy(sys.argv[1], sys.argv[2])
with h5py.File(sys.argv[2], "r+") as f:
    k = f.visititems(lambda name, d: name if isinstance(d, h5py.Dataset) and d.ndim == 4 and d.shape[2] == 3 else None)
    new = f[k][()].sum(2, keepdims=True)
    del f[k]
    f[k] = new
"""
MAKE_LARGE_ONNX = """
import sys, numpy as np, onnx
from onnx import TensorProto, helper
path, elements = sys.argv[1], 1 << 30
stem = helper.make_tensor("stem", TensorProto.FLOAT, [64, 3, 7, 7], np.random.rand(64 * 147).astype(np.float32))
big = TensorProto(data_type=TensorProto.FLOAT, dims=[elements], name="big", data_location=TensorProto.EXTERNAL)
for key, value in (("location", "big.bin"), ("offset", "0"), ("length", str(4 * elements))):
    big.external_data.add(key=key, value=value)
nodes = [
    helper.make_node("Conv", ["image", "stem"], ["f"]),
    helper.make_node("ReduceMean", ["big"], ["m"], keepdims=0),
    helper.make_node("Add", ["f", "m"], ["out"]),
]
infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("image", [1, 3, 64, 64]), ("out", None))]
model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:], [stem, big]))
open(path, "wb").write(model.SerializeToString())
with open(path.rpartition("/")[0] + "/big.bin", "wb") as file:
    for _ in range(64):
        file.write(np.random.bytes(elements // 16))
"""
MAKE_MANY = """
import json, pathlib, struct, sys
shapes = {"conv1.weight": [64, 3, 7, 7], "fc.weight": [1000, 24000]}
for i in range(160):
    shapes |= {f"layer.{i}.conv.weight": [64, 64, 3, 3], f"layer.{i}.bn.weight": [64]}
header, at = {}, 0
for name, shape in shapes.items():
    size = 4
    for width in shape:
        size *= width
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
    at += size
raw = json.dumps(header).encode()
for i in range(200):
    folder = pathlib.Path(sys.argv[1], f"model{i}")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": 3}))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
"""
COPY_AND_SYNC = ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh"]
NOTHING = [PYTHON, "-c", "pass"]


ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}  # installed code is compiled


def run(command: list[str]) -> tuple[float, float]:
    """(wall seconds, peak MiB) of one process that must succeed."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command} ended in {child.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def pair(name: str, ours: list[str], theirs: list[str], source: Path, folder: Path, runs: int, target: str) -> None:
    """One row: ours against theirs, in turn, each writing a new file."""
    output = folder / f"out{source.suffix}"
    figures = []
    for _ in range(runs + 1):  # the first is a warm-up
        row = []
        for command in (ours, theirs):
            output.unlink(missing_ok=True)
            row.append(run(command))
        figures.append(row)
    output.unlink(missing_ok=True)
    mine, other = zip(*figures[1:], strict=True)
    ratios = [a[0] / b[0] for a, b in zip(mine, other, strict=True)]
    print(
        f"{name:44}  ratio {statistics.median(ratios):5.2f} (min {min(ratios):.2f}, max {max(ratios):.2f}; wanted {target})"
        f"   ours {statistics.median(m[0] for m in mine):6.2f} s, theirs {statistics.median(o[0] for o in other):6.2f} s"
        f"   peak {max(m[1] for m in mine):4.0f} MiB against {max(o[1] for o in other):.0f}",
        flush=True,
    )


def convert(source: Path, folder: Path) -> list[str]:
    return [*OURS, "convert", str(source), "--to", "gray", "-o", str(folder / f"out{source.suffix}"), "--quiet"]


def script(text: str, source: Path, folder: Path) -> list[str]:
    return [PYTHON, "-c", text, str(source), str(folder / f"out{source.suffix}")]


def copy(source: Path, folder: Path) -> list[str]:
    return [*COPY_AND_SYNC, str(source), str(folder / f"out{source.suffix}")]


def small(folder: Path, runs: int) -> None:
    pth, safe = folder / "small.pth", folder / "small.safetensors"
    run([PYTHON, "-c", MAKE_SMALL, str(pth), str(safe)])
    print(f"ResNet-50, {pth.stat().st_size / 1e6:.0f} MB")
    pair(
        ".pth against torch.load, sum, torch.save",
        convert(pth, folder),
        script(TORCH_SCRIPT, pth, folder),
        pth,
        folder,
        runs,
        "≤ 0.125",
    )
    pair(".pth against cp + sync", convert(pth, folder), copy(pth, folder), pth, folder, runs, "-")
    theirs = script(SAFETENSORS_SCRIPT, safe, folder)
    pair(".safetensors against safetensors.numpy", convert(safe, folder), theirs, safe, folder, runs, "≤ 1.3")
    model = folder / "small.onnx"
    run([PYTHON, "-c", MAKE_ONNX, str(model)])
    pair(
        ".onnx against onnx.load, onnx.save",
        convert(model, folder),
        script(ONNX_SCRIPT, model, folder),
        model,
        folder,
        runs,
        "≤ 0.45",
    )
    keras = folder / "small.h5"
    run([PYTHON, "-c", MAKE_H5, str(keras)])
    theirs = script(H5_SCRIPT, keras, folder)
    pair(".h5 against a copy edited through h5py", convert(keras, folder), theirs, keras, folder, runs, "≤ 1.6")
    pair("--help against an empty Python", [*OURS, "--help"], NOTHING, pth, folder, runs, "≤ 150 ms")


def arrays(folder: Path) -> None:
    """500 MB of arrays by name, mostly holes: Flax's, NumPy's and pickled ones. Their peak of memory is what counts."""
    for name in ("arrays.msgpack", "arrays.npz", "arrays.pkl"):
        source = folder / name
        run([PYTHON, "-m", "tests.support.big_files", str(source), "500"])
        seconds, peak = run([*convert(source, folder), "--force"])
        print(f"{f'{source.suffix} of 500 MB':44}  {seconds:5.2f} s   peak {peak:4.0f} MiB (wanted ≤ 80)", flush=True)
        source.unlink()


def repository(folder: Path, runs: int) -> None:
    """check on a repository of 200 checkpoints of 120 MB, which are one hole each: only indexes are read."""
    run([PYTHON, "-c", MAKE_MANY, str(folder / "many")])
    figures = [run([*OURS, "check", str(folder / "many"), "--expect", "rgb"]) for _ in range(runs)]
    seconds, peak = statistics.median(f[0] for f in figures), max(f[1] for f in figures)
    print(f"{'check on 200 checkpoints of 120 MB':44}  {seconds:5.2f} s (wanted < 5)   peak {peak:4.0f} MiB", flush=True)


def large(folder: Path, runs: int) -> None:
    pth, safe = folder / "large.pth", folder / "large.safetensors"
    run([PYTHON, "-c", MAKE_LARGE, str(pth), str(safe)])
    print(f"forty matrices behind a stem, {pth.stat().st_size / 1e9:.1f} GB")
    pair(".pth against cp + sync", convert(pth, folder), copy(pth, folder), pth, folder, runs, "≤ 1.3")
    pair(".safetensors against cp + sync", convert(safe, folder), copy(safe, folder), safe, folder, runs, "≤ 1.3")
    theirs = script(SAFETENSORS_SCRIPT, safe, folder)
    pair(".safetensors against safetensors.numpy", convert(safe, folder), theirs, safe, folder, runs, "≤ 0.6")


def many(folder: Path, runs: int, count: int = 40) -> None:
    """Forty models at once and one after the other; beside it what the disk does with as many plain copies."""
    zoo, out = folder / "zoo", folder / "gray"
    zoo.mkdir()
    source = folder / "small.pth"
    if not source.exists():
        run([PYTHON, "-c", MAKE_SMALL, str(source), str(folder / "small.safetensors")])
    for i in range(count):
        os.link(source, zoo / f"m{i}.pth")
    every = sorted(map(str, zoo.iterdir()))
    copies = 'mkdir -p "$1"; shift; printf "%s\\n" "$@" | xargs -P "$JOBS" -I{} sh -c \'cp {} OUT/ && sync OUT/$(basename {})\''
    ways = {
        f"{count} × ResNet-50, -j {jobs}": [
            *OURS,
            "convert",
            *every,
            "--to",
            "gray",
            "--output-dir",
            str(out),
            "-j",
            str(jobs),
            "-q",
        ]
        for jobs in (1, 2)
    }
    ways |= {
        f"cp + sync, {jobs} at once": ["env", f"JOBS={jobs}", "sh", "-c", copies.replace("OUT", str(out)), "sh", str(out), *every]
        for jobs in (1, 2)
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    for _ in range(runs):
        for name, command in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            took, peak = run(command)
            seconds[name].append(took)
            peaks[name] = max(peak, peaks.get(name, 0))
    shutil.rmtree(out, ignore_errors=True)
    size = source.stat().st_size * count / 1e6
    medians = {name: statistics.median(took) for name, took in seconds.items()}
    for name, took in medians.items():
        print(f"{name:44}  {took:6.2f} s   {size / took:6.0f} MB/s   peak of one process {peaks[name]:4.0f} MiB", flush=True)
    one, two, cp_one, cp_two = medians.values()
    print(f"{'-j 2 is':44}  {one / two:5.2f} times as quick as -j 1 (wanted ≥ 1.6); two cp are {cp_one / cp_two:.2f} times one")


def external(folder: Path, runs: int) -> None:
    """4 GB of external data: it is copied beside the new model."""
    model = folder / "large.onnx"
    run([PYTHON, "-c", MAKE_LARGE_ONNX, str(model)])
    both = [
        *COPY_AND_SYNC[:2],
        'cp "$1" "$2" && cp "$(dirname "$1")/big.bin" "$2.data" && sync "$2.data"',
        "sh",
        str(model),
        str(folder / "out.onnx"),
    ]
    pair(".onnx with 4 GB of data against cp + sync", [*convert(model, folder), "--force"], both, model, folder, runs, "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["small", "large", "many", "scale", "startup"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are made and removed [the system's temporary folder]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.only in (None, "small"):
            small(folder, arguments.runs)
            arrays(folder)
            repository(folder, arguments.runs)
        if arguments.only in (None, "scale"):
            scale(folder)
        if arguments.only in (None, "startup"):
            startup(folder, arguments.runs, run)
        if arguments.only in (None, "many"):
            many(folder, max(2, arguments.runs // 2))
            shutil.rmtree(folder / "zoo")
        if arguments.only in (None, "large"):
            if shutil.disk_usage(folder).free < 20e9:
                raise SystemExit("the 4 GB part needs 20 GB of disk")
            large(folder, max(2, arguments.runs // 2))
            for path in folder.iterdir():
                path.unlink()
            external(folder, max(2, arguments.runs // 2))


if __name__ == "__main__":
    main()

"""Speed and memory of whole commands against the script everyone writes, and against cp. Prints ratios measured side by side.

    make bench                              # all of it: about 15 GB of disk, half an hour
    python -m tests.support.bench.conversions --only small      # the 100 MB part
    python -m tests.support.bench.conversions --only large      # 4 GB against cp and sync
    python -m tests.support.bench.conversions --only many       # -j 2 against -j 1, and what the disk does with two at once
    python -m tests.support.bench.conversions --only scale      # how work grows with what a file holds many of
    python -m tests.support.bench.conversions --only sizes      # time against size, 1 MB to 1 GB, and docs/speed.png
    python -m tests.support.bench.conversions --only startup    # the start of the command, with each typer
    python -m tests.support.bench.conversions --only fleet      # a task on Dask's workers against one of -j 2

The commands of a pair run in turn, A B A B …; the figure is the median of the ratios, with their quartiles.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tests.support.bench import programs
from tests.support.bench.fleet import fleet
from tests.support.bench.measure import OURS, TINY, Figure, in_turn, load, pair, quartiles, run
from tests.support.bench.scale import scale
from tests.support.bench.sizes import sizes
from tests.support.bench.startup import startup

PYTHON = sys.executable

PARTS = ("small", "scale", "sizes", "startup", "many", "fleet", "large")
COPY_AND_SYNC = ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh"]
NOTHING = [PYTHON, "-c", "pass"]


def convert(source: Path, folder: Path) -> list[str]:
    return [*OURS, "convert", str(source), "--to", "gray", "-o", str(folder / f"out{source.suffix}"), "--quiet"]


def script(text: str, source: Path, folder: Path) -> list[str]:
    return [PYTHON, "-c", text, str(source), str(folder / f"out{source.suffix}")]


def copy(source: Path, folder: Path) -> list[str]:
    return [*COPY_AND_SYNC, str(source), str(folder / f"out{source.suffix}")]


def against(name: str, text: str, source: Path, folder: Path, runs: int, wanted: str) -> None:
    """One row: a conversion against a script, or against cp and sync for the text "cp"."""
    theirs = copy(source, folder) if text == "cp" else script(text, source, folder)
    pair(f"{source.suffix} against {name}", convert(source, folder), theirs, folder / f"out{source.suffix}", runs, wanted)


def small(folder: Path, runs: int) -> None:
    """A ResNet-50 in four formats, and the smallest fixture."""
    pth, safe, onnx, keras = (folder / f"small{suffix}" for suffix in (".pth", ".safetensors", ".onnx", ".h5"))
    run([PYTHON, "-c", programs.MAKE_SMALL, str(pth), str(safe)])
    run([PYTHON, "-c", programs.MAKE_ONNX, str(onnx)])
    run([PYTHON, "-c", programs.MAKE_H5, str(keras)])
    print(f"ResNet-50, {pth.stat().st_size / 1e6:.0f} MB")
    against("torch.load, sum, torch.save", programs.TORCH_SCRIPT, pth, folder, runs, "≤ 0.125")
    against("cp + sync", "cp", pth, folder, runs, "-")
    against("safetensors.numpy", programs.SAFETENSORS_SCRIPT, safe, folder, runs, "≤ 0.8")
    against("cp + sync", "cp", safe, folder, runs, "-")
    against("onnx.load, onnx.save", programs.ONNX_SCRIPT, onnx, folder, runs, "≤ 0.25")
    against("a copy edited through h5py", programs.H5_SCRIPT, keras, folder, runs, "≤ 1.5")
    tiny = {"a file of 1 KB": convert(TINY, folder), "--help": [*OURS, "--help"], "an empty Python": NOTHING}
    for name, figures in in_turn(tiny, folder / f"out{TINY.suffix}", runs).items():
        low, middle, high = (1000 * value for value in quartiles([figure.processor for figure in figures]))
        print(f"{name:44}  {middle:4.0f} ms of processor time (quartiles {low:.0f} to {high:.0f}; wanted ≤ 90)   {load()}")


def arrays(folder: Path) -> None:
    """500 MB of arrays by name, mostly holes: Flax's, NumPy's and pickled ones. Their peak of memory is what counts."""
    for name in ("arrays.msgpack", "arrays.npz", "arrays.pkl"):
        source = folder / name
        run([PYTHON, "-m", "tests.support.big_files", str(source), "500"])
        figure = run([*convert(source, folder), "--force"])
        print(f"{f'{source.suffix} of 500 MB':44}  {figure.wall:5.2f} s   peak {figure.peak:4.0f} MiB (wanted ≤ 80)", flush=True)
        source.unlink()


def repository(folder: Path, runs: int) -> None:
    """check on 200 checkpoints: of 120 MB, which are one hole each, and pickled ones of 322 tensors. Only indexes are read."""
    for name, program, wanted in (("safetensors", programs.MAKE_MANY, 5), ("pth", programs.MAKE_ZOO, 2)):
        run([PYTHON, "-c", program, str(folder / name)])
        figures = [run([*OURS, "check", str(folder / name), "--expect", "rgb"]) for _ in range(runs)]
        low, middle, high = quartiles([figure.wall for figure in figures])
        print(
            f"{f'check on 200 .{name}':44}  {middle:5.2f} s (quartiles {low:.2f} to {high:.2f}; wanted ≤ {wanted})"
            f"   peak {max(figure.peak for figure in figures):4.0f} MiB   {load()}",
            flush=True,
        )
        shutil.rmtree(folder / name)


def large(folder: Path, runs: int) -> None:
    """4 GB, of which the disk is most of the time."""
    pth, safe = folder / "large.pth", folder / "large.safetensors"
    run([PYTHON, "-c", programs.MAKE_LARGE, str(pth), str(safe)])
    print(f"forty-four matrices behind a stem, {pth.stat().st_size / 1e9:.1f} GB")
    against("cp + sync", "cp", pth, folder, runs, "≤ 1.0")
    pth.unlink()
    against("cp + sync", "cp", safe, folder, runs, "≤ 1.0")
    against("safetensors.numpy", programs.SAFETENSORS_SCRIPT, safe, folder, max(2, runs // 3), "≤ 0.6")
    safe.unlink()


def many(folder: Path, runs: int, count: int = 40) -> None:
    """Forty models at once and one after the other; beside it what the disk does with as many plain copies."""
    zoo, out = folder / "zoo", folder / "gray"
    zoo.mkdir()
    source = folder / "small.pth"
    if not source.exists():
        run([PYTHON, "-c", programs.MAKE_SMALL, str(source), str(folder / "small.safetensors")])
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
    figures: dict[str, list[Figure]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, command in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            figures[name].append(run(command))
    shutil.rmtree(out, ignore_errors=True)
    size = source.stat().st_size * count / 1e6
    for name, taken in figures.items():
        seconds, peak = statistics.median(figure.wall for figure in taken), max(figure.peak for figure in taken)
        processor = statistics.median(figure.processor for figure in taken)
        print(
            f"{name:44}  {seconds:6.2f} s   {processor:6.2f} s of processor time   {size / seconds:6.0f} MB/s"
            f"   peak of one process {peak:4.0f} MiB   {load()}",
            flush=True,
        )
    one, two, cp_one, cp_two = ([figure.wall for figure in taken] for taken in figures.values())
    for name, slow, quick in (
        ("-j 2 against -j 1 (wanted ≥ 1.7)", one, two),
        ("two cp against one: the disk's own", cp_one, cp_two),
    ):
        low, middle, high = quartiles([a / b for a, b in zip(slow, quick, strict=True)])
        print(f"{name:44}  {middle:5.2f} times as quick (quartiles {low:.2f} to {high:.2f} of {runs})", flush=True)


def external(folder: Path, runs: int) -> None:
    """4 GB of external data: it is copied beside the new model."""
    model = folder / "large.onnx"
    run([PYTHON, "-c", programs.MAKE_LARGE_ONNX, str(model)])
    both = [
        *COPY_AND_SYNC[:2],
        'cp "$1" "$2" && cp "$(dirname "$1")/big.bin" "$2.data" && sync "$2.data"',
        "sh",
        str(model),
        str(folder / "out.onnx"),
    ]
    ours = [*convert(model, folder), "--force"]
    pair(".onnx with 4 GB of data against cp + sync", ours, both, folder / "out.onnx", runs, "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=9, help="pairs for each row [9]")
    parser.add_argument("--folder", type=Path, help="where the files are made and removed [the system's temporary folder]")
    arguments = parser.parse_args()
    runs, parts = arguments.runs, [arguments.only] if arguments.only else PARTS
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if "small" in parts:
            small(folder, runs)
            arrays(folder)
            repository(folder, runs)
        if "scale" in parts:
            scale(folder)
        if "sizes" in parts:
            sizes(folder, max(2, runs // 3))
        if "startup" in parts:
            startup(folder, runs)
        if "many" in parts:
            many(folder, max(2, runs // 2))
            shutil.rmtree(folder / "zoo")
        if "fleet" in parts:
            fleet(folder, runs)
        if "large" in parts:
            if shutil.disk_usage(folder).free < 20e9:
                raise SystemExit("the 4 GB part needs 20 GB of disk")
            large(folder, runs)
            external(folder, max(2, runs // 2))


if __name__ == "__main__":
    main()

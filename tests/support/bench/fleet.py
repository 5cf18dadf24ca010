"""What a cluster costs a task: conversions on two of Dask's workers on this machine, and in two processes of our own pool.

    python -m tests.support.bench.fleet FOLDER RUNS

The workers run already, and have converted once: what counts is the cost of a task, not of a start.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.support.bench.measure import ENVIRONMENT, load, quartiles

COUNT = 200
MAKE = """
import sys, numpy as np, safetensors.numpy
shapes = {"conv1.weight": (64, 3, 7, 7), "conv2.weight": (64, 64, 3, 3), "fc.weight": (1000, 1320)}
safetensors.numpy.save_file({name: np.ones(shape, "f4") for name, shape in shapes.items()}, sys.argv[1])
"""


def fleet(folder: Path, runs: int) -> None:
    """In a process of its own: Dask is large."""
    subprocess.run([sys.executable, "-m", __name__, str(folder), str(runs)], check=True, env=ENVIRONMENT)


def main() -> None:
    """200 files of 5.5 MB, all links to one."""
    import distributed

    from chkpt_channels import fleet as fleets
    from chkpt_channels.api.fleet.clusters import executor_on
    from chkpt_channels.api.fleet.row import with_output_dir

    folder, runs = Path(sys.argv[1]), int(sys.argv[2])
    zoo, out = folder / "zoo-of-a-fleet", folder / "out-of-a-fleet"
    zoo.mkdir()
    subprocess.run([sys.executable, "-c", MAKE, str(zoo / "m0.safetensors")], check=True)
    for i in range(1, COUNT):
        os.link(zoo / "m0.safetensors", zoo / f"m{i}.safetensors")
    jobs = with_output_dir(str(out), [fleets.Job(str(path), None, "gray", {}) for path in sorted(zoo.iterdir())])

    def seconds(**how: object) -> float:
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        for outcome in fleets.run(jobs, **how):  # type: ignore[arg-type]
            outcome.get()
        return time.perf_counter() - began

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        executor_on(cluster.scheduler_address.replace("tcp:", "dask:")) as executor,
    ):
        seconds(executor=executor)
        taken = [(seconds(workers=2), seconds(executor=executor)) for _ in range(runs)]
    low, middle, high = quartiles([1000 * (dask - pool) / COUNT for pool, dask in taken])
    pool, dask = (statistics.median(column) for column in zip(*taken, strict=True))
    print(
        f"{COUNT} conversions of 5.5 MB: {pool:.2f} s with -j 2, {dask:.2f} s on Dask; a task costs {middle:.1f} ms more there "
        f"(quartiles {low:.1f} to {high:.1f} of {runs}; wanted ≤ 10)   {load()}",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""Files of hundreds of megabytes of the formats that hold arrays by name: a kernel of a few, and zeros, mostly as a hole.

python -m tests.support.big_files PATH MEBIBYTES
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.messagepack import array, packed

ROOT = Path(__file__).resolve().parents[2]
SMALL = 1 << 20
"""The bytes of the array whose place the zeros take: no frame of a pickle holds it."""
PROGRAM = """
import sys
from pathlib import Path
from chkpt_channels import convert
source = Path(sys.argv[1])
convert(source, source.with_name("out" + source.suffix), to="gray")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak(source: Path) -> int:
    """The MiB of memory that a process takes at most that converts a file."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the peak of one process alone is read from /proc")
    command = [sys.executable, "-c", PROGRAM, str(source)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout) >> 10


def big(path: Path, mebibytes: int, protocol: int = 4) -> Path:
    """A file by its ending, `protocol` for a pickle."""
    size = mebibytes << 20
    match path.suffix:
        case ".msgpack":
            _flax(path, size)
        case ".npz":
            _npz(path, size)
        case _:
            _pickled(path, size, protocol)
    return path


def _kernel(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


def _flax(path: Path, size: int) -> None:
    values = _kernel(7, 7, 3, 8)
    stem = packed({"Conv_0": {"kernel": array(values.shape, "float32", values.tobytes())}})[1:]
    inner = array((size // 4,), "float32", b"").data[:-2] + b"\xc6" + size.to_bytes(4, "big")
    data = b"\x82" + stem + packed("head") + b"\xc9" + (len(inner) + size).to_bytes(4, "big") + b"\x01" + inner
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + size)


def _npz(path: Path, size: int) -> None:
    np.savez(path, **{"Conv_0/kernel": _kernel(7, 7, 3, 8)})
    with zipfile.ZipFile(path, "a") as archive, archive.open("head.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (size // 4,)})
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))


def _pickled(path: Path, size: int, protocol: int) -> None:
    data = pickle.dumps({"conv1.weight": _kernel(8, 3, 7, 7), "head": np.zeros(SMALL // 4, "f4")}, protocol)
    opcode, width = {2: (b"X", 4), 5: (b"\x96", 8)}.get(protocol, (b"B", 4))
    old, new = (opcode + n.to_bytes(width, "little") for n in (SMALL, size))
    front, behind = data.split(old + bytes(SMALL))
    with path.open("wb") as file:
        file.write(front.replace(*(b"J" + (n // 4).to_bytes(4, "little") for n in (SMALL, size))) + new)
        file.seek(size, 1)
        file.write(behind.replace(*(b"J" + (n // 4).to_bytes(4, "little") for n in (SMALL, size))))


if __name__ == "__main__":
    big(Path(sys.argv[1]), int(sys.argv[2]))

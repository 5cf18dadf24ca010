"""The wheel beside what people have: make test-beside.

It goes into a fresh environment with current TensorFlow, torch, transformers and timm, where no version may change, and converts
every Keras fixture there. A download of 500 MB and more, some minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.lowest import ROOT

HAVE = "torch==2.13.0", "tensorflow-cpu", "transformers", "timm"


def run(*command: object) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended in {done.returncode}")
    return done.stdout


def fixtures() -> Iterator[tuple[Path, str]]:
    """Each Keras file with a first convolution, and the channels that it has not."""
    for folder in ("keras_h5", "keras_zip"):
        listing = ROOT / "fixtures" / folder / "expected.json"
        for name, said in json.loads(listing.read_text(encoding="utf-8")).items():
            if said["in_channels"]:
                yield listing.parent / name, "rgb" if said["in_channels"] == 1 else "gray"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "venv", folder / "venv")
        python = folder / "venv" / "bin" / "python"
        pip = python, "-m", "pip", "--quiet", "--disable-pip-version-check"
        run(*pip, "install", *HAVE)
        before = run(*pip, "freeze").splitlines()
        run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
        run(*pip, "install", *folder.glob("*.whl"))
        run(*pip, "check")
        after = run(*pip, "freeze").splitlines()
        if changed := set(before) - set(after):
            raise SystemExit(f"the install changed {', '.join(sorted(changed))}")
        print(f"{len(before)} packages kept their versions; new: {', '.join(sorted(set(after) - set(before)))}", flush=True)
        converted = 0
        for path, to in fixtures():
            output = folder / path.name
            run(python, "-P", "-m", "chkpt_channels", "convert", path, "--to", to, "-o", output, "--quiet")
            run(python, "-P", "-m", "chkpt_channels", "verify", path, output, "--quiet")
            converted += 1
        print(f"{converted} Keras fixtures converted and verified")


if __name__ == "__main__":
    main()

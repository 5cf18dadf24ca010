"""Kernels as sheets of tiles, one tile a filter: which sheets a kernel needs, what each is called, and its pixels.

Zero is mid-gray, the largest weight of the scale white, its negative black. Three channels are one sheet of colors where they are
colors; any other number has a sheet for each channel, and each slice of a volume has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log
from typing import TYPE_CHECKING, Any

from chkpt_channels.api.display.filters import Filters
from chkpt_channels.core.records import NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

LINE = (0x33, 0x3B, 0x47)
"""The color of the lines between and around tiles: no tile has it, since a tile's mean is near mid-gray."""
TILE_PIXELS = 56
"""The least size of a tile, in pixels of the sheet: small kernels are enlarged to it, pixel by pixel."""
MOST_TILES, MOST_OF_MANY, MOST_SHEETS, MOST_TAPS = 1024, 64, 64, 1 << 20
"""Filters on a single sheet, and on one of many; sheets of one kernel; taps on a sheet. The picture says what is left out."""


class Panel(NamedTuple):
    """One sheet: the channels on it (three are colors), the slice, and what stands above it. `weights` are [O, 1 or 3, H, W]."""

    channels: tuple[int, ...]
    label: str
    weights: NDArray[Any]


def channel_names(filters: Filters, given: Sequence[str] = ()) -> list[str]:
    """What the channels of a kernel are called: as the user named them, gray, colors, or numbers."""
    if len(given) == filters.channels:
        return list(given)
    if filters.apart:
        return [f"channel {i}" for i in range(filters.channels)]
    return ["gray"] if filters.channels == 1 else ["R", "G", "B"]


def panels(filters: Filters, names: Sequence[str], *, apart: bool) -> list[Panel]:
    """The sheets of a kernel, slice by slice; `apart` draws each channel on its own."""
    together = not apart and filters.channels == 3
    sheets = [(0, 1, 2)] if together else [(i,) for i in range(filters.channels)]
    depth, height, width = filters.weights.shape[2:]
    most = MOST_OF_MANY if len(sheets) * depth > 3 else MOST_TILES
    shown = filters.weights[: max(1, min(most, MOST_TAPS // (height * width)))]
    found = []
    for channels in sheets:
        name = ", ".join(names[i] for i in channels) + (" as colors" if together else "")
        for at in range(depth):
            where = f" · {at + 1}/{depth}" if depth > 1 else ""
            found.append(Panel(channels, name + where, shown[:, list(channels), at]))
    return found[:MOST_SHEETS]


class Grid(NamedTuple):
    """How tiles stand: in so many rows and columns, each tap `zoom` pixels wide and high, a line of `line` pixels around each."""

    rows: int
    columns: int
    zoom: int
    line: int

    @classmethod
    def of(cls, weights: NDArray[Any]) -> Grid:
        """The grid for [O, C, H, W]: its last row is full where it can be, and it is a little wider than high."""
        count, _, height, width = map(int, weights.shape)

        def cost(columns: int) -> float:
            rows = ceil(count / columns)
            shape: float = abs(log(columns * width / (rows * height) / 1.3))
            return shape + 5 * float(rows * columns - count) / count

        columns = min(range(1, count + 1), key=cost)
        zoom = ceil(TILE_PIXELS / max(height, width))
        return cls(ceil(count / columns), columns, zoom, max(1, zoom * min(height, width) // 18))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of the sheet in pixels."""
        down, across = height * self.zoom + self.line, width * self.zoom + self.line
        return self.rows * down + self.line, self.columns * across + self.line


def sheet(weights: NDArray[Any], largest: float) -> NDArray[Any]:
    """All tiles in rows, [height, width, 4] as 8-bit RGBA: a line around each tile, nothing where there is none."""
    import numpy as np

    _, channels, height, width = weights.shape
    grid = Grid.of(weights)
    tiles = ((0.5 + weights / (2 * largest or 1.0)).clip(0, 1) * 255).round().astype(np.uint8)
    tiles = tiles.repeat(3 // channels, axis=1).repeat(grid.zoom, axis=2).repeat(grid.zoom, axis=3).transpose(0, 2, 3, 1)
    down, across = tiles.shape[1] + grid.line, tiles.shape[2] + grid.line
    pixels = np.zeros((*grid.size(height, width), 4), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (at * step for at, step in zip(divmod(i, grid.columns), (down, across), strict=True))
        framed = np.full((down + grid.line, across + grid.line, 4), (*LINE, 255), np.uint8)
        framed[grid.line : down, grid.line : across, :3] = tile
        pixels[y : y + down + grid.line, x : x + across + grid.line] = framed
    return pixels


def scale_of(kernels: Sequence[Filters]) -> float:
    """The weight that is drawn white: the few largest saturate (0.998), or the rest would all look gray."""
    import numpy as np

    return max(float(np.quantile(np.abs(kernel.weights), 0.998)) for kernel in kernels)


def png(sheets: Sequence[NDArray[Any]]) -> bytes:
    """Sheets side by side as a PNG file. Raises ImportError where matplotlib is missing."""
    import io

    import numpy as np
    from matplotlib.image import imsave

    height = max(len(pixels) for pixels in sheets)
    padded = [np.pad(pixels, ((0, height - len(pixels)), (0, TILE_PIXELS // 2), (0, 0))) for pixels in sheets]
    file = io.BytesIO()
    imsave(file, np.concatenate(padded, axis=1), format="png")
    return file.getvalue()

"""What a tile shows is what the kernel holds, and a sheet ends where its tiles do."""

from __future__ import annotations

import io

import numpy as np
import pytest

from chkpt_channels.api.display.filters import Filters
from chkpt_channels.api.display.sheets import LINE, Grid, channel_names, panels, png, scale_of, sheet
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor


def filters(*shape: int) -> Filters:
    weights = np.random.default_rng(0).normal(size=shape)
    conv = FirstConv(Tensor("w", BY_NAME["F64"], shape), Layout("OIDHW"), shape[1], "user")
    return Filters("a.pth", conv, weights)


def test_tiles():
    weights = np.zeros((3, 1, 56, 56))
    weights[1] = 1
    weights[2, 0, 0, 0] = -2
    grid, pixels = Grid.of(weights), sheet(weights, 2.0)
    assert (grid.zoom, pixels.shape[:2]) == (1, grid.size(56, 56))
    starts = [divmod(i, grid.columns) for i in range(3)]
    tops = [tuple(at * (56 + grid.line) + grid.line for at in start) for start in starts]
    assert [pixels[y + 1, x + 1, :3].tolist() for y, x in tops] == [[128] * 3, [191] * 3, [128] * 3]
    assert pixels[tops[2]].tolist() == [0, 0, 0, 255]
    assert all(pixels[y - 1, x - 1, :3].tolist() == list(LINE) for y, x in tops)


def test_three_channels_are_colors():
    pixels = sheet(np.array([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1), 1.0)
    middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
    assert middle.tolist() == [255, 128, 0, 255]


@pytest.mark.parametrize("count", [1, 5, 7, 32, 37, 64, 96, 768])
def test_a_place_without_a_filter_is_transparent(count: int):
    weights = np.ones((count, 1, 7, 7))
    grid = Grid.of(weights)
    pixels, step = sheet(weights, 1.0), 7 * grid.zoom + grid.line
    assert 0 <= grid.rows * grid.columns - count < grid.columns
    for i in range(grid.rows * grid.columns):
        y, x = (at * step + grid.line for at in divmod(i, grid.columns))
        assert set(pixels[y : y + 7 * grid.zoom, x : x + 7 * grid.zoom, 3].flat) == {255 if i < count else 0}


@pytest.mark.parametrize(("count", "columns"), [(64, 8), (32, 8), (96, 12), (768, 32)])
def test_rows_are_full_where_they_can_be(count: int, columns: int):
    assert Grid.of(np.ones((count, 1, 7, 7))).columns == columns


def test_each_channel_of_more_than_three_has_its_own_sheet():
    names = channel_names(filters(8, 4, 1, 3, 3), ["B", "G", "R", "NIR"])
    found = panels(filters(8, 4, 1, 3, 3), names, apart=True)
    assert [panel.label for panel in found] == names
    assert [panel.channels for panel in found] == [(0,), (1,), (2,), (3,)]
    kernel = filters(8, 3, 1, 3, 3)
    (colors,) = panels(kernel, channel_names(kernel), apart=False)
    assert (colors.label, colors.channels) == ("R, G, B as colors", (0, 1, 2))
    assert np.array_equal(colors.weights, kernel.weights[:, :, 0])


def test_each_slice_of_a_volume_has_its_own_sheet():
    kernel = filters(8, 1, 3, 5, 5)
    found = panels(kernel, channel_names(kernel), apart=False)
    assert [panel.label for panel in found] == [f"gray · {i}/3" for i in (1, 2, 3)]
    assert all(np.array_equal(panel.weights, kernel.weights[:, :, i]) for i, panel in enumerate(found))
    assert len(panels(filters(8, 2, 3, 5, 5), ["a", "b"], apart=True)) == 6


def test_what_has_no_room_is_left_out():
    assert len(panels(filters(2000, 1, 1, 3, 3), ["gray"], apart=False)[0].weights) == 1024
    many = panels(filters(100, 70, 1, 1, 1), ["name"] * 70, apart=True)
    assert (len(many), len(many[0].weights)) == (64, 64)
    assert len(panels(filters(3, 1, 1, 1024, 1024), ["gray"], apart=False)[0].weights) == 1


def test_channels_have_names():
    one, two, three = (filters(8, channels, 1, 3, 3) for channels in (1, 2, 3))
    assert channel_names(one) == ["gray"]
    assert channel_names(three) == ["R", "G", "B"]
    assert channel_names(two) == ["channel 0", "channel 1"]
    assert channel_names(three, ["B", "G", "R"]) == ["B", "G", "R"]
    assert channel_names(one, ["B", "G", "R"]) == ["gray"]


def test_the_channels_of_a_signal_are_no_colors():
    kernel = filters(8, 3, 1, 1, 9)
    signal = kernel._replace(conv=kernel.conv._replace(layout=Layout("OIW")))
    assert (kernel.apart, signal.apart) == (False, True)
    assert channel_names(signal) == ["channel 0", "channel 1", "channel 2"]


def test_the_scale_is_that_of_all_kernels():
    small, large = filters(8, 1, 1, 3, 3), filters(8, 1, 1, 3, 3)
    large = large._replace(weights=np.full_like(large.weights, -7.0))
    assert scale_of([small, large]) == 7
    assert scale_of([small]) < 5


def test_sheets_as_a_file():
    image = pytest.importorskip("matplotlib.image")
    drawn = [sheet(filters(count, 3, 1, 7, 7).weights[:, :, 0], 1.0) for count in (4, 32)]
    read = (image.imread(io.BytesIO(png(drawn))) * 255).round().astype(np.uint8)
    left = 0
    for pixels in drawn:
        height, width, _ = pixels.shape
        assert np.array_equal(read[:height, left : left + width], pixels)
        assert not read[height:, left : left + width].any()
        left += width + 28
    assert read.shape == (max(map(len, drawn)), left, 4)

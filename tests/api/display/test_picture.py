"""What stands in a picture: its words, its sheets, its bars and their colors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chkpt_channels.api.display import picture, sheets
from chkpt_channels.api.display.filters import Filters
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor


def block(shape: tuple[int, ...], bands: tuple[str, ...] = (), made_of: tuple[str, ...] = (), **words: Any) -> picture.Block:
    weights = np.random.default_rng(0).normal(size=shape)
    conv = FirstConv(Tensor(words.pop("name", "conv1.weight"), BY_NAME["F32"], shape), Layout("OIDHW"), shape[1], "user")
    kernel = Filters("a.pth", conv, weights)
    names = sheets.channel_names(kernel, bands)
    found = sheets.panels(kernel, names, apart=kernel.apart)
    facts = {"title": "a.pth", "role": "before"} | words
    return picture.Block(
        filters=kernel, names=names, made_of=made_of or [""] * shape[1], panels=found, scale=sheets.scale_of([kernel]), **facts
    )


def drawn(*blocks: picture.Block, related: bool = True) -> Any:
    pytest.importorskip("matplotlib")
    return picture.draw("the title", "the subtitle", blocks, related=related)


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


def bars(figure: Any) -> list[Any]:
    return [
        patch for axes in figure.axes for patch in axes.patches if getattr(patch, "get_width", float)() == pytest.approx(0.74)
    ]


def test_each_channel_has_its_bar_in_its_color():
    from matplotlib.colors import to_hex

    found = bars(drawn(block((8, 4, 1, 3, 3), ("B", "G", "R", "NIR"))))
    assert [to_hex(bar.get_facecolor()) for bar in found] == [picture.NAMED[name] for name in ("b", "g", "r", "nir")]
    weights = block((8, 4, 1, 3, 3)).filters.weights
    assert [bar.get_height() for bar in found] == pytest.approx((weights**2).sum(axis=(0, 2, 3, 4)))


def test_a_numbered_channel_has_the_color_of_what_it_is_made_of():
    from matplotlib.colors import to_hex

    found = bars(drawn(block((8, 4, 1, 3, 3), made_of=("0.75 R", "0.75 G", "B", "R + B"))))
    assert [to_hex(bar.get_facecolor()) for bar in found] == [*(picture.NAMED[name] for name in "rgb"), picture.OTHERS[3]]


def test_a_named_channel_has_a_color_of_its_own():
    from matplotlib.colors import to_hex

    found = bars(drawn(block((8, 4, 1, 3, 3), ("T1", "T1c", "T2", "FLAIR"), made_of=("0.25 gray",) * 4)))
    assert [to_hex(bar.get_facecolor()) for bar in found] == list(picture.OTHERS[:4])


def test_what_a_channel_is_made_of_stands_above_it_where_it_has_room():
    made_of = ("0.25 gray", "0.25 gray")
    assert "a = 0.25 gray" in texts(drawn(block((8, 2, 1, 7, 7), ("a", "b"), made_of=made_of)))
    assert "a · 1/7" in texts(drawn(block((8, 2, 7, 7, 7), ("a", "b"), made_of=made_of)))


def test_of_two_models_each_has_its_head_scale_and_shares():
    figure = drawn(block((8, 3, 1, 7, 7), title="first"), block((16, 1, 1, 3, 3), title="second", role="other"), related=False)
    assert {"first", "second", "the title", "the subtitle"} <= {*texts(figure)}
    assert sum(text.startswith("−") for text in texts(figure)) == 2
    assert sum(bar.get_height() for bar in bars(figure)) == pytest.approx(200)


def test_one_kernel_has_no_head_of_its_own():
    assert "a.pth" not in texts(drawn(block((8, 3, 1, 7, 7))))


def test_sheets_do_not_overlap_and_stay_in_the_picture():
    figure = drawn(block((8, 3, 1, 7, 7)), block((8, 13, 1, 7, 7)), block((8, 1, 7, 7, 7)))
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == 1 + 1 + 13 + 7 + 2
    for i, box in enumerate(boxes):
        assert 0 < box.x0 < box.x1 < 1
        assert 0 < box.y0 < box.y1 < 1
        assert not any(box.x0 < other.x1 and other.x0 < box.x1 and box.y0 < other.y1 and other.y0 < box.y1 for other in boxes[:i])


def test_each_row_of_slices_is_a_channel():
    boxes = [axes.get_position() for axes in drawn(block((8, 4, 3, 7, 7))).axes][1:13]
    assert [len({round(box.y0, 6) for box in boxes[at : at + 3]}) for at in range(0, 12, 3)] == [1] * 4
    assert len({round(box.y0, 6) for box in boxes}) == 4


def test_a_kernel_that_is_a_tower_makes_no_endless_picture():
    assert max(drawn(block((1, 1, 1, 20000, 1))).get_size_inches()) < 30
    assert max(drawn(block((1, 1, 1, 1, 20000))).get_size_inches()) < 30


def test_what_is_left_out_is_said():
    assert picture.about(block((8, 3, 1, 7, 7))) == "conv1.weight · 8 filters of 7×7 over 3 channels"
    assert picture.about(block((8, 1, 5, 7, 7))).endswith("8 filters of 5×7×7 over 1 channel, slice by slice")
    assert "the first 64 of 100 filters" in picture.about(block((100, 70, 1, 1, 1)))
    assert picture.about(block((100, 70, 1, 1, 1))).endswith(", the first 64 of 70 sheets")


def test_names_from_a_file_are_text_and_nothing_else():
    """No formula, no control character, no line without an end."""
    name = r"$\frac{$" + "\x1b[31m" + "x" * 500
    style = pytest.importorskip("matplotlib.style")
    with style.context(picture.STYLE):
        figure = drawn(block((8, 4, 1, 3, 3), (name, "b", "c", "d"), name=name, title=name), related=False)
        figure.canvas.draw()
    assert all("\x1b" not in text and len(text) < 200 for text in texts(figure))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (((1,), (1,), (1,)), ["R + G + B"]),
        (((0, 0, 0.5, 0.5), (0, 1, 0, 0), (1, 0, 0, 0)), ["B", "G", "0.5 R", "0.5 R"]),
        (((1, 0), (-0.25, 0), (0, 0)), ["R − 0.25 G", "0"]),
    ],
)
def test_what_a_channel_is_made_of(matrix: tuple[tuple[float, ...], ...], expected: list[str]):
    assert list(picture.formulas(["R", "G", "B"], matrix)) == expected


def test_long_sums_are_not_spelled():
    assert list(picture.formulas([str(i) for i in range(5)], [[1.0]] * 5)) == [""]
